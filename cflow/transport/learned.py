"""Univariate maps applied to every entry, with learned parameters of their own or of the context.

    y_i = g(x_i; theta_i)    or    y_i = g(x_i; theta_i + net(context)_i)

What Gaussianization flows, splines on the frozen half of a coupling layer, and learned margins
need. Source: Meng et al. (2020), Gaussianization flows, arXiv 2003.01941, section 3.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.transport.transport import Layer
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["Elementwise"]


class Elementwise(Layer):
    """Move each entry of an event by the same kind of map; no entry sees another.

    It starts as the identity where the map does so at zero and the conditioner returns zeros.

    Args:
        univariate: The map, with `parameters` numbers for each entry.
        event_shape: Shape of one point.
        conditioner: A module called as `net(context)` that returns `(*batch, size * parameters)`,
            with `size` the number of entries of an event; added to the learned parameters.

    Raises:
        DomainError: A context is missing where a conditioner needs it.
        ShapeError: Points have another shape, or the conditioner's output has.

    Example:
        >>> from cflow.state import State
        >>> from cflow.transport import AffineMap
        >>> layer = Elementwise(AffineMap(), (2, 3))
        >>> layer.push(State(torch.ones(4, 2, 3))).x.shape
        torch.Size([4, 2, 3])
    """

    def __init__(
        self,
        univariate: UnivariateMap,
        event_shape: Sequence[int],
        *,
        conditioner: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(event_dim=len(tuple(event_shape)))
        self.event_shape = tuple(event_shape)
        self.univariate = univariate
        self.conditioner = conditioner
        self.theta = nn.Parameter(torch.zeros(*self.event_shape, univariate.parameters))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return in_full_precision(self.univariate.push, x, self._raw("push", x, context))

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return in_full_precision(self.univariate.pull, y, self._raw("pull", y, context))

    def _raw(self, method: str, x: Tensor, context: Tensor | None) -> Tensor:
        expect_trailing(f"Elementwise.{method}", "x", x, self.event_shape)
        if self.conditioner is None:
            return self.theta.expand(*x.shape, -1)
        if context is None:
            raise DomainError(
                f"Elementwise.{method}: the conditioner needs a context, got None; pass one, or "
                "build the layer without a conditioner"
            )
        given = self.conditioner(context)
        if given.shape[-1] != self.theta.numel():
            raise ShapeError(
                f"Elementwise.{method}: the conditioner must return {self.theta.numel()} numbers "
                f"for {self.event_shape} entries, got {tuple(given.shape)}"
            )
        theta = self.theta + given.unflatten(-1, self.theta.shape)
        return theta.expand(*x.shape, -1)
