"""Mass and quantiles of normal laws between two ends, without cancellation in either tail.

    log mass = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b)))
    p(u) = (1 - u) Phi(a) + u Phi(b),    1 - p(u) = (1 - u) Phi(-a) + u Phi(-b)

for standardised ends a < b. The mass of an interval above zero is that of its mirror image, and a
quantile is found from the smaller of p and 1 - p: there log Phi keeps its digits. All of it runs in
float64.
"""

import math

import torch
from torch import Tensor

__all__ = ["normal_between", "normal_log_mass"]

INFINITE = 1e3  # standard deviations that stand for an infinite end: beyond them lies exp(-5e5)
FAR = -300.0  # log tail below which the quantile is found by Newton steps


def normal_log_mass(low: Tensor, high: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log P(low <= x <= high) of normal entries, in float64.

    Example:
        >>> zero = torch.zeros(1)
        >>> normal_log_mass(zero - 1, zero + 1, zero, zero).exp()
        tensor([0.6827], dtype=torch.float64)
        >>> normal_log_mass(zero + 20, zero + torch.inf, zero, zero)
        tensor([-203.9172], dtype=torch.float64)
    """
    a, b = (_standardised(end, mean, log_scale) for end in (low, high))
    mirrored = a + b > 0
    a, b = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    upper = torch.special.log_ndtr(b)
    return upper + (-torch.expm1(torch.special.log_ndtr(a) - upper)).log()


def normal_between(
    low: Tensor, high: Tensor, share: Tensor, mean: Tensor, log_scale: Tensor
) -> Tensor:
    """Return the points of normal entries with a share of the mass of [low, high] below them.

    The quantile is found without a gradient; one Newton step on log Phi at the end carries the
    implicit gradient, dz = d(log p) Phi(z) / phi(z).

    Example:
        >>> zero, half = torch.zeros(1), torch.full((1,), 0.5, dtype=torch.float64)
        >>> normal_between(zero - torch.inf, zero, half, zero, zero)  # the lower quartile
        tensor([-0.6745], dtype=torch.float64)
    """
    a, b = (_standardised(end, mean, log_scale) for end in (low, high))
    log_p, log_q = (_mixed(share, sign * a, sign * b) for sign in (1, -1))
    above = log_q < log_p
    log_tail = torch.where(above, log_q, log_p)
    z = _quantile(log_tail.detach())
    slope = (torch.special.log_ndtr(z) - _log_density(z)).exp()
    z = z + (log_tail - torch.special.log_ndtr(z)) * slope
    return mean.double() + log_scale.double().exp() * torch.where(above, -z, z)


def _standardised(end: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return (end - mean) / scale; an infinite end becomes a far one, with gradients of zero."""
    end, finite = end.double(), torch.isfinite(end)
    z = (torch.where(finite, end, 0.0) - mean.double()) * (-log_scale.double()).exp()
    return torch.where(finite, z, INFINITE * torch.sign(end))


def _mixed(share: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return log((1 - share) Phi(a) + share Phi(b))."""
    low, high = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return torch.logaddexp(low + torch.log1p(-share), high + share.log())


def _log_density(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi))


def _quantile(log_tail: Tensor) -> Tensor:
    """Return z <= 0 with log Phi(z) = log_tail, in far tails by Newton steps."""
    goal = log_tail.clamp_max(FAR)
    z = -(-2 * goal).sqrt()  # a lower bound of z; log Phi is concave, so the steps come from below
    for _ in range(6):
        log_cdf = torch.special.log_ndtr(z)
        z = z + (goal - log_cdf) * (log_cdf - _log_density(z)).exp()
    return torch.where(log_tail < FAR, z, torch.special.ndtri(log_tail.clamp_min(FAR).exp()))
