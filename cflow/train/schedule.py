"""Learning rate schedules: a factor in [0, 1] for each step, after a linear warm-up.

    cosine: f + (1 - f) (1 + cos(pi s)) / 2,    polynomial: f + (1 - f) (1 - s)^power

with s the share of the steps after the warm-up that has passed and f the final factor.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from cflow.errors import DomainError

__all__ = ["ConstantRate", "CosineDecay", "PolynomialDecay", "Schedule"]


@dataclass(frozen=True)
class Schedule(ABC):
    """Give the factor of the learning rate at a step.

    Attributes:
        warmup: Steps over which the factor rises linearly to 1.
        final: Factor at the last step.
    """

    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.final <= 1:
            raise DomainError(
                f"{type(self).__name__}: warmup must not be negative and final must lie in [0, 1], "
                f"got warmup={self.warmup}, final={self.final}"
            )

    def factor(self, step: int, steps: int, *, passed: float = 0.0) -> float:
        """Return the factor at `step`, counted from 0, of `steps` in all.

        Where a time limit ends the training before its steps do, `passed` is the share of it that
        is over, and decides.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / max(1, steps - self.warmup)
        return self.final + (1 - self.final) * self._decay(min(1.0, max(share, passed)))

    @abstractmethod
    def _decay(self, share: float) -> float:
        """Fall from 1 at share 0 to 0 at share 1."""


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Fall along half a cosine.

    Example:
        >>> CosineDecay(warmup=1).factor(0, 11), round(CosineDecay().factor(5, 10), 3)
        (0.5, 0.5)
    """

    def _decay(self, share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Fall as a power of what remains.

    Attributes:
        power: Exponent; 1 is linear.
    """

    power: float = 1.0

    def _decay(self, share: float) -> float:
        return (1 - share) ** self.power


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """Stay at 1 after the warm-up."""

    def _decay(self, share: float) -> float:
        return 1.0
