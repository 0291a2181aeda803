"""The unit sphere S^n in R^(n+1), with the metric of the space around it.

    exp_x(u) = cos|u| x + sin|u| u/|u|,    dist(x, y) = 2 atan2(|x - y|, |x + y|)

The arctangent form is exact at zero distance, where arccos(x.y) loses half its digits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, plain
from cflow.manifold.manifold import Compact, Steps, described
from cflow.typing import Frame

__all__ = ["Sphere"]

NEAR = 0.1  # squared lengths below which functions of them are summed as power series
SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)  # sin(r) / r in powers of r^2
BEND = (-1 / 3, 1 / 30, -1 / 840, 1 / 45360, -1 / 3991680)  # (cos(r) - sin(r) / r) / r^2


class Sphere(Compact):
    """Unit vectors; one point is one vector.

    Args:
        steps: How a solver steps, see `Manifold`.

    Example:
        >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> Sphere().dist(north, east)
        tensor(1.5708)
    """

    ndim = 1
    loop = 2 * math.pi
    orthonormal_frame = True

    def __init__(self, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)

    def projx(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - (x * u).sum(-1, keepdim=True) * x

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        return length.cos() * x + torch.sinc(length / torch.pi) * u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the shortest velocity from x to y.

        Raises:
            DomainError: y is the antipode of x, to which every direction is shortest.
        """
        tangent = self.proju(x, y - x)
        length = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
        dist = self.dist(x, y)[..., None]
        if plain() and bool(((length == 0) & (dist > 1)).any()):
            raise DomainError("Sphere.logmap: y is the antipode of x, all directions are shortest")
        tiny = torch.finfo(x.dtype).tiny
        return torch.where(length > 0, dist / length.clamp(min=tiny), 1.0) * tangent

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        apart = torch.linalg.vector_norm(x - y, dim=-1)
        return 2 * torch.atan2(apart, torch.linalg.vector_norm(x + y, dim=-1))

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        x = x.detach()
        off = float((torch.linalg.vector_norm(x, dim=-1) - 1).abs().amax()) if x.numel() else 0.0
        return off <= atol, "" if off <= atol else f"lengths differ from 1 by up to {off:.3g}"

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 1 or shape[0] < 2:
            raise ShapeError(
                f"Sphere: a point is a vector (n + 1,) with n at least 1, got {tuple(shape)}"
            )
        return shape[0] - 1

    def log_volume(self, shape: Sequence[int]) -> float:
        half = (self.dim(shape) + 1) / 2
        return math.log(2.0) + half * math.log(math.pi) - math.lgamma(half)

    def frame(self, x: Tensor) -> Frame:
        """Return the columns but the last of the reflection that takes x to the last axis.

        Below the equator, where that is minus the axis, the first is turned round, so that all
        frames have one orientation.
        """
        side = torch.where(x[..., -1:] < 0, -1.0, 1.0).to(x.dtype)
        w = torch.cat([x[..., :-1], x[..., -1:] + side], -1)
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[:-1]
        scale = 1 + x[..., -1:].abs()  # half the square of the length of w
        vectors = one - (w[..., :-1] / scale)[..., None] * w[..., None, :]
        vectors = torch.cat([side[..., None] * vectors[..., :1, :], vectors[..., 1:, :]], -2)
        return vectors, vectors

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(u, dim=-1)
        return (x.shape[-1] - 2) * torch.sinc(length / torch.pi).abs().log()

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.linalg.vector_norm(x + y, dim=-1) <= atol

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = s[..., None]
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        angle = s * length
        cos, sin = angle.cos(), angle.sin()
        point = cos * x + s * torch.sinc(angle / torch.pi) * u
        return point, cos * u - sin * length * x

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return how fast u changes where y moves with velocity v.

            (v - (v.x) x) / sinc r + (v.x) (cos r - sinc r) / (r sinc r)^2 u,    r = |u|

        It inverts the derivative of the exponential, by r along u and by sin(r) / r across it.
        """
        square = (u * u).sum(-1, keepdim=True)
        near = square < NEAR
        safe = torch.where(near, 1.0, square)
        r = safe.sqrt()
        cos, sinc = torch.where(near, 1.0, r.cos()), r.sin() / r
        sinc = torch.where(near, _series(square, SINC), sinc)
        bend = torch.where(near, _series(square, BEND), (cos - sinc) / safe)
        off = (v * x).sum(-1, keepdim=True)
        return (v - off * x) / sinc + off * bend / (sinc * sinc) * u

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        full = (*shape, *event_shape)
        e = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return self.projx(e)

    def __repr__(self) -> str:
        """Show how solvers step, where it is not by projection."""
        return described(self)


def _series(square: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Sum a power series by Horner's rule; it has every derivative at zero."""
    total = torch.full_like(square, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * square + c
    return total
