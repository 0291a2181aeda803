"""Loss weights: how much an error of the velocity counts at each time.

    loss = E w(t) |v(t, x_t) - target|^2

Whatever a network predicts, `matching` turns its error into that of the velocity first (for x1 it
is W^2 / sigma^2 times, for noise W^2 / alpha^2 times the plain one, W = alpha' sigma - alpha
sigma'), so one weight means one thing under every prediction.
Source: Esser et al. (2024), arXiv 2403.03206, section 3.1; Hang et al. (2023), Efficient diffusion
training via min-SNR weighting strategy, arXiv 2303.09556, section 3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.field import LinearSchedule, PathSchedule
from cflow.matching.times import TimeLaw
from cflow.typing import Times

__all__ = ["DensityWeight", "LossWeight", "SNRWeight", "SigmaWeight"]


class LossWeight(ABC):
    """Weigh times; concrete weights are frozen dataclasses, and a plain function does as well."""

    @abstractmethod
    def __call__(self, t: Times) -> Tensor:
        """Return weights, finite and not negative, of the shape of t."""


@dataclass(frozen=True)
class DensityWeight(LossWeight):
    """The density of a time law: uniform times so weighted have the expectation of its own times.

    `DensityWeight(CosineMapTimes())` is the weight "cosmap" of Stable Diffusion 3's trainers,
    `DensityWeight(LogitNormalTimes())` its "logit-normal" as a weight.

    Attributes:
        law: The law.

    References:
        Esser et al. (2024), arXiv 2403.03206, section 3.1.

    Example:
        >>> from cflow.matching import CosineMapTimes
        >>> DensityWeight(CosineMapTimes())(torch.tensor([0.5]))
        tensor([1.2732])
    """

    law: TimeLaw

    def __call__(self, t: Times) -> Tensor:
        return self.law.log_density(t).exp()


@dataclass(frozen=True)
class SigmaWeight(LossWeight):
    """A power of the noise's coefficient, w = max(sigma, floor)^power.

    Attributes:
        power: -2 is the weight "sigma_sqrt" of Stable Diffusion 3's trainers.
        schedule: The path's coefficients.
        floor: Least sigma, in units of the base; bounds the weight at the data.

    Raises:
        DomainError: The power is not finite or the floor not positive.

    Example:
        >>> SigmaWeight(floor=0.1)(torch.tensor([0.5, 1.0]))
        tensor([  4.0000, 100.0000])
    """

    power: float = -2.0
    schedule: PathSchedule = field(default_factory=LinearSchedule)
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise DomainError(f"SigmaWeight: power must be finite, got {self.power}")
        expect_positive("SigmaWeight", floor=self.floor)

    def __call__(self, t: Times) -> Tensor:
        return self.schedule(t).sigma.clamp_min(self.floor) ** self.power


@dataclass(frozen=True)
class SNRWeight(LossWeight):
    """Weigh the squared error of x1 by min(SNR, gamma), SNR = (alpha / sigma)^2.

        w = min(alpha^2, gamma sigma^2) / W^2

    on the velocity's error, finite at both ends. Without a bound it is the plain error of noise.

    Attributes:
        gamma: The bound; infinite for none. The source takes 5.
        schedule: The path's coefficients.

    Raises:
        DomainError: Gamma is not positive.

    References:
        Hang et al. (2023), arXiv 2303.09556, section 3.4.

    Example:
        >>> SNRWeight(gamma=1.0)(torch.tensor([0.25, 0.75]))
        tensor([0.0625, 0.0625])
    """

    gamma: float = 5.0
    schedule: PathSchedule = field(default_factory=LinearSchedule)

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise DomainError(f"SNRWeight: gamma must be positive, got {self.gamma}")

    def __call__(self, t: Times) -> Tensor:
        c = self.schedule(t)
        square = c.alpha.square()
        if math.isfinite(self.gamma):
            square = torch.minimum(square, self.gamma * c.sigma.square())
        # Where the path stands still (t^n at t = 0) square and W vanish, square as a higher power.
        tiny = torch.finfo(t.dtype).tiny
        return square / c.wronskian.square().clamp_min(tiny)
