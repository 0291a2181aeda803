"""A field on a manifold by its coefficients in an orthonormal frame of the tangent spaces.

    v(t, x) = sum_k a_k(t, x, context) E_k(x),    E = L^-1 e,    L L^T = g(e_k, e_l)

|v|^2 in the metric is the sum of squares of the coefficients, whatever the metric: a network of
outputs of unit size gives velocities of unit size, near the edge of the hyperbolic ball as in its
middle. On a group with its left-invariant frame every smooth field can be had, and no output is
wasted on normal directions.
Source: Falorsi and Forre (2020), Neural ordinary differential equations on manifolds, arXiv
2006.06663.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.field.field import Field
from cflow.typing import Frame, Points, Times

__all__ = ["FrameField", "Framed"]


@runtime_checkable
class Framed(Protocol):
    """What a manifold has to offer; those of `cflow.manifold` do.

    Attributes:
        ndim: Number of trailing axes that make up one point.
        smooth_frame: Whether the frame is smooth all over the manifold.
        orthonormal_frame: Whether it is orthonormal in the metric.
    """

    ndim: int
    smooth_frame: bool
    orthonormal_frame: bool

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return the inner product of two tangent vectors at x, `(*batch,)`."""
        ...

    def frame(self, x: Tensor) -> Frame | None:
        """Return a basis of the tangent space and its dual; None for the entries of a point."""
        ...

    def dim(self, shape: Sequence[int]) -> int:
        """Return the dimension."""
        ...


class FrameField(Field):
    """Turn coefficients into velocities of a manifold that has a smooth frame.

    A sphere has none, but for the circle and S^3: a field of coefficients would jump, and the
    likelihood would miss what the jump does. `TangentField` serves there. In one line each:

        FrameField(TimedMLP((3, 3), 3), Rotations())
        FrameField(TimedMLP((4, 4), 6), RigidMotions())
        FrameField(TimedMLP((5, 5), 15), AffineInvariantSPD())

    The coefficients have to be a function on the manifold: where several x are the same point, such
    as unit quaternions q and -q, they have to agree.

    Args:
        coefficients: Called as `coefficients(t, x, context)` with x `(*batch, *event)`; returns one
            number for each dimension, `(*batch, dim)`. `TimedMLP(event_shape, dim)` does.
        manifold: Where the points live, of `cflow.manifold`.

    Raises:
        DomainError: The manifold has no frame, or none that is smooth.
        ShapeError: On use, another number of coefficients.

    Example:
        >>> from cflow.field import TimedMLP
        >>> from cflow.manifold import PoincareBall
        >>> field = FrameField(TimedMLP(2, 2), PoincareBall())
        >>> x = torch.tensor([[0.0, 0.9]])
        >>> v, a = field(torch.zeros(1), x), field.coefficients(torch.zeros(1), x)
        >>> torch.allclose(PoincareBall().inner(x, v, v), a.square().sum(-1))
        True
    """

    def __init__(
        self,
        coefficients: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        manifold: Framed,
    ) -> None:
        super().__init__()
        if not isinstance(manifold, Framed):
            raise DomainError(
                f"FrameField: a manifold of cflow.manifold is needed, which says its frame, got "
                f"{manifold!r}; TangentField takes any"
            )
        if not manifold.smooth_frame:
            raise DomainError(
                f"FrameField: {manifold} has no smooth frame, so the field would jump and the "
                "likelihood be wrong; use TangentField"
            )
        self.coefficients = coefficients
        self.manifold = manifold

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        a = self.coefficients(t, x, context)
        axis = x.dim() - self.manifold.ndim
        batch, event = x.shape[:axis], x.shape[axis:]
        dim = self.manifold.dim(event)
        if a.shape != (*batch, dim):
            raise ShapeError(
                f"FrameField: one coefficient is needed for each of {dim} dimensions, "
                f"{(*batch, dim)} in all, got {tuple(a.shape)}"
            )
        frame = self.manifold.frame(x)
        if frame is None:
            basis = torch.eye(dim, dtype=x.dtype, device=x.device).reshape(dim, *event)
            vectors = basis.expand(*batch, *basis.shape)
        else:
            vectors = frame[0]
        if not self.manifold.orthonormal_frame:
            a = torch.linalg.solve_triangular(self._lower(x, vectors).mT, a[..., None], upper=True)
        return (a.reshape(*batch, dim, *(1,) * len(event)) * vectors).sum(axis)

    def _lower(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return the Cholesky factor of the metric in the frame, `(*batch, dim, dim)`."""
        axis = x.dim() - self.manifold.ndim
        one, other = vectors.unsqueeze(axis + 1), vectors.unsqueeze(axis)
        point = x.unsqueeze(axis).unsqueeze(axis)
        return torch.linalg.cholesky(self.manifold.inner(point, one, other))
