"""A field on a surface with edges, made of one in the space around it.

    v(t, x) = n x (u(t, x, context) x m)

n is the normal of the face of x, m a smooth normal. The tangent part of u alone would let another
flux into an edge than out of it, for faces meet at an angle, and the flow would not keep its mass.
This v, which comes down to it where m = n, keeps it: `Mesh.conserve`.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from cflow.field.field import Field
from cflow.typing import Points, Times

__all__ = ["Surface", "SurfaceField"]


@runtime_checkable
class Surface(Protocol):
    """What a surface has to offer; `cflow.manifold.Mesh` does."""

    def conserve(self, x: Tensor, u: Tensor) -> Tensor:
        """Return tangent vectors, whose flux is the same on both sides of an edge."""
        ...


class SurfaceField(Field):
    """Turn a field of the space around into one of a surface that keeps mass over its edges.

    Args:
        field: A velocity in space, called as `field(t, x, context)`; continuous in x.
        surface: Where the points live, a `cflow.manifold.Mesh`.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> from cflow.manifold import Mesh
        >>> corners = torch.cat([torch.zeros(1, 3), torch.eye(3)])
        >>> mesh = Mesh(corners, torch.tensor([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]]))
        >>> field = SurfaceField(MLPField(3), mesh)
        >>> field(torch.zeros(1), torch.tensor([[0.2, 0.2, 0.0]]))[:, 2].abs().item() < 1e-6
        True
    """

    conserves = True

    def __init__(
        self, field: Callable[[Tensor, Tensor, Tensor | None], Tensor], surface: Surface
    ) -> None:
        super().__init__()
        self.field = field
        self.surface = surface

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.surface.conserve(x, self.field(t, x, context))
