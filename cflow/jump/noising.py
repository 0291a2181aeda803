"""The path that turns back a noising: tokens of the base go on being drawn until they are data.

Noising, from data to base, draws a token anew from p_0 at rate -d log kappa, however often; seen
forward from the base, given its end, such a token jumps at rates (per unit of s = -log(1 - kappa))

    u(x -> y | x1) = (1 - kappa) / kappa * p_0(x) p_t(y | x1) / p_t(x | x1),
    p_t(y | x1) = kappa [y = x1] + (1 - kappa) p_0(y).

Every p_t is that of `MixturePath`, so one posterior serves both. But here all ends together make a
Markov process, the noising turned back, and with the true posterior the bound on the likelihood is
the likelihood. Along a mixture path a token that has jumped once is known to be data; the rates
forget it, so that there the bound stays below for every base but masks, where both paths agree.
Source: Campbell et al. (2022), A continuous time framework for discrete denoising models, arXiv
2205.14987, proposition 1; Lou et al. (2024), SEDD, arXiv 2310.16834.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.base import TokenBase
from cflow.errors import DomainError
from cflow.field import LinearSchedule, PathSchedule
from cflow.jump.clock import MixtureClock
from cflow.jump.path import JumpPath, MixturePath, completed, over_tokens
from cflow.jump.tokens import expect_independent
from cflow.matching import PathPoint
from cflow.typing import Data, Times

__all__ = ["NoisingPath"]

LINEAR = LinearSchedule()


@dataclass(frozen=True, eq=False)
class NoisingPath(JumpPath):
    """Draw tokens of the base anew until they are data.

    Attributes:
        start: The base's marginals, broadcasting to `(*event, states)`: `base.marginals()`.
        schedule: Any schedule of an affine path, as for `MixturePath`.

    Example:
        >>> from cflow.base import UniformTokens
        >>> path = NoisingPath.of(UniformTokens(1, 2))
        >>> t, x, end = torch.tensor([0.5]), torch.tensor([[0]]), torch.tensor([[[0.0, 1.0]]])
        >>> path.rates(t, x, end).tolist()  # a mixture path has 1 here
        [[[0.0, 1.5]]]
    """

    start: Tensor
    schedule: PathSchedule = LINEAR

    @classmethod
    def of(cls, base: TokenBase, schedule: PathSchedule = LINEAR) -> "NoisingPath":
        """Return the path from a base, whose tokens must be independent of each other."""
        expect_independent("NoisingPath", base)
        return cls(base.marginals(), schedule)

    @property
    def clock(self) -> MixtureClock:
        return MixtureClock(self.schedule)

    def sample(self, x0: Data, x1: Data, t: Times, *, noise: Tensor) -> PathPoint:
        return MixturePath(self.schedule).sample(x0, x1, t, noise=noise)

    def law(self, t: Times, x1: Data, start: Tensor) -> Tensor:
        return MixturePath(self.schedule).law(t, x1, start)

    def rates(self, t: Times, x: Data, posterior: Tensor) -> Tensor:
        kappa = over_tokens(self.clock.kappa(t), x).to(posterior)
        left = over_tokens(self.clock.left(t), x).to(posterior)
        p0 = self.start.to(posterior).expand(posterior.shape)
        stay, own = (p.gather(-1, x[..., None])[..., 0] for p in (posterior, p0))
        noise = 1 - stay + stay * left * own / (kappa + left * own).clamp_min(TINY)
        again = (left / kappa.clamp_min(TINY) * noise)[..., None] * p0
        return (posterior + again).scatter(-1, x[..., None], 0.0)

    def expect_base(self, base: TokenBase) -> None:
        expect_independent("NoisingPath", base)
        own, theirs = self.start, base.marginals()
        if own.shape[-1] != base.states or not bool(torch.isclose(own, theirs.to(own)).all()):
            raise DomainError(
                "NoisingPath: the path starts from other marginals than the base; build it with "
                "NoisingPath.of(base)"
            )

    def posterior(self, x: Data, rates: Tensor) -> Tensor:
        return completed(x, rates)  # at t = 1 nothing of the base is drawn anew


TINY = 1e-30
"""Keeps the start of time, where tokens of the base are drawn ever faster, out of divisions."""
