"""The Poincare ball: hyperbolic space in a ball whose boundary is infinitely far away.

    g = (2 / a)^2 I,   a(x) = 1 - c |x|^2,   dist(x, y) = 2/sqrt(c) asinh(sqrt q)

with c = -curvature and q = c |x - y|^2 / (a(x) a(y)). The textbook's arcosh(1 + 2 q) loses half the
digits of a short distance, and artanh |-x + y| those of a long one; asinh keeps both.
Source: Ganea, Becigneul and Hofmann (2018), Hyperbolic neural networks, arXiv 1805.09112; Ungar
(2008), A gyrovector space approach to hyperbolic geometry; Lee (2018), Introduction to Riemannian
manifolds, chapter 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.manifold.manifold import Manifold, Steps, described, geodesic_by_jvp
from cflow.manifold.radial import asinhc_root, bend_root, log_sinhc_root, sinhc_root, tanhc_root
from cflow.typing import Frame

__all__ = ["PoincareBall"]

MARGIN = 8.0  # how far from the boundary points are kept, in units of the precision of 1
INWARD = -0.25  # of c <x, u> tanh(s/2)/(s/2): below, the plain form of a denominator cancels


class PoincareBall(Manifold):
    """The open ball of radius 1/sqrt(-curvature), of constant negative curvature.

    Points are kept inside by a relative margin of 8 times the precision of their dtype, so that the
    farthest from the centre is at distance 14.6 in float32 and 34.7 in float64, in units of
    1/sqrt(-curvature). Near there the entries of a point hold few digits of its distance;
    `Lorentz` holds them all.

    Velocities are those of the entries, so a network of bounded output reaches the boundary in
    finite time; times (1 - c |x|^2) / 2, or in a `FrameField`, its speed in the ball is bounded.

    Args:
        curvature: The sectional curvature, negative.
        steps: How a solver steps, see `Manifold`.

    Raises:
        DomainError: The curvature is not negative and finite.

    References:
        Ganea, Becigneul and Hofmann (2018), arXiv 1805.09112; Nickel and Kiela (2017), arXiv
        1705.08039.

    Example:
        >>> PoincareBall().dist(torch.zeros(2), torch.tensor([0.5, 0.0]))  # log 3
        tensor(1.0986)
    """

    ndim = 1
    loop = math.inf
    smooth_frame = True

    def __init__(self, curvature: float = -1.0, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)
        if not -math.inf < curvature < 0:
            raise DomainError(
                f"PoincareBall: curvature must be negative and finite, got {curvature!r}; "
                "curvature 0 is Euclidean(), a positive one Sphere()"
            )
        self.curvature = curvature

    def projx(self, x: Tensor) -> Tensor:
        """Return the points, those on or beyond the margin pulled back to it."""
        limit = 1 - MARGIN * torch.finfo(x.dtype).eps
        square = -self.curvature * _dot(x, x)
        far = square > limit**2
        return torch.where(far, x * (limit * torch.where(far, square, 1.0).rsqrt()), x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        c, gap, shift = -self.curvature, self._gap(x), _dot(x, u)
        q = c * _dot(u, u) / gap**2  # half the length, squared
        w = tanhc_root(q) / gap * u  # x + w, the Moebius sum, is where the geodesic ends
        square = c * _dot(w, w)
        along = c * tanhc_root(q) / gap * shift
        inward = along < INWARD
        x_safe, w_safe = torch.where(inward, x, 1.0), torch.where(inward, w, 1.0)
        r, t = (math.sqrt(c) * torch.linalg.vector_norm(z, dim=-1, keepdim=True)
                for z in (x_safe, w_safe))  # fmt: skip
        # 1 - r t without cancellation, and what remains where x and u are not opposite
        short = 2 / (1 + torch.exp(2 * torch.where(inward, q, 1.0).sqrt())) + t * gap / (1 + r)
        turn = (math.sqrt(c) * (x_safe / r + w_safe / t)).square().sum(-1, keepdim=True)
        plain = 1 + 2 * along + c * _dot(x, x) * square
        denominator = torch.where(inward, short**2 + r * t * turn, plain)
        return self.projx(x + gap * (w + square * x) / denominator)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        c, way = -self.curvature, y - x
        here, there = self._gap(x), self._gap(y)
        square = c * _dot(way, way)
        q = square / (here * there)
        return asinhc_root(q) * (1 + q).rsqrt() * (here * way - square * x) / there

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        root = math.sqrt(-self.curvature)
        apart = torch.linalg.vector_norm(y - x, dim=-1)
        gaps = (self._gap(x) * self._gap(y)).squeeze(-1)
        return 2 / root * torch.asinh(root * apart * gaps.rsqrt())

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return 4 * (u * w).sum(-1) / self._gap(x).squeeze(-1) ** 2

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether all points lie inside; at the boundary no tolerance is small."""
        if not x.numel():
            return True, ""
        far = float(torch.linalg.vector_norm(x.detach(), dim=-1).amax())
        radius = 1 / math.sqrt(-self.curvature)
        return far < radius, "" if far < radius else (
            f"lengths reach {far:.6g} and must stay below {radius:.6g}"
        )

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 1 or shape[0] < 1:
            raise ShapeError(f"PoincareBall: a point is a vector (n,), got {tuple(shape)}")
        return shape[0]

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.inf

    def frame(self, x: Tensor) -> Frame | None:
        return None

    def log_volume_element(self, x: Tensor) -> Tensor:
        return x.shape[-1] * (math.log(2.0) - self._gap(x).squeeze(-1).log())

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        square = -self.curvature * self.inner(x, u, u)
        return (x.shape[-1] - 1) * log_sinhc_root(square)

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like((y - x)[..., 0], dtype=torch.bool)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return geodesic_by_jvp(self, x, u, s)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        c, way = -self.curvature, y - x
        here, there = self._gap(x), self._gap(y)
        square, closing = c * _dot(way, way), 2 * self.curvature * _dot(y, v) / there
        grows = 2 * c * _dot(way, v)
        q = square / (here * there)
        p = c * self.inner(x, u, u)[..., None]
        bend = bend_root(p) * (grows / (here * there) - q * closing) - closing
        return bend * u + (here * v - grows * x) / (there * sinhc_root(p))

    def _gap(self, x: Tensor) -> Tensor:
        """Return 1 - c |x|^2, `(*batch, 1)`, at least what it is at the margin."""
        gap = 1 + self.curvature * _dot(x, x)
        return gap.clamp(min=MARGIN * torch.finfo(x.dtype).eps)

    def __repr__(self) -> str:
        """Show the curvature, where it is not -1."""
        return described(self, *([] if self.curvature == -1 else [f"{self.curvature:g}"]))


def _dot(u: Tensor, w: Tensor) -> Tensor:
    return (u * w).sum(-1, keepdim=True)
