"""How much noise a stochastic sampler injects: the g(t) of dx = drift dt + g dW.

Over a step, the expected noise x0 keeps the share

    kept = exp(-1/2 int g(t)^2 / sigma(t)^2 dt)

and the rest, sqrt(1 - kept^2), is fresh. The integral may diverge where sigma vanishes: then all of
the noise there is fresh, and there is none of it.
Source: Song et al. (2021), Score-based generative modeling through SDEs, arXiv 2011.13456, section
4; Albergo et al. (2023), Stochastic interpolants, arXiv 2303.08797, section 2.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.field import PathSchedule
from cflow.samples.options import expect_amount
from cflow.samples.sampler import Moment

__all__ = [
    "ConstantNoise",
    "FunctionNoise",
    "NoiseLevel",
    "ProportionalNoise",
    "ScheduleNoise",
]

NODES = 8  # of the quadrature over one step


class NoiseLevel(ABC):
    """Give the noise of each step; concrete levels are frozen dataclasses."""

    @abstractmethod
    def kept(self, schedule: PathSchedule, now: Moment, then: Moment) -> float:
        """Return the share of the expected noise that a step keeps, in [0, 1]; 1 is no noise."""


@dataclass(frozen=True)
class ScheduleNoise(NoiseLevel):
    """The diffusion of the schedule itself, g^2 = scale^2 2 sigma W / alpha.

    With W = alpha' sigma - alpha sigma'. At scale 1 the SDE is the time reversal of the diffusion
    that takes data to noise along this path; steps of order 1 are then those of DDPM. g is infinite
    at t = 0, where all is noise anyway, and vanishes at t = 1 with sigma.

    Attributes:
        scale: Factor of g, 0 or more.

    References:
        Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, arXiv 2006.11239.

    Example:
        >>> from cflow.field import LinearSchedule
        >>> now, then = Moment(0.2, 0.2, 0.8, 0.2), Moment(0.5, 0.5, 0.5, 0.5)
        >>> ScheduleNoise().kept(LinearSchedule(), now, then)
        0.25
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        expect_amount("ScheduleNoise", scale=self.scale)

    def kept(self, schedule: PathSchedule, now: Moment, then: Moment) -> float:
        early, late = sorted((now, then))
        ratio = early.alpha * late.sigma / (late.alpha * early.sigma)
        return min(1.0, ratio) ** self.scale**2


@dataclass(frozen=True)
class ProportionalNoise(NoiseLevel):
    """Noise in proportion to what is left of it, g = scale sigma(t); vanishes with it.

    Attributes:
        scale: Factor, 0 or more, in units of 1 / sqrt(time).

    Example:
        >>> from cflow.field import LinearSchedule
        >>> now, then = Moment(0.0, 0.0, 1.0, 0.0), Moment(0.5, 0.5, 0.5, 0.5)
        >>> round(ProportionalNoise(2.0).kept(LinearSchedule(), now, then), 4)  # exp(-1)
        0.3679
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        expect_amount("ProportionalNoise", scale=self.scale)

    def kept(self, schedule: PathSchedule, now: Moment, then: Moment) -> float:
        return math.exp(-0.5 * self.scale**2 * abs(then.t - now.t))


@dataclass(frozen=True)
class ConstantNoise(NoiseLevel):
    """The same noise at all times, g = scale, in units of points / sqrt(time).

    Attributes:
        scale: The g, 0 or more.

    Example:
        >>> from cflow.field import LinearSchedule
        >>> now, then = Moment(0.0, 0.0, 1.0, 0.0), Moment(0.5, 0.5, 0.5, 0.5)
        >>> round(ConstantNoise(1.0).kept(LinearSchedule(), now, then), 4)  # exp(-(2 - 1) / 2)
        0.6065
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        expect_amount("ConstantNoise", scale=self.scale)

    def kept(self, schedule: PathSchedule, now: Moment, then: Moment) -> float:
        level = lambda t: torch.full_like(t, self.scale)
        return _integrated("ConstantNoise", level, schedule, now, then)


@dataclass(frozen=True)
class FunctionNoise(NoiseLevel):
    """Noise of one's own, g(t).

    The integral over a step is taken at eight points inside of it, so g may be infinite at 0 or 1.

    Attributes:
        function: Elementwise function of a float64 tensor of times; 0 or more, and finite on (0,
            1).

    Raises:
        DomainError: In a run, where a value is negative or not finite.

    Example:
        >>> from cflow.field import LinearSchedule
        >>> now, then = Moment(0.0, 0.0, 1.0, 0.0), Moment(0.5, 0.5, 0.5, 0.5)
        >>> round(FunctionNoise(lambda t: 2 * (1 - t)).kept(LinearSchedule(), now, then), 4)
        0.3679
    """

    function: Callable[[Tensor], Tensor]

    def kept(self, schedule: PathSchedule, now: Moment, then: Moment) -> float:
        return _integrated("FunctionNoise", self.function, schedule, now, then)


def _integrated(
    where: str,
    level: Callable[[Tensor], Tensor],
    schedule: PathSchedule,
    now: Moment,
    then: Moment,
) -> float:
    """Return exp(-1/2 int g^2 / sigma^2 dt) over a step by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = 0.5 * abs(then.t - now.t)
    t = min(now.t, then.t) + half * (1 + torch.from_numpy(nodes))
    g = level(t)
    if g.shape != t.shape or not bool((torch.isfinite(g) & (g >= 0)).all()):
        raise DomainError(
            f"{where}: the noise level must be elementwise, finite and 0 or more inside of (0, 1), "
            f"got {g.tolist()} at times {t[0].item():.4g} to {t[-1].item():.4g}"
        )
    rate = (g / schedule(t).sigma).square()
    return math.exp(-0.5 * half * float((torch.from_numpy(weights) * rate).sum()))
