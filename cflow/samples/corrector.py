"""Predictor and corrector: after each step, let the points settle in the law of their time.

    x <- x + e score + sqrt(2 e) z,    e = 2 (snr sigma)^2,    score = -x0 / sigma,    z ~ N(0, 1)

is a step of Langevin dynamics, which leaves p_t as it is up to order e, so that it takes away
errors that earlier steps have made. In the ends of the path it reads

    x <- alpha x1 + sigma ((1 - 2 snr^2) x0 + 2 snr z).

Song et al. choose e = 2 (snr |z| / |score|)^2 by norms over the batch; here stands what these norms
are on average over noise, sqrt(d) and sqrt(d) / sigma, so no sample depends on its batch mates.
Source: Song et al. (2021), arXiv 2011.13456, algorithm 4 and appendix G.
"""

from dataclasses import dataclass

from cflow.errors import DomainError
from cflow.samples.options import expect_amount, expect_count
from cflow.samples.sampler import Moment, PathSampler, Plan, Walk, mixed
from cflow.typing import Points

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True)
class PredictorCorrector(PathSampler):
    """Follow every step of a sampler by Langevin steps at the time it has come to.

    Each correction costs one evaluation; at a time without noise there is none.

    Attributes:
        sampler: The predictor.
        corrections: Langevin steps after each of its steps, 0 or more.
        snr: Ratio r of the change by the score to the noise, in [0, 1). On a normal law of variance
            V a correction by itself settles at variance V / (1 - r^2 sigma^2 / V).
        temperature: Factor of the corrector's noise.

    Raises:
        DomainError: An option is out of its range.

    References:
        Song et al. (2021), arXiv 2011.13456, algorithms 4 and 5.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> from cflow.samples import CurvedEuler
        >>> sampler = PredictorCorrector(CurvedEuler(4), corrections=2)
        >>> sampler.sample(MLPField(2), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    sampler: PathSampler
    corrections: int = 1
    snr: float = 0.16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        expect_count("PredictorCorrector", least=0, corrections=self.corrections)
        if not 0 <= self.snr < 1:
            raise DomainError(
                f"PredictorCorrector: snr must lie in [0, 1), got {self.snr!r}; Langevin steps are "
                "unstable from 1 on"
            )
        expect_amount("PredictorCorrector", temperature=self.temperature)

    def plan(self, start: float, end: float) -> Plan:
        return self.sampler.plan(start, end)

    @property
    def random(self) -> bool:
        return self.sampler.random or (self.corrections > 0 and self.snr > 0)

    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        x = self.sampler.step(walk, now, then, x)
        if then.sigma == 0 or self.snr == 0:
            return x
        kept, fresh = 1 - 2 * self.snr**2, 2 * self.snr * self.temperature
        for _ in range(self.corrections):
            x = mixed(walk.ends(then, x), then, kept, fresh, walk.noise(x))
        return x
