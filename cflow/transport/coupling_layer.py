"""The coupling layer: one part of a vector steers a map of the other part.

    y_frozen = x_frozen,    y_moved = g(x_moved; theta),    theta = net(x_frozen, context)

The frozen part may pass through a map of its own, whose parameters are learned constants. The
Jacobian is triangular, so the log-determinant is the sum of the log-slopes.
Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 3.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.transport.transport import Layer
from cflow.transport.univariate import AffineMap, UnivariateMap, in_full_precision

__all__ = ["CouplingLayer"]


class CouplingLayer(Layer):
    """Move the masked features, steered by the others and by the context.

    Args:
        moved: One flag per feature, true for those that move.
        conditioner: A module called as `net(frozen, context)` that returns
            `(*batch, moves * parameters)` for the `moves` features that move.
        univariate: The map that moves them.
        frozen_univariate: A map of the other features, steered by learned parameters of their own
            (`frozen_theta`, zero at first); None leaves them as they are.

    Raises:
        DomainError: Nothing moves, or nothing stands still for `frozen_univariate` to map.

    References:
        Durkan et al. (2019), Neural spline flows, arXiv 1906.04032, for the map of the frozen
        part.

    Example:
        >>> from cflow.nets import MLP
        >>> from cflow.state import State
        >>> layer = CouplingLayer([False, True], MLP(1, 2))
        >>> x = torch.randn(4, 2)
        >>> back = layer.pull(layer.push(State(x)))
        >>> torch.allclose(back.x, x, atol=1e-6)
        True
    """

    def __init__(
        self,
        moved: Sequence[bool] | Tensor,
        conditioner: Callable[[Tensor, Tensor | None], Tensor],
        univariate: UnivariateMap | None = None,
        *,
        frozen_univariate: UnivariateMap | None = None,
    ) -> None:
        super().__init__(event_dim=1)
        flags = torch.as_tensor(moved, dtype=torch.bool)
        if flags.dim() != 1 or not bool(flags.any()):
            raise DomainError(
                f"CouplingLayer: moved must be a list of flags with one true, got {flags.tolist()}"
            )
        self.conditioner = conditioner
        self.univariate = AffineMap() if univariate is None else univariate
        self.frozen_univariate = frozen_univariate
        frozen, moves = torch.nonzero(~flags).flatten(), torch.nonzero(flags).flatten()
        self.frozen: Tensor
        self.moves: Tensor
        self.order: Tensor
        self.register_buffer("frozen", frozen)
        self.register_buffer("moves", moves)
        self.register_buffer("order", torch.argsort(torch.cat([frozen, moves])))
        self.frozen_theta = None
        if frozen_univariate is not None:
            if not len(frozen):
                raise DomainError(
                    "CouplingLayer: frozen_univariate needs a feature that does not move"
                )
            theta = torch.zeros(len(frozen), frozen_univariate.parameters)
            self.frozen_theta = nn.Parameter(theta)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        frozen, moving = self._parts(x)
        theta = self._steer(frozen, context)
        moving, slopes = in_full_precision(self.univariate.push, moving, theta)
        if self.frozen_univariate is not None and self.frozen_theta is not None:
            constants = self.frozen_theta.expand(*frozen.shape, -1)
            frozen, own = in_full_precision(self.frozen_univariate.push, frozen, constants)
            slopes = torch.cat([slopes, own], dim=-1)
        return self._join(frozen, moving), slopes

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        frozen, moving = self._parts(y)
        own = None
        if self.frozen_univariate is not None and self.frozen_theta is not None:
            constants = self.frozen_theta.expand(*frozen.shape, -1)
            frozen, own = in_full_precision(self.frozen_univariate.pull, frozen, constants)
        theta = self._steer(frozen, context)  # of the base side's frozen part, in both directions
        moving, slopes = in_full_precision(self.univariate.pull, moving, theta)
        slopes = slopes if own is None else torch.cat([slopes, own], dim=-1)
        return self._join(frozen, moving), slopes

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != len(self.order):
            raise ShapeError(
                f"CouplingLayer: points must have {len(self.order)} features, got {tuple(x.shape)}"
            )
        return x.index_select(-1, self.frozen), x.index_select(-1, self.moves)

    def _steer(self, frozen: Tensor, context: Tensor | None) -> Tensor:
        theta = self.conditioner(frozen, context)
        return theta.unflatten(-1, (len(self.moves), self.univariate.parameters))

    def _join(self, frozen: Tensor, moving: Tensor) -> Tensor:
        return torch.cat([frozen, moving], dim=-1).index_select(-1, self.order)
