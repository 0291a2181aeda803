"""The angle from the mean direction of a von Mises-Fisher law: its normaliser and its draws.

On S^n, in s = log tan(theta / 2), where cos theta = -tanh s and sin theta = sech s, its density is

    g(s) = exp(-k m(s)) sech(s)^n / Z(k),    m(s) = 1 - cos theta = 1 + tanh s

for concentration k. This g is analytic in a strip about the real line and falls off exponentially,
so the trapezoidal rule gives Z to the last digits, for every n and k alike, with all derivatives.
(For n = 1 it is the Bessel function exp(-k) I_0(k), of which many are wanted at once.)

Wood's envelope, which proposes theta, is in s the logarithm of a ratio of two gamma variables,

    s = log(b) / 2 + log(G1 / G2) / 2,    b = n / (2 k + sqrt(4 k^2 + n^2)),    G ~ Gamma(n / 2)

and draws get their gradient implicitly, ds/dk = -(dF/dk) / g with F the distribution function.

Source: Wood (1994), Simulation of the von Mises Fisher distribution, Communications in Statistics
23(1); Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule, SIAM Review
56(3); Figurnov et al. (2018), Implicit reparameterization gradients, arXiv 1805.08498.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError

__all__ = [
    "around",
    "direction",
    "draw_polar",
    "log_concentration",
    "log_mean_decay",
    "turned",
    "unit",
]

BROADEST = math.log(1e8)  # concentrations up to this one have all nodes they need
DIGITS = 40.0  # the nodes end where weights are exp(-40)
TURNS = 200  # rounds of proposals; each point is refused a round with probability 0.4 at most


def log_mean_decay(concentration: Tensor, n: int) -> Tensor:
    """Return log E[exp(-k (1 - cos theta))] over uniform points of S^n, like `concentration`.

    It is the log normaliser of a von Mises-Fisher law against the uniform one; exactly 0 at k = 0.

    Args:
        concentration: Concentrations k at least 0, of any shape.
        n: Dimension of the sphere.

    Example:
        >>> log_mean_decay(torch.tensor([0.0, 2.0]), 2)  # log((1 - exp(-2 k)) / (2 k))
        tensor([ 0.0000, -1.4048])
    """
    k = concentration.double()
    if n == 1:
        return torch.special.i0e(k).log().to(concentration.dtype)
    k = k[..., None]
    log_weight, height = _rule(n, k)
    return torch.logsumexp(log_weight - k * height, -1).to(concentration.dtype)


def draw_polar(concentration: Tensor, n: int, *, generator: Generator | None = None) -> Tensor:
    """Draw s = log tan(theta / 2), one for each concentration, through which gradients flow.

    Args:
        concentration: Concentrations k at least 0, of any shape.
        n: Dimension of the sphere.
        generator: Source of the randomness.

    Example:
        >>> k = torch.full((1000,), 50.0)
        >>> s = draw_polar(k, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((-s.tanh() > 0.7).all())  # cosines of the angles
        True
    """
    with torch.no_grad():
        s = _wood(concentration.flatten(), n, generator).reshape(concentration.shape)
    if concentration.requires_grad and torch.is_grad_enabled():
        k = concentration
        s = s + (k - k.detach()) * _rate(s.double(), k.detach().double(), n).to(s.dtype)
    return s


def around(mean: Tensor, s: Tensor, e: Tensor) -> Tensor:
    """Place points at the angles of s from unit vectors, in the directions of normal noise.

    Args:
        mean: Unit vectors that broadcast to `(*batch, n + 1)`.
        s: log tan(theta / 2), `(*batch,)`.
        e: Standard normal noise `(*batch, n + 1)`.

    Example:
        >>> north, e = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, 5.0])
        >>> around(north, torch.tensor(0.0), e)
        tensor([1., 0., 0.])
    """
    across = e - (e * mean).sum(-1, keepdim=True) * mean
    across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    return -s.tanh()[..., None] * mean + (1 / s.cosh())[..., None] * across


def turned(concentration: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw von Mises angles about zero in radians, one for each concentration.

    Example:
        >>> k = torch.full((1000,), 100.0)
        >>> bool((turned(k, torch.Generator().manual_seed(0)).abs() < 0.6).all())
        True
    """
    angle = 2 * draw_polar(concentration, 1, generator=generator).exp().atan()
    coin = torch.rand(angle.shape, dtype=angle.dtype, device=angle.device, generator=generator)
    return torch.where(coin < 0.5, -angle, angle)


def unit(x: Tensor) -> Tensor:
    """Return vectors at unit length, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def direction(where: str, mean: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Check mean directions of a shape and return them at unit length."""
    if mean.shape != shape:
        raise ShapeError(f"{where}: mean must have shape {shape}, got {tuple(mean.shape)}")
    length = torch.linalg.vector_norm(mean, dim=-1)
    if not bool((torch.isfinite(length) & (length > 0)).all()):
        raise DomainError(f"{where}: mean must be finite and not zero, or it has no direction")
    return unit(mean.detach())


def log_concentration(where: str, value: float | Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Check concentrations and return their logarithms, -inf for 0; in a shape, if one is given."""
    start = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach()
    if not bool((torch.isfinite(start) & (start >= 0)).all()):
        raise DomainError(f"{where}: concentration must be finite and 0 or more, got {value}")
    return start.log() if shape is None else start.log().expand(shape)


def _rule(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return log weights (of sum one) and heights 1 - cos theta at the nodes in s, in float64."""
    step = min(0.12, 0.5 / math.sqrt(n + 1))
    right = DIGITS / n + math.log(2) + 0.5
    left = right + 0.5 * max(BROADEST - math.log(n), 0.0)
    size = math.ceil((left + right) / step)
    s = torch.arange(size, dtype=torch.float64, device=like.device) * step - left
    return (-n * _log_cosh(s)).log_softmax(0), 2 * torch.sigmoid(2 * s)


def _log_cosh(s: Tensor) -> Tensor:
    return s.abs() + torch.log1p(torch.exp(-2 * s.abs())) - math.log(2)


def _wood(k: Tensor, n: int, generator: Generator | None) -> Tensor:
    """Propose until all are accepted; what waits is drawn again."""
    s, waiting = torch.empty_like(k), torch.arange(len(k), device=k.device)
    for _ in range(TURNS):
        if not len(waiting):
            break
        at = k[waiting]
        b = n / (2 * at + (4 * at.square() + n * n).sqrt())
        gamma = torch._standard_gamma(at.new_full((2, len(at)), 0.5 * n), generator=generator)
        first, second = gamma.clamp_min(torch.finfo(k.dtype).tiny).log()
        free, best = 0.5 * (first - second), 0.5 * b.log()
        fresh = free + best
        log_ratio = n * (_log_cosh(free) - _log_cosh(fresh) + _log_cosh(best))
        log_ratio = log_ratio - at * (fresh.tanh() - best.tanh())
        s = s.index_put((waiting,), fresh)
        u = torch.rand(at.shape, dtype=k.dtype, device=k.device, generator=generator)
        waiting = waiting[u.log() > log_ratio]
    return s


def _rate(s: Tensor, k: Tensor, n: int) -> Tensor:
    """Return ds/dk at a fixed share of the law below s.

    -(dF/dk) / g(s) is the integral of (m - E m) g / g(s) from -inf to s. That over the whole line
    is zero, so the nearer tail is integrated, along which g falls.
    """
    log_weight, height = _rule(n, k)
    middle = ((log_weight - k[..., None] * height).softmax(-1) * height).sum(-1)
    position, weight = (torch.as_tensor(a, device=s.device) for a in _gauss_legendre())
    side = torch.where(1 + s.tanh() > middle, 1.0, -1.0)
    length = (20 + 6 * math.sqrt(n)) / n
    there = s[..., None] + side[..., None] * length * position
    log_ratio = n * (_log_cosh(s)[..., None] - _log_cosh(there))
    log_ratio = log_ratio - k[..., None] * (there.tanh() - s.tanh()[..., None])
    excess = 1 + there.tanh() - middle[..., None]
    return -side * length * (weight * excess * log_ratio.exp()).sum(-1)


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(128)
    return 0.5 * (x + 1), 0.5 * w
