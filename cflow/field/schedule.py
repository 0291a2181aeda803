"""Schedules: how a point of an affine path is mixed from its two ends.

    x_t = alpha(t) x1 + sigma(t) x0,    alpha / sigma rises from the base, t = 0, to the data, t = 1

All coefficients are finite on the whole of [0, 1]. Where a derivative truly diverges (that of sigma
at the data end of a variance-preserving schedule) it is held at its value `MARGIN` before that end.
Source: Lipman et al. (2024), Flow matching guide and code, arXiv 2412.06264, section 4.8; Song et
al. (2021), Score-based generative modeling through SDEs, arXiv 2011.13456, appendix C.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.typing import Times

__all__ = [
    "Coefficients",
    "CosineSchedule",
    "FunctionSchedule",
    "LinearSchedule",
    "LinearVPSchedule",
    "LipmanSchedule",
    "PathSchedule",
    "PolynomialSchedule",
    "VPSchedule",
    "moving",
]

MARGIN = 1e-4  # of time, before an end at which a derivative diverges
STEEP = 50.0  # log ratios beyond this are those of the ends themselves


class Coefficients(NamedTuple):
    """Hold alpha, sigma and their derivatives in time, each of the shape of the times."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def wronskian(self) -> Tensor:
        """Alpha' sigma - alpha sigma', positive: how fast the ratio of the two rises."""
        return self.d_alpha * self.sigma - self.alpha * self.d_sigma

    def over(self, x: Tensor) -> "Coefficients":
        """Append axes, so that each coefficient broadcasts against points `(*batch, *event)`."""
        return Coefficients(*(c.reshape(c.shape + (1,) * (x.dim() - c.dim())) for c in self))


class PathSchedule(ABC):
    """Give the coefficients of an affine path; concrete schedules are frozen dataclasses."""

    @abstractmethod
    def __call__(self, t: Times) -> Coefficients:
        """Return alpha, sigma and their derivatives at times in [0, 1]; finite at both ends."""

    @abstractmethod
    def time(self, log_ratio: Tensor) -> Times:
        """Return the time at which log(alpha / sigma) has a value.

        Args:
            log_ratio: Any numbers, infinite ones included; values that the schedule never takes
                give the nearer end.

        Returns:
            Times in [0, 1], of the same shape.
        """


@dataclass(frozen=True)
class LinearSchedule(PathSchedule):
    """alpha = t, sigma = 1 - t: straight lines at constant speed.

    References:
        Lipman et al. (2023), arXiv 2210.02747; Liu et al. (2023), arXiv 2209.03003.

    Example:
        >>> LinearSchedule()(torch.tensor([0.25])).sigma
        tensor([0.7500])
    """

    def __call__(self, t: Times) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def time(self, log_ratio: Tensor) -> Times:
        return torch.sigmoid(log_ratio)


@dataclass(frozen=True)
class PolynomialSchedule(PathSchedule):
    """alpha = t^n, sigma = 1 - t^n: straight lines, slow at the base.

    Attributes:
        power: The n, at least 1.

    Example:
        >>> PolynomialSchedule(2.0)(torch.tensor([0.5])).alpha
        tensor([0.2500])
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.power < math.inf:
            raise DomainError(
                f"PolynomialSchedule: power must be at least 1 and finite, got {self.power}; below "
                "1 the speed at t = 0 is infinite"
            )

    def __call__(self, t: Times) -> Coefficients:
        alpha, slope = t**self.power, self.power * t ** (self.power - 1)
        return Coefficients(alpha, 1 - alpha, slope, -slope)

    def time(self, log_ratio: Tensor) -> Times:
        return torch.sigmoid(log_ratio) ** (1 / self.power)


@dataclass(frozen=True)
class CosineSchedule(PathSchedule):
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): variance preserving, at constant angular speed.

    References:
        Albergo and Vanden-Eijnden (2023), Building normalizing flows with stochastic interpolants,
        arXiv 2209.15571, equation 5.

    Example:
        >>> CosineSchedule()(torch.tensor([1.0])).alpha
        tensor([1.])
    """

    def __call__(self, t: Times) -> Coefficients:
        half = math.pi / 2
        alpha, sigma = (half * t).sin(), (half * (1 - t)).sin()  # sigma is 0 at t = 1 exactly
        return Coefficients(alpha, sigma, half * sigma, -half * alpha)

    def time(self, log_ratio: Tensor) -> Times:
        return torch.atan(log_ratio.clamp(-STEEP, STEEP).exp()) * (2 / math.pi)


@dataclass(frozen=True)
class VPSchedule(PathSchedule):
    """The variance-preserving diffusion with a linear noise rate, run from noise to data.

        log alpha = -(1-t)^2 (beta_max - beta_min) / 4 - (1-t) beta_min / 2,  sigma^2 = 1 - alpha^2

    At t = 0 a share alpha(0) of the data is left (0.0066 at the defaults), as in the diffusion.

    Attributes:
        beta_min: Noise rate at the data, positive.
        beta_max: Noise rate at the base.

    References:
        Song et al. (2021), arXiv 2011.13456, appendix C.

    Example:
        >>> c = VPSchedule()(torch.tensor([0.5]))
        >>> round((c.alpha.square() + c.sigma.square()).item(), 6)
        1.0
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        expect_positive("VPSchedule", beta_min=self.beta_min, beta_max=self.beta_max)
        if self.beta_max < self.beta_min:
            raise DomainError(
                f"VPSchedule: beta_max must be at least beta_min={self.beta_min}, "
                f"got {self.beta_max}"
            )

    def __call__(self, t: Times) -> Coefficients:
        alpha, sigma, d_alpha = self._alpha(t)
        _, floor, _ = self._alpha(torch.full_like(t, 1 - MARGIN))
        return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma.maximum(floor))

    def time(self, log_ratio: Tensor) -> Times:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * log_ratio.clamp(-STEEP, STEEP))
        b, rise = self.beta_min / 2, self.beta_max - self.beta_min
        left = -2 * log_alpha / (b + (b * b - rise * log_alpha).sqrt())
        return 1 - left.clamp(0, 1)

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, rise = 1 - t, self.beta_max - self.beta_min
        log_alpha = -0.25 * rise * left.square() - 0.5 * self.beta_min * left
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()
        return alpha, sigma, alpha * (0.5 * rise * left + 0.5 * self.beta_min)


@dataclass(frozen=True)
class LinearVPSchedule(PathSchedule):
    """alpha = t, sigma = sqrt(1 - t^2): variance preserving, the data's share growing evenly.

    Example:
        >>> LinearVPSchedule()(torch.tensor([0.6])).sigma
        tensor([0.8000])
    """

    def __call__(self, t: Times) -> Coefficients:
        sigma = ((1 - t) * (1 + t)).sqrt()
        floor = math.sqrt(MARGIN * (2 - MARGIN))
        return Coefficients(t, sigma, torch.ones_like(t), -t / sigma.clamp_min(floor))

    def time(self, log_ratio: Tensor) -> Times:
        return torch.sigmoid(2 * log_ratio).sqrt()


@dataclass(frozen=True)
class LipmanSchedule(PathSchedule):
    """alpha = t, sigma = 1 - (1 - sigma_min) t: the path ends in noise of scale sigma_min.

    Attributes:
        sigma_min: Standard deviation of the noise left at t = 1, in [0, 1), in units of the base.

    References:
        Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747, equation 20.

    Example:
        >>> LipmanSchedule(0.1)(torch.ones(1)).sigma
        tensor([0.1000])
    """

    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise DomainError(f"LipmanSchedule: sigma_min must be in [0, 1), got {self.sigma_min}")

    def __call__(self, t: Times) -> Coefficients:
        one = torch.ones_like(t)
        keep = 1 - self.sigma_min
        return Coefficients(t, (1 - t) + self.sigma_min * t, one, -keep * one)

    def time(self, log_ratio: Tensor) -> Times:
        inverse = (-log_ratio.clamp(-STEEP, STEEP)).exp()
        return (1 / (inverse + 1 - self.sigma_min)).clamp_max(1.0)


@dataclass(frozen=True)
class FunctionSchedule(PathSchedule):
    """A schedule of one's own: two functions of time, differentiated automatically.

    Attributes:
        alpha: Elementwise function of a tensor of times; the data's share, 1 at t = 1.
        sigma: Likewise, the base's share. alpha / sigma must rise, and both derivatives be finite.

    Raises:
        DomainError: A coefficient or derivative is not finite on [0, 1], or the ratio falls.

    Example:
        >>> schedule = FunctionSchedule(lambda t: t * (2 - t), lambda t: (1 - t) ** 2)
        >>> schedule(torch.tensor([0.5])).d_alpha
        tensor([1.])
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        c = self(torch.linspace(0, 1, 101, dtype=torch.float64))
        if not all(bool(torch.isfinite(part).all()) for part in c):
            raise DomainError(
                "FunctionSchedule: alpha, sigma and their derivatives must be finite on [0, 1]; "
                "stay a small margin away from an end at which one diverges"
            )
        if not bool((c.wronskian[1:-1] > 0).all()):
            raise DomainError(
                "FunctionSchedule: alpha / sigma must rise with time everywhere in (0, 1); t = 0 "
                "is the base, t = 1 the data"
            )

    def __call__(self, t: Times) -> Coefficients:
        one = torch.ones_like(t)
        alpha = torch.func.jvp(self.alpha, (t,), (one,))
        sigma = torch.func.jvp(self.sigma, (t,), (one,))
        return Coefficients(alpha[0], sigma[0], alpha[1], sigma[1])

    def time(self, log_ratio: Tensor) -> Times:
        low, high = torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
        ratio = log_ratio.clamp(-STEEP, STEEP).exp()
        for _ in range(54):  # halvings until float64 is exhausted
            middle = 0.5 * (low + high)
            above = self.alpha(middle) > ratio * self.sigma(middle)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)


def moving(schedule: PathSchedule, t: Times) -> Times:
    """Return the times, a margin further in where the path stands still at an end.

    There (t^n at t = 0) velocity and Wronskian vanish together, and only their ratio is of use.
    """
    return torch.where(schedule(t).wronskian > 0, t, t.clamp(MARGIN, 1 - MARGIN))
