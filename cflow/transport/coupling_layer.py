"""The coupling layer: one part of a vector steers a map of the other part.

    y_frozen = x_frozen,    y_moved = g(x_moved; theta),    theta = net(x_frozen, context)

Its Jacobian is triangular, so the log-determinant is the sum of the log-slopes of g.
Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 3.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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

    Raises:
        DomainError: Nothing moves.

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
    ) -> None:
        super().__init__(event_dim=1)
        flags = torch.as_tensor(moved, dtype=torch.bool)
        if flags.dim() != 1 or not bool(flags.any()):
            raise DomainError(
                f"CouplingLayer: moved must be a list of flags with one true, got {flags.tolist()}"
            )
        self.conditioner = conditioner
        self.univariate = AffineMap() if univariate is None else univariate
        frozen, moves = torch.nonzero(~flags).flatten(), torch.nonzero(flags).flatten()
        self.frozen: Tensor
        self.moves: Tensor
        self.order: Tensor
        self.register_buffer("frozen", frozen)
        self.register_buffer("moves", moves)
        self.register_buffer("order", torch.argsort(torch.cat([frozen, moves])))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move(self.univariate.push, x, context)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move(self.univariate.pull, y, context)

    def _move(
        self,
        move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != len(self.order):
            raise ShapeError(
                f"CouplingLayer: points must have {len(self.order)} features, got {tuple(x.shape)}"
            )
        frozen, moving = x[..., self.frozen], x[..., self.moves]
        theta = self.conditioner(frozen, context)
        theta = theta.unflatten(-1, (len(self.moves), self.univariate.parameters))
        moving, slopes = in_full_precision(move, moving, theta)
        return torch.cat([frozen, moving], dim=-1)[..., self.order], slopes
