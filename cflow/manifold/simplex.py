"""The probability simplex, with the metric of Fisher and Rao.

    g_p(u, w) = sum_i u_i w_i / p_i,    dist(p, q) = 4 asin(|sqrt p - sqrt q| / 2)

The square root takes it to the part of a sphere where no coordinate is negative: s = sqrt p has
length 1, and distances are twice those of s. It is the only metric, up to scale, that no choice of
sufficient statistics changes.
Source: Amari and Nagaoka (2000), Methods of information geometry, chapter 2; Davis et al. (2024),
Fisher flow matching for generative modeling over discrete data, arXiv 2405.14664.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError
from cflow.manifold.manifold import Compact, Steps, described
from cflow.manifold.radial import asinhc_root, bend_root, cosh_root, sinhc_root
from cflow.typing import Frame

__all__ = ["Simplex"]


class Simplex(Compact):
    """Vectors of n probabilities, with distances of the sphere of radius 2.

    The boundary, where a probability is zero, is at a finite distance. A geodesic that reaches it
    comes back into the simplex, as in a mirror, so `logmap` undoes `expmap` only before. Roots of
    probabilities below the precision of 1 count as that precision, which keeps derivatives finite.

    Args:
        steps: How a solver steps, see `Manifold`.

    References:
        Davis et al. (2024), arXiv 2405.14664.

    Example:
        >>> Simplex().dist(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))  # pi
        tensor(3.1416)
    """

    ndim = 1
    smooth_frame = True

    def __init__(self, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)

    def projx(self, x: Tensor) -> Tensor:
        """Return the positive part, divided by its sum."""
        positive = x.clamp(min=_floor(x))
        return positive / positive.sum(-1, keepdim=True)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return u less its mean; the sum of a tangent vector is zero."""
        return u - u.mean(-1, keepdim=True)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        root = _root(x)
        w = u / (2 * root)
        angle = -(w * w).sum(-1, keepdim=True)  # minus its square: the functions are circular
        return (cosh_root(angle) * root + sinhc_root(angle) * w).square()

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        root = _root(x)
        way = _root(y) - root
        q = 0.25 * (way * way).sum(-1, keepdim=True)  # the square of the sine of half the angle
        w = asinhc_root(-q) * (1 - q).rsqrt() * (way + 2 * q * root)
        return self.proju(x, 2 * root * w)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        apart = torch.linalg.vector_norm(_root(y) - _root(x), dim=-1)
        return 4 * (0.5 * apart).asin()

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (u * w / x.clamp(min=_floor(x))).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        if not x.numel():
            return True, ""
        x = x.detach()
        least, off = float(x.amin()), float((x.sum(-1) - 1).abs().amax())
        on = least >= -atol and off <= atol
        return on, "" if on else (
            f"sums differ from 1 by up to {off:.3g}, and the smallest entry is {least:.3g}"
        )

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 1 or shape[0] < 2:
            raise ShapeError(
                f"Simplex: a point is a vector of 2 probabilities or more, got {tuple(shape)}"
            )
        return shape[0] - 1

    def log_volume(self, shape: Sequence[int]) -> float:
        half = (self.dim(shape) + 1) / 2
        return half * math.log(math.pi) - math.lgamma(half)

    def frame(self, x: Tensor) -> Frame:
        """Return the contrasts of Helmert, the same at each point."""
        n = x.shape[-1]
        k = torch.arange(1, n, dtype=x.dtype, device=x.device)[:, None]
        one = torch.ones(n - 1, n, dtype=x.dtype, device=x.device)
        below = one.tril() - k * (one.tril(1) - one.tril())
        vectors = (below * (k * (k + 1)).rsqrt()).expand(*x.shape[:-1], n - 1, n)
        return vectors, vectors

    def log_volume_element(self, x: Tensor) -> Tensor:
        return -0.5 * x.clamp(min=_floor(x)).log().sum(-1)

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        angle = -0.25 * self.inner(x, u, u)
        return (x.shape[-1] - 2) * sinhc_root(angle).abs().log()

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like((y - x)[..., 0], dtype=torch.bool)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        root, s = _root(x), s[..., None]
        w = u / (2 * root)
        square = -(w * w).sum(-1, keepdim=True)
        cos, sinc = cosh_root(s**2 * square), s * sinhc_root(s**2 * square)
        end = cos * root + sinc * w
        return end.square(), self.proju(x, 2 * end * (square * sinc * root + cos * w))

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        root, end = _root(x), _root(y)
        moves, w = v / (2 * end), u / (2 * root)
        p = -(w * w).sum(-1, keepdim=True)
        grows = 0.5 * (root * moves).sum(-1, keepdim=True)  # of minus the sine squared of logmap
        rate = bend_root(p) * grows * w + (moves - 2 * grows * root) / sinhc_root(p)
        return self.proju(x, 2 * root * rate)

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draw by the law of Dirichlet with all parameters 1/2."""
        self.dim(event_shape)
        full = (*shape, *event_shape)
        e = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return self.projx(e.square() / e.square().sum(-1, keepdim=True))

    def __repr__(self) -> str:
        """Show how solvers step, where it is not by projection."""
        return described(self)


def _floor(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps ** 2


def _root(x: Tensor) -> Tensor:
    return x.clamp(min=_floor(x)).sqrt()
