"""Stochastic samplers: fresh noise on the way, and at every time the law of the ODE.

    dx = [v + g^2/2 score] dt + g dW,    score = grad log p_t(x) = -x0 / sigma

has for any g(t) the same marginals p_t as dx = v dt. With x1 frozen over a step it is solved by

    x_next = alpha_next x1 + sigma_next (kept x0 + sqrt(1 - kept^2) e),    e ~ N(0, 1),

    kept = exp(-1/2 int g^2 / sigma^2 dt),

finite at both ends of time. Refreshing part of the noise is this step, and so is going along the
path to a later time o and back by adding noise, with kept = (alpha_next sigma_o) / (alpha_o
sigma_next). The samplers differ in the amount of noise alone, which is one per unit of time, not of
steps: otherwise more steps would mean more noise and no convergence. All assume a standard normal
base that was coupled independently with the data; run backwards, they keep the marginals too.
Source: Song et al. (2021), arXiv 2011.13456, section 4.3; Hu et al. (2024), AMO sampler, arXiv
2411.19415, section 3; Albergo et al. (2023), arXiv 2303.08797, corollary 2.18.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch

from cflow.errors import DomainError
from cflow.samples.noise import NoiseLevel, ScheduleNoise
from cflow.samples.options import expect_amount
from cflow.samples.sampler import Moment, SteppingSampler, Walk, carried
from cflow.typing import Points

__all__ = ["SDE", "NoiseRefresh", "Overshooting", "StochasticSampler"]

OWN = ScheduleNoise()


@dataclass(frozen=True)
class StochasticSampler(SteppingSampler):
    """Refresh noise on the way; what differs is how much.

    Attributes:
        steps: Number of steps, at least 1.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.
        order: 1 for one evaluation a step, with errors of order 1 / steps; 2 for two evaluations
            and errors of order 1 / steps^2 where sigma and the noise are smooth.
        temperature: Factor of the fresh noise; below 1 samples draw nearer to the modes, and the
            marginals are no longer those of the ODE.

    Raises:
        DomainError: An option is out of its range.
    """

    order: Literal[1, 2] = 2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.order not in (1, 2):
            raise DomainError(f"{name}: order must be 1 or 2, got {self.order!r}")
        expect_amount(name, temperature=self.temperature)

    @abstractmethod
    def kept(self, now: Moment, then: Moment) -> float:
        """Return the share of the expected noise that a step keeps, in [0, 1]."""

    @property
    def random(self) -> bool:
        return True

    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        kept = self.kept(now, then)
        fresh = self.temperature * math.sqrt(max(0.0, 1 - kept**2))
        return carried(walk, now, then, x, kept=kept, fresh=fresh, order=self.order)


@dataclass(frozen=True)
class SDE(StochasticSampler):
    """Follow the SDE that has the marginals of the ODE, at a chosen level of noise.

    Without noise it is `CurvedEuler` (order 1) or `CurvedHeun` (order 2).

    Attributes:
        steps: Number of steps, at least 1.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.
        order: 1 or 2 evaluations a step.
        temperature: Factor of the fresh noise.
        noise: The level g(t): `ScheduleNoise()`, `ProportionalNoise(scale)`, `ConstantNoise(scale)`
            or `FunctionNoise(g)`.

    References:
        Song et al. (2021), arXiv 2011.13456, section 4.3 and appendix D.1; Singh and Fischer
        (2024), Stochastic sampling from deterministic flow models, arXiv 2410.02217.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> from cflow.samples import ConstantNoise
        >>> SDE(4, noise=ConstantNoise(0.5)).sample(MLPField(2), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    noise: NoiseLevel = OWN

    def kept(self, now: Moment, then: Moment) -> float:
        return self.noise.kept(self.schedule, now, then)


@dataclass(frozen=True)
class NoiseRefresh(StochasticSampler):
    """Predict both ends, exchange part of the noise for fresh noise, and go on.

        kept^2 = exp(-rate |t_next - t|)

    On average the noise is exchanged `rate` times from t = 0 to 1, in however many steps. It is the
    SDE with g = sqrt(rate) sigma.

    Attributes:
        steps: Number of steps, at least 1.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.
        order: 1 or 2 evaluations a step.
        temperature: Factor of the fresh noise.
        rate: Refreshments per unit of time, 0 or more.

    References:
        Liu et al., the rectified-flow library (2024), which exchanges a fixed share at each step.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> NoiseRefresh(4, rate=2.0).sample(MLPField(2), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_amount("NoiseRefresh", rate=self.rate)

    def kept(self, now: Moment, then: Moment) -> float:
        return math.exp(-0.5 * self.rate * abs(then.t - now.t))


@dataclass(frozen=True)
class Overshooting(StochasticSampler):
    """Go along the path beyond the next time, and back to it by adding noise.

        o = min(1, t_next + strength |t_next - t| (1 - t_next))
        x_next = r x_o + sqrt(sigma_next^2 - (r sigma_o)^2) e,    r = alpha_next / alpha_o

    The second line turns the law at o into the one at t_next on any schedule. In small steps it is
    the SDE with g^2 = 2 strength (1 - t) sigma W / alpha.

    Attributes:
        steps: Number of steps, at least 1.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.
        order: 1 or 2 evaluations a step.
        temperature: Factor of the fresh noise.
        strength: How far beyond, in steps, at t = 0; 0 or more.

    References:
        Hu et al. (2024), AMO sampler: enhancing text rendering with overshooting, arXiv 2411.19415.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> Overshooting(4, strength=2.0).sample(MLPField(2), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_amount("Overshooting", strength=self.strength)

    def kept(self, now: Moment, then: Moment) -> float:
        if then.sigma == 0:
            return 1.0
        far = min(1.0, then.t + self.strength * abs(then.t - now.t) * (1 - then.t))
        c = self.schedule(torch.tensor(far, dtype=torch.float64))
        return min(1.0, then.alpha * c.sigma.item() / (c.alpha.item() * then.sigma))
