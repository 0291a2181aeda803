"""A field on a manifold, made of one in the space around it: v(t, x) = P(x) u(t, x, context).

P takes the tangent part. An `ODE` projects whatever field it is given; with this field matching
sees the projected velocity as well, and does not spend the network on normal parts that nobody
follows.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, section 3.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from cflow.errors import DomainError
from cflow.field.field import Field
from cflow.typing import Points, Times

__all__ = ["TangentField", "Tangents"]


@runtime_checkable
class Tangents(Protocol):
    """What a manifold has to offer; those of `cflow.manifold` and geoopt do."""

    ndim: int

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent part of u at x."""
        ...


class TangentField(Field):
    """Project a field of the space around to the tangent spaces of a manifold.

    The field has to be one of the manifold: where several x are the same point, such as angles that
    come round, it has to agree (`PeriodicField`). Where a metric is far from that of the space
    around, as in hyperbolic space or on positive definite matrices, `FrameField` gives velocities
    of unit size instead.

    Args:
        field: A velocity in the space around, called as `field(t, x, context)`.
        manifold: Where the points live, of `cflow.manifold` or geoopt.

    Raises:
        DomainError: The manifold has no `proju`.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> from cflow.manifold import Sphere
        >>> field = TangentField(MLPField(3), Sphere())
        >>> north = torch.tensor([[0.0, 0.0, 1.0]])
        >>> field(torch.zeros(1), north)[:, 2].item()
        0.0
    """

    def __init__(
        self, field: Callable[[Tensor, Tensor, Tensor | None], Tensor], manifold: Tangents
    ) -> None:
        super().__init__()
        if not isinstance(manifold, Tangents):
            raise DomainError(
                f"TangentField: a manifold with ndim and proju is needed, got {manifold!r}"
            )
        self.field = field
        self.manifold = manifold

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.manifold.proju(x, self.field(t, x, context))
