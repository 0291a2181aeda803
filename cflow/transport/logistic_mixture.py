"""Mixtures of logistic distribution functions, opened to the whole line by a logit.

    y = logit(sum_j w_j sigmoid(z_j)),    z_j = a_j (x - c_j) + c_j + b_j,    w = softmax,  a_j > 0

All in logarithms: the mixture never rounds to 0 or 1, and since a mean of logits' values lies
between the least and the largest z_j, so does y: the map covers the whole line, has straight
asymptotes, and comes with a bracket of its inverse. The fixed centres c_j (from -2 to 2) let all
parameters at zero mean the identity and yet tell the units apart, so that training can.

Source: Ho et al. (2019), Flow++, arXiv 1902.00275, section 3.2.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from cflow.errors import DomainError, expect_positive
from cflow.transport.inverse_root import root
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["LogisticMixtureMap", "Units", "expect_share", "logistic_mixture", "units"]


class Units(NamedTuple):
    """Log-weights, log-slopes and offsets of the units of a mixture, on a last axis."""

    log_weight: Tensor
    log_slope: Tensor
    offset: Tensor

    def inner(self, x: Tensor) -> Tensor:
        """Return z_j of each x."""
        return x[..., None] * self.log_slope.exp() + self.offset

    def around(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest x whose z_j is y: they enclose the inverse."""
        x = (y[..., None] - self.offset) * (-self.log_slope).exp()
        return x.amin(-1), x.amax(-1)


def expect_share(where: str, anchor: float) -> None:
    """Raise `DomainError` unless the anchor's weight lies in (0, 1)."""
    if not 0 < anchor < 1:
        raise DomainError(f"{where}: anchor must lie in (0, 1), got {anchor}")


def units(theta: Tensor, *, log_range: float, anchor: float) -> Units:
    """Read three raw numbers for each unit: weight, slope and offset; then add the anchor.

    Args:
        theta: Raw numbers, `(..., 3 * units)`.
        log_range: Largest |log a_j|.
        anchor: Weight of a fixed unit z = x, which keeps the slope between units that lie far
            apart from vanishing, where no precision could invert it.
    """
    weight, slope, offset = theta.unflatten(-1, (3, theta.shape[-1] // 3)).unbind(-2)
    log_slope = log_range * torch.tanh(slope / log_range)
    count = offset.shape[-1]
    centre = torch.linspace(-2.0, 2.0, count, dtype=theta.dtype, device=theta.device)
    offset = offset - centre * torch.expm1(log_slope)
    log_weight = weight.log_softmax(-1) + math.log1p(-anchor)
    return Units(
        pad(log_weight, (0, 1), value=math.log(anchor)), pad(log_slope, (0, 1)), pad(offset, (0, 1))
    )


def logistic_mixture(x: Tensor, mixture: Units) -> tuple[Tensor, Tensor]:
    """Return the logit of a mixture of logistic distribution functions, and its log-slope."""
    z = mixture.inner(x)
    log_up, log_down = logsigmoid(z), logsigmoid(-z)
    below = torch.logsumexp(mixture.log_weight + log_up, -1)
    above = torch.logsumexp(mixture.log_weight + log_down, -1)
    # dy/dx = sum_j r_j a_j (share of unit j below) (share above), which far out is a_j of one unit.
    log_below = mixture.log_weight + log_up - below[..., None]
    slope = torch.logsumexp(log_below + mixture.log_slope + (log_down - above[..., None]), -1)
    return below - above, slope


@dataclass(frozen=True)
class LogisticMixtureMap(UnivariateMap):
    """Apply a logistic mixture's distribution function, a logit, a scale and a shift.

    The mixture takes three parameters for each unit, the affine map two more, its log-scale bounded
    by `log_range` too. All parameters at zero give the identity. Pull is a search.

    Attributes:
        units: Components of the mixture.
        log_range: Largest |log| of a unit's slope and of the scale, in nats.
        anchor: Weight, in (0, 1), of one more unit that is fixed as the identity: it keeps the
            slope between far units from vanishing.

    Raises:
        DomainError: No unit, or a bound that is not positive.

    Example:
        >>> bend = LogisticMixtureMap(units=2)
        >>> theta = torch.tensor([0.5, 0.0, 1.0, -1.0, 3.0, -3.0, 0.1, 0.2])
        >>> y, slope = bend.push(torch.tensor(0.3), theta)
        >>> bend.pull(y, theta)[0]
        tensor(0.3000)
    """

    units: int = 8
    log_range: float = 3.0
    anchor: float = 0.01

    def __post_init__(self) -> None:
        expect_positive("LogisticMixtureMap", log_range=self.log_range, anchor=self.anchor)
        if self.units < 1:
            raise DomainError(f"LogisticMixtureMap: units must be 1 or more, got {self.units}")
        expect_share("LogisticMixtureMap", self.anchor)

    @property
    def parameters(self) -> int:
        return 3 * self.units + 2

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mixture, log_scale, shift = self._read(theta)
        v, slope = logistic_mixture(x, mixture)
        return v * log_scale.exp() + shift, slope + log_scale

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mixture, log_scale, shift = self._read(theta)
        v = (y - shift) * (-log_scale).exp()
        low, high = mixture.around(v.detach())

        def push(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
            return logistic_mixture(x, units(raw, log_range=self.log_range, anchor=self.anchor))

        x, slope = root("LogisticMixtureMap.pull", push, v, theta[..., :-2], low=low, high=high)
        return x, slope - log_scale

    def _read(self, theta: Tensor) -> tuple[Units, Tensor, Tensor]:
        log_scale = self.log_range * torch.tanh(theta[..., -2] / self.log_range)
        mixture = units(theta[..., :-2], log_range=self.log_range, anchor=self.anchor)
        return mixture, log_scale, theta[..., -1]
