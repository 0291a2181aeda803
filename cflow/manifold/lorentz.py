"""Hyperbolic space as one sheet of a hyperboloid in Minkowski space, time first.

    <x, y> = -x_0 y_0 + x_s . y_s,    <x, x> = -k^2,    x_0 > 0,    k = 1/sqrt(-curvature)
    exp_x(u) = cosh(|u|/k) x + k sinh(|u|/k) u/|u|
    dist(x, y) = 2 k asinh(|x - y| / (2 k)),    |x - y|^2 = (x_0 + k)(y_0 + k) |p - q|^2

with p = x_s/(x_0 + k), q likewise. Minkowski products of points far out are small differences of
large numbers; here the time coordinate is always had from the space part, and lengths are taken
from p, which is the point of the Poincare ball, or from components in the frame at x.
Source: Nickel and Kiela (2018), Learning continuous hierarchies in the Lorentz model of hyperbolic
geometry, arXiv 1806.03417; Lee (2018), Introduction to Riemannian manifolds, chapter 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.manifold.manifold import Manifold, Steps, described
from cflow.manifold.radial import asinhc_root, bend_root, cosh_root, log_sinhc_root, sinhc_root
from cflow.typing import Frame

__all__ = ["Lorentz"]


class Lorentz(Manifold):
    """The upper sheet of a hyperboloid, of constant negative curvature.

    A point is a vector (x_0, x_1, ..., x_n) with the time coordinate first. `proju` is orthogonal
    in the sense of Minkowski, which commutes with boosts but lengthens: what it makes of a vector
    of length 1 in the entries grows like x_0^2, so that a network of bounded output may move points
    to infinity in finite time. In a `FrameField` its speed is bounded.

    Args:
        curvature: The sectional curvature, negative.
        steps: How a solver steps, see `Manifold`.

    Raises:
        DomainError: The curvature is not negative and finite.

    References:
        Nickel and Kiela (2018), arXiv 1806.03417.

    Example:
        >>> x = Lorentz().projx(torch.tensor([0.0, 0.75, 0.0]))
        >>> x, Lorentz().to_poincare(x)
        (tensor([1.2500, 0.7500, 0.0000]), tensor([0.3333, 0.0000]))
    """

    ndim = 1
    loop = math.inf
    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, curvature: float = -1.0, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)
        if not -math.inf < curvature < 0:
            raise DomainError(
                f"Lorentz: curvature must be negative and finite, got {curvature!r}; "
                "curvature 0 is Euclidean(), a positive one Sphere()"
            )
        self.curvature = curvature
        self._k = 1 / math.sqrt(-curvature)

    def projx(self, x: Tensor) -> Tensor:
        """Keep the space part, and take the time coordinate from it."""
        return self._point(x[..., 1:])

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Take away the part along x, to which tangent vectors are orthogonal."""
        time, space = u[..., :1], u[..., 1:]
        along = -self.curvature * (_dot(x[..., 1:], space) - x[..., :1] * time)
        return _tangent(x, space + along * x[..., 1:])

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        square = self._square(x, u)
        return self._point(cosh_root(square) * x[..., 1:] + sinhc_root(square) * u[..., 1:])

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        q = self._chord(x, y).square().sum(-1, keepdim=True)
        space = y[..., 1:] - x[..., 1:] - 2 * q * x[..., 1:]
        return _tangent(x, asinhc_root(q) * (1 + q).rsqrt() * space)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * self._k * torch.linalg.vector_norm(self._chord(x, y), dim=-1).asinh()

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (self._components(x, u) * self._components(x, w)).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether time coordinates are what space parts say, in units of themselves."""
        x = x.detach()
        time = self.projx(x)[..., 0]
        off = float((x[..., 0] / time - 1).abs().amax()) if x.numel() else 0.0
        return off <= atol, "" if off <= atol else (
            f"time coordinates (the first) are off by up to {off:.3g} of themselves"
        )

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 1 or shape[0] < 2:
            raise ShapeError(
                f"Lorentz: a point is a vector (n + 1,) with n at least 1, got {tuple(shape)}"
            )
        return shape[0] - 1

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.inf

    def frame(self, x: Tensor) -> Frame:
        """Return what the boost from the origin to x makes of the space axes.

        Their duals have the sign of the time coordinate turned, and annihilate x, which is the
        normal in the sense of Minkowski. The divergence over them is the Riemannian one.
        """
        y, k = x[..., 1:], self._k
        time = y / k
        one = torch.eye(y.shape[-1], dtype=x.dtype, device=x.device)
        space = one + time[..., None] * (y / (x[..., :1] + k))[..., None, :]
        vectors, covectors = (torch.cat([t[..., None], space], -1) for t in (time, -time))
        return vectors, covectors

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return (x.shape[-1] - 2) * log_sinhc_root(self._square(x, u).squeeze(-1))

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like((y - x)[..., 0], dtype=torch.bool)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s, square = s[..., None], self._square(x, u)
        cosh, sinhc = cosh_root(s**2 * square), s * sinhc_root(s**2 * square)
        y, w = x[..., 1:], u[..., 1:]
        point = self._point(cosh * y + sinhc * w)
        return point, _tangent(point, square * sinhc * y + cosh * w)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        p = self._square(x, u)
        stretch = sinhc_root(p)
        back = self.inner(y, self.logmap(y, x), v)[..., None]
        grows = 0.5 * self.curvature * stretch * back  # of sinh(s/2)^2, s the distance over k
        space = bend_root(p) * grows * u[..., 1:] + (v[..., 1:] - 2 * grows * x[..., 1:]) / stretch
        return _tangent(x, space)

    def to_poincare(self, x: Tensor) -> Tensor:
        """Return these points in `PoincareBall` of the same curvature, `(*batch, n)`."""
        return self._k * x[..., 1:] / (x[..., :1] + self._k)

    def from_poincare(self, p: Tensor) -> Tensor:
        """Return points of `PoincareBall` of this curvature here, `(*batch, n + 1)`.

        Args:
            p: Points of the open ball, `(*batch, n)`.
        """
        gap = 1 + self.curvature * _dot(p, p)
        return self._point(2 * p / gap.clamp(min=torch.finfo(p.dtype).eps))

    def _point(self, space: Tensor) -> Tensor:
        return torch.cat([(self._k**2 + _dot(space, space)).sqrt(), space], -1)

    def _chord(self, x: Tensor, y: Tensor) -> Tensor:
        """Return a vector whose length is |x - y| / (2 k) = sinh of half the distance over k."""
        a, b = x[..., :1] + self._k, y[..., :1] + self._k
        return (y[..., 1:] / b - x[..., 1:] / a) * (a * b).sqrt() / (2 * self._k)

    def _components(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the components of a tangent vector in the frame at x, which is orthonormal."""
        y, w = x[..., 1:], u[..., 1:]
        return w - y * _dot(y, w) / (x[..., :1] * (x[..., :1] + self._k))

    def _square(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the square of the length of u in units of k, `(*batch, 1)`."""
        return -self.curvature * self.inner(x, u, u)[..., None]

    def __repr__(self) -> str:
        """Show the curvature, where it is not -1."""
        return described(self, *([] if self.curvature == -1 else [f"{self.curvature:g}"]))


def _dot(u: Tensor, w: Tensor) -> Tensor:
    return (u * w).sum(-1, keepdim=True)


def _tangent(x: Tensor, space: Tensor) -> Tensor:
    """Return the tangent vector at x with this space part."""
    return torch.cat([_dot(x[..., 1:], space) / x[..., :1], space], -1)
