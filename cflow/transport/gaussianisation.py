"""Gaussianisation of one number: a mixture's distribution function, then the normal quantile.

    y = Phi^-1(sum_j w_j Phi(z_j)),    z_j = a_j (x - c_j) + c_j + b_j,    w = softmax,  a_j > 0

Written with log Phi and its mirror image, whichever tail is the smaller, so that x = 1e4 gives a
finite y; the log-slope needs only ratios h = phi / Phi, which never overflow there:
dy/dx = sum_j r_j a_j h(z_j) / h(y), with r_j the share of unit j in the smaller tail.

Source: Meng et al. (2020), Gaussianization flows, arXiv 2003.01941, section 3.1.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.transport.inverse_root import root
from cflow.transport.logistic_mixture import expect_share, units
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["GaussianisationMap", "log_normal_quantile"]


@dataclass(frozen=True)
class GaussianisationMap(UnivariateMap):
    """Turn a mixture of normal laws into the standard one.

    Three parameters for each unit; all at zero give the identity. Like a logistic mixture the map
    covers the line, between the least and the largest z_j. Pull is a search. Between far and narrow
    units the slope falls as fast as a normal density: parameters of standard deviation 1 come back
    within 1e-4 in float32, those of 5 may leave stretches that only their values of y tell apart.

    Attributes:
        units: Components of the mixture.
        log_range: Largest |log a_j|, in nats.
        anchor: Weight, in (0, 1), of one more unit that is fixed as the identity: it keeps the
            slope between far units from vanishing.

    Raises:
        DomainError: No unit, or a bound that is not positive.

    Example:
        >>> bend = GaussianisationMap(units=2)
        >>> theta = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, -2.0])
        >>> bend.push(torch.tensor([0.0]), theta)[0]
        tensor([0.])
    """

    units: int = 8
    log_range: float = 3.0
    anchor: float = 0.01

    def __post_init__(self) -> None:
        expect_positive("GaussianisationMap", log_range=self.log_range, anchor=self.anchor)
        if self.units < 1:
            raise DomainError(f"GaussianisationMap: units must be 1 or more, got {self.units}")
        expect_share("GaussianisationMap", self.anchor)

    @property
    def parameters(self) -> int:
        return 3 * self.units

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mixture = units(theta, log_range=self.log_range, anchor=self.anchor)
        z = mixture.inner(x)
        below = torch.logsumexp(mixture.log_weight + _log_normal_cdf(z), -1)
        above = torch.logsumexp(mixture.log_weight + _log_normal_cdf(-z), -1)
        upper = above < below
        sign = 1 - 2 * upper.to(x.dtype)  # mirrored where the upper tail is the smaller one
        tail = torch.where(upper, above, below)
        mirrored = log_normal_quantile(tail)
        z = z * sign[..., None]
        share = mixture.log_weight + _log_normal_cdf(z) - tail[..., None]
        slope = torch.logsumexp(share + mixture.log_slope + _log_mills(z), -1)
        return sign * mirrored, slope - _log_mills(mirrored)

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        low, high = units(theta.detach(), log_range=self.log_range, anchor=self.anchor).around(
            y.detach()
        )
        return root("GaussianisationMap.pull", self._push, y, theta, low=low, high=high)


def log_normal_quantile(log_p: Tensor) -> Tensor:
    """Return the t with log Phi(t) = log_p, for log_p down to the smallest float; differentiable.

    Args:
        log_p: Logarithms of probabilities, below zero; accurate up to log(1/2) and a little above.

    Example:
        >>> log_normal_quantile(torch.tensor([-50.0, -1.0]).double()).round(decimals=4)
        tensor([-9.6748, -0.3375], dtype=torch.float64)
    """
    return cast(Tensor, _LogNormalQuantile.apply(log_p))


class _LogNormalQuantile(torch.autograd.Function):
    """A search whose gradient is 1 / h(t): the derivative of log Phi is h = phi / Phi."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        near = torch.special.ndtri(log_p.clamp_min(-10.0).exp())
        far = (-2 * log_p.clamp_max(-3.0) - math.log(2 * math.pi)).clamp_min(0.1)
        t = torch.where(log_p < -10.0, -(far - far.log()).clamp_min(0.1).sqrt(), near)
        for _ in range(3):
            t = t - (_log_cdf(t) - log_p) * (-_log_mills(t)).exp()
        return t

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401
        inputs: tuple[Tensor],
        output: Tensor,
    ) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        (t,) = ctx.saved_tensors
        return grad * (-_log_mills(t)).exp()


def _log_normal_cdf(z: Tensor) -> Tensor:
    return cast(Tensor, _LogNormalCdf.apply(z))


class _LogNormalCdf(torch.autograd.Function):
    """log Phi, with h = phi / Phi for its derivative, which `log_ndtr` loses in far tails."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return _log_cdf(z)

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401
        inputs: tuple[Tensor],
        output: Tensor,
    ) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        (z,) = ctx.saved_tensors
        return grad * _log_mills(z).exp()


def _log_cdf(z: Tensor) -> Tensor:
    """Return log Phi(z); unlike `torch.special.log_ndtr` this has batching rules."""
    low, high = z.clamp_max(0.0), z.clamp_min(0.0)
    below = torch.log(0.5 * torch.special.erfcx(-low * math.sqrt(0.5))) - 0.5 * low * low
    return torch.where(z < 0, below, torch.log1p(-0.5 * torch.erfc(high * math.sqrt(0.5))))


def _log_mills(z: Tensor) -> Tensor:
    """Return log(phi(z) / Phi(z)), which is about log(-z) for z far below zero."""
    low = z.clamp_max(5.0)
    below = 0.5 * math.log(2 / math.pi) - torch.special.erfcx(-low * math.sqrt(0.5)).log()
    high = z.clamp_min(5.0)
    above = -0.5 * high * high - 0.5 * math.log(2 * math.pi)
    return torch.where(
        z < 5.0, below, above - torch.log1p(-0.5 * torch.erfc(high * math.sqrt(0.5)))
    )
