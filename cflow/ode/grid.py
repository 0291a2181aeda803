"""Time grids for a fixed number of steps: where between the earlier and the later end steps fall.

A grid gives rising shares s_0 = 0 < ... < s_n = 1 of the way from the earlier time to the later, so
a backward run visits the same times in the other order.
Source: Karras et al. (2022), Elucidating the design space of diffusion-based generative models,
arXiv 2206.00364, equation 5.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from cflow.errors import DomainError, expect_positive

__all__ = ["CosineGrid", "EDMGrid", "Grid", "TimeGrid", "UniformGrid"]


@dataclass(frozen=True)
class Grid(ABC):
    """Place the times of a fixed-step solve."""

    @abstractmethod
    def shares(self, steps: int, low: float, high: float) -> list[float]:
        """Return rising shares of the way from `low` to `high`, the first 0 and the last 1.

        Args:
            steps: Number of steps.
            low: Earlier end of the solve (0 where it differs by sample).
            high: Later end (1 where it differs by sample).
        """


@dataclass(frozen=True)
class UniformGrid(Grid):
    """Equal steps, s_k = k / n.

    Example:
        >>> UniformGrid().shares(4, 0.0, 1.0)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def shares(self, steps: int, low: float, high: float) -> list[float]:
        return [k / steps for k in range(steps + 1)]


@dataclass(frozen=True)
class CosineGrid(Grid):
    """Steps that are short at both ends, s_k = (1 - cos(pi k / n)) / 2.

    Example:
        >>> [round(s, 3) for s in CosineGrid().shares(4, 0.0, 1.0)]
        [0.0, 0.146, 0.5, 0.854, 1.0]
    """

    def shares(self, steps: int, low: float, high: float) -> list[float]:
        return [0.5 * (1 - math.cos(math.pi * k / steps)) for k in range(steps)] + [1.0]


@dataclass(frozen=True)
class EDMGrid(Grid):
    """The noise levels of Karras et al. as times of the linear path, s = 1 / (1 + sigma).

    sigma_k = (max^(1/rho) + k/(n-1) (min^(1/rho) - max^(1/rho)))^rho for k = 1..n-1; the ends are 0
    and 1. Steps are short where a path of Gaussian noise meets the data.

    Attributes:
        sigma_min: Smallest noise level, in units of the data's spread.
        sigma_max: Largest noise level.
        rho: How strongly steps gather at small noise.

    Example:
        >>> [round(s, 3) for s in EDMGrid().shares(4, 0.0, 1.0)]
        [0.0, 0.093, 0.68, 0.998, 1.0]
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        expect_positive("EDMGrid", sigma_min=self.sigma_min, rho=self.rho)
        if not self.sigma_min < self.sigma_max < math.inf:
            raise DomainError(
                f"EDMGrid: sigma_max must be finite and above sigma_min={self.sigma_min}, got "
                f"{self.sigma_max}"
            )

    def shares(self, steps: int, low: float, high: float) -> list[float]:
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        levels = [
            (top + k / max(1, steps - 1) * (bottom - top)) ** self.rho for k in range(1, steps)
        ]
        return [0.0, *(1 / (1 + sigma) for sigma in levels), 1.0]


@dataclass(frozen=True)
class TimeGrid(Grid):
    """The caller's own times, rising from the earlier end of the solve to the later.

    The number of steps is theirs; a solver's `steps` is then left unused.

    Attributes:
        times: Two times or more, as a sequence or a tensor.

    Example:
        >>> TimeGrid([0.0, 0.1, 1.0]).shares(2, 0.0, 1.0)
        [0.0, 0.1, 1.0]
    """

    times: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        listed = self.times.tolist() if isinstance(self.times, Tensor) else self.times
        times = tuple(float(t) for t in listed)
        if len(times) < 2 or any(not b > a for a, b in pairwise(times)):
            raise DomainError(f"TimeGrid: times must rise and be two or more, got {times}")
        object.__setattr__(self, "times", times)  # frozen, hashable and ready for JSON

    def shares(self, steps: int, low: float, high: float) -> list[float]:
        times = [float(t) for t in self.times]
        span = high - low
        if max(abs(times[0] - low), abs(times[-1] - high)) > 1e-6 * span:
            raise DomainError(
                f"TimeGrid: times must run from {low:g} to {high:g}, the ends of the solve, got "
                f"{times[0]:g} to {times[-1]:g}"
            )
        return [0.0, *((t - low) / span for t in times[1:-1]), 1.0]
