"""Time laws: at which times of the path a field is trained.

    t = Q(u),  u ~ U[0, 1],        log p(t) = -log Q'(u)

A law is its quantile function Q, rising from the base, t = 0, to the data, t = 1. The sources below
count time the other way, t = 1 being noise; their laws are turned round here.
Source: Esser et al. (2024), Scaling rectified flow transformers for high-resolution image
synthesis, arXiv 2403.03206, section 3.1; Karras et al. (2022), Elucidating the design space of
diffusion-based generative models, arXiv 2206.00364, table 1.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, expect_positive
from cflow.field import LinearSchedule, PathSchedule
from cflow.typing import Times

__all__ = [
    "CosineMapTimes",
    "LogNormalSigmaTimes",
    "LogitNormalTimes",
    "ModeTimes",
    "QuantileLaw",
    "Stratified",
    "TimeLaw",
    "UniformTimes",
]


class TimeLaw(ABC):
    """A law of times in [0, 1]; concrete ones are frozen dataclasses."""

    @abstractmethod
    def sample(self, n: int, *, like: Tensor, generator: Generator | None = None) -> Times:
        """Draw times.

        Args:
            n: How many.
            like: A tensor whose dtype and device they take.
            generator: Source of the randomness.

        Returns:
            Times `(n,)`.
        """

    @abstractmethod
    def log_density(self, t: Times) -> Tensor:
        """Return log p(t) in nats, of the shape of t; minus infinity where the law has no mass."""


class QuantileLaw(TimeLaw):
    """A law of times given by its quantile function; draws are independent."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Times:
        """Return the times below which the shares u in [0, 1] of the law lie, rising with u."""

    def sample(self, n: int, *, like: Tensor, generator: Generator | None = None) -> Times:
        return self.quantile(_uniform(n, like, generator))


@dataclass(frozen=True)
class UniformTimes(QuantileLaw):
    """All times between two bounds alike.

    Attributes:
        low: Earliest time; above 0 it cuts off an end at which a target is singular.
        high: Latest time, likewise.

    Raises:
        DomainError: The bounds are not in order, or outside [0, 1].

    Example:
        >>> UniformTimes(0.5, 1.0).quantile(torch.tensor([0.5]))
        tensor([0.7500])
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise DomainError(
                f"UniformTimes: needs 0 <= low < high <= 1, got low={self.low}, high={self.high}"
            )

    def quantile(self, u: Tensor) -> Times:
        if self.low == 0 and self.high == 1:
            return u
        return (self.low + (self.high - self.low) * u).clamp(self.low, self.high)

    def log_density(self, t: Times) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -torch.inf).to(t.dtype)


@dataclass(frozen=True)
class LogitNormalTimes(QuantileLaw):
    """Let logit(t) be normal: the middle of the path often, its ends hardly ever.

    Attributes:
        mean: Mean of log(t / (1 - t)); above 0 nearer to the data. The m of the source is -mean.
        std: Standard deviation of log(t / (1 - t)).

    Raises:
        DomainError: The mean is not finite or the deviation not positive.

    References:
        Esser et al. (2024), arXiv 2403.03206, equation 19.

    Example:
        >>> LogitNormalTimes().quantile(torch.tensor([0.5]))
        tensor([0.5000])
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _expect_normal("LogitNormalTimes", self.mean, self.std)

    def quantile(self, u: Tensor) -> Times:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def log_density(self, t: Times) -> Tensor:
        return _finite(_log_normal(torch.logit(t), self.mean, self.std) - (t * (1 - t)).log())


@dataclass(frozen=True)
class ModeTimes(QuantileLaw):
    """Favour the middle of the path by a scale, without neglecting the ends.

        Q(u) = u + scale (cos^2(pi u / 2) - 1 + u)

    Attributes:
        scale: In [-1, 2 / (pi - 2)]: above 0 the middle, below 0 the ends; 0 is uniform.

    Raises:
        DomainError: The scale lies outside its range.

    References:
        Esser et al. (2024), arXiv 2403.03206, equation 20; 1.29 served best there.

    Example:
        >>> ModeTimes(1.29).quantile(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise DomainError(
                f"ModeTimes: scale must lie in [-1, 2 / (pi - 2) = 1.752], got {self.scale}"
            )

    def quantile(self, u: Tensor) -> Times:
        bend = (0.5 * math.pi * u).cos().square() - 1 + u
        return (u + self.scale * bend).clamp(0, 1)

    def log_density(self, t: Times) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(54):  # halvings until float64 is exhausted
            u = 0.5 * (low + high)
            above = self.quantile(u) > t
            low, high = torch.where(above, low, u), torch.where(above, u, high)
        slope = 1 + self.scale * (1 - 0.5 * math.pi * (math.pi * low).sin())
        return torch.where((t >= 0) & (t <= 1), -slope.log(), -torch.inf)


@dataclass(frozen=True)
class CosineMapTimes(QuantileLaw):
    """Spend along a straight path the time at each noise level that a cosine schedule spends there.

        Q(u) = tan(pi u / 2) / (1 + tan(pi u / 2)),    p(t) = 2 / (pi (1 - 2 t + 2 t^2))

    References:
        Esser et al. (2024), arXiv 2403.03206, equation 21; the same either way round.

    Example:
        >>> CosineMapTimes().quantile(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.5000])
    """

    def quantile(self, u: Tensor) -> Times:
        angle = 0.5 * math.pi * u
        sin, cos = angle.sin(), angle.cos().clamp_min(0)
        return sin / (sin + cos)

    def log_density(self, t: Times) -> Tensor:
        inside = math.log(2 / math.pi) - (1 - 2 * t + 2 * t.square()).log()
        return torch.where((t >= 0) & (t <= 1), inside, -torch.inf)


@dataclass(frozen=True)
class LogNormalSigmaTimes(QuantileLaw):
    """Let the logarithm of the noise level sigma / alpha be normal, on any schedule.

    A schedule that never reaches some levels (the noisiest ones, on a variance-preserving one) puts
    their mass on its nearer end; the density given is that of the times between.

    Attributes:
        mean: Mean of log(sigma / alpha); the noise is in units of the base, the data in units of
            standard deviations.
        std: Its standard deviation.
        schedule: The path's coefficients.

    Raises:
        DomainError: The mean is not finite or the deviation not positive.

    References:
        Karras et al. (2022), arXiv 2206.00364, table 1, whose data has standard deviation 0.5: for
        data scaled to 1 its mean of -1.2 is -1.2 + log 2 here.

    Example:
        >>> LogNormalSigmaTimes(0.0, 1.0).quantile(torch.tensor([0.5]))
        tensor([0.5000])
    """

    mean: float = -1.2
    std: float = 1.2
    schedule: PathSchedule = field(default_factory=LinearSchedule)

    def __post_init__(self) -> None:
        _expect_normal("LogNormalSigmaTimes", self.mean, self.std)

    def quantile(self, u: Tensor) -> Times:
        return self.schedule.time(self.std * torch.special.ndtri(u) - self.mean)

    def log_density(self, t: Times) -> Tensor:
        c = self.schedule(t)
        log_ratio = (c.alpha / c.sigma).log()
        rate = c.wronskian / (c.alpha * c.sigma)
        return _finite(_log_normal(log_ratio, -self.mean, self.std) + rate.log())


@dataclass(frozen=True)
class Stratified(TimeLaw):
    """Draw one time from each of n equal shares of a law, in random order.

    Each time by itself follows the law; together they cover it, which lowers the variance of a
    batch's loss.

    Attributes:
        law: The law that is stratified.

    References:
        Kingma et al. (2021), Variational diffusion models, arXiv 2107.00630, appendix I.1.

    Example:
        >>> t = Stratified(UniformTimes()).sample(4, like=torch.zeros(1))
        >>> (4 * t.sort()[0]).floor()
        tensor([0., 1., 2., 3.])
    """

    law: QuantileLaw = field(default_factory=UniformTimes)

    def sample(self, n: int, *, like: Tensor, generator: Generator | None = None) -> Times:
        order = torch.randperm(n, device=like.device, generator=generator)
        u = (order + _uniform(n, like, generator)) / n
        return self.law.quantile(u.clamp_max(1))

    def log_density(self, t: Times) -> Tensor:
        return self.law.log_density(t)


def _uniform(n: int, like: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(n, dtype=like.dtype, device=like.device, generator=generator)


def _log_normal(z: Tensor, mean: float, std: float) -> Tensor:
    return -0.5 * ((z - mean) / std).square() - math.log(std * math.sqrt(2 * math.pi))


def _finite(log_density: Tensor) -> Tensor:
    """Give the ends of time, where a term of each sign is infinite, and what lies outside -inf."""
    return torch.where(torch.isfinite(log_density), log_density, -torch.inf)


def _expect_normal(where: str, mean: float, std: float) -> None:
    if not math.isfinite(mean):
        raise DomainError(f"{where}: mean must be finite, got {mean}")
    expect_positive(where, std=std)
