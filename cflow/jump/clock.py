"""Clocks: the time of a jump process counted so that its rates stay finite.

    s(t) from s(0) = 0 to s(1),    rates per unit of time = rates per unit of the clock * s'(t)

A process that ends in data at t = 1 has jumped for certain by then, so its rates in t diverge; in
the clock s of its path, which runs to infinity, they are bounded. All rates of this package are per
unit of the clock, and every step, integral and law is taken in it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.field import LinearSchedule, PathSchedule
from cflow.typing import Times

__all__ = ["Clock", "MixtureClock", "PlainClock"]

LINEAR = LinearSchedule()


class Clock(ABC):
    """Count the time of a jump process; concrete clocks are frozen dataclasses."""

    @abstractmethod
    def __call__(self, t: Times) -> Tensor:
        """Return s(t), which rises from 0 at t = 0; infinite at t = 1 where the path ends there."""

    @abstractmethod
    def speed(self, t: Times) -> Tensor:
        """Return s'(t), the clock's units per unit of time; infinite where s is."""

    @abstractmethod
    def time(self, s: Tensor) -> Times:
        """Return the time t in [0, 1] at which the clock shows s."""

    def between(self, t: float, t_next: float) -> float:
        """Return s(t_next) - s(t), infinite for the last step of a path that ends in data."""
        ends = self(torch.tensor([t, t_next], dtype=torch.float64)).tolist()
        return math.inf if math.isinf(ends[1]) else ends[1] - ends[0]


@dataclass(frozen=True)
class PlainClock(Clock):
    """Count time as it is, s = t: for rates that are finite everywhere.

    Example:
        >>> PlainClock().between(0.25, 0.75)
        0.5
    """

    def __call__(self, t: Times) -> Tensor:
        return t

    def speed(self, t: Times) -> Tensor:
        return torch.ones_like(t)

    def time(self, s: Tensor) -> Times:
        return s


@dataclass(frozen=True)
class MixtureClock(Clock):
    """Count the jumps of a mixture: s = -log(1 - kappa(t)), where kappa is the share of data.

        1 - kappa(t) = (b(t) - b(1)) / (b(0) - b(1)),    b = sigma / (alpha + sigma)

    so that any schedule of an affine path goes from base, kappa = 0, to data, kappa = 1, exactly.

    Attributes:
        schedule: The path's coefficients; with `PolynomialSchedule(n)`, kappa = t^n.

    Example:
        >>> from cflow.field import PolynomialSchedule
        >>> MixtureClock(PolynomialSchedule(2.0)).kappa(torch.tensor([0.5])).tolist()
        [0.25]
    """

    schedule: PathSchedule = LINEAR

    def __call__(self, t: Times) -> Tensor:
        return -self.left(t).log()

    def kappa(self, t: Times) -> Tensor:
        """Return the share of data at times t."""
        return 1 - self.left(t)

    def left(self, t: Times) -> Tensor:
        """Return 1 - kappa, the share of the base, accurate where it is small."""
        b, first, last = self._shares(t)
        return ((b - last) / (first - last)).clamp(0, 1)

    def speed(self, t: Times) -> Tensor:
        c = self.schedule(t)
        b, _, last = self._shares(t)
        return c.wronskian / (c.alpha + c.sigma).square() / (b - last).clamp_min(0)

    def time(self, s: Tensor) -> Times:
        _, first, last = self._shares(s)
        b = last + (-s).exp() * (first - last)
        return self.schedule.time(((1 - b) / b).log())

    def _shares(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the base's share of the coefficients at t, at 0, and at 1."""
        c = self.schedule(t)
        ends = self.schedule(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        first, last = (ends.sigma / (ends.alpha + ends.sigma)).unbind()
        return c.sigma / (c.alpha + c.sigma), first, last
