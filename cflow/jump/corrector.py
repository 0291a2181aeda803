"""Predictor and corrector for tokens: after each step, draw some tokens anew at its new time.

    token i is renewed with probability 1 - exp(-strength):
    x1 ~ p(x1_i | x_t),  then  x_t,i ~ p_t(x_i | x1)

which along a mixture is data with probability kappa(t), else noise of the base. Renewing one token
is a step of a Gibbs sampler: with the true posterior it leaves the law p_t as it is, if the tokens
of the base are independent of each other and of the data. Renewing several at once, as each sees
the old values of the others, does so up to the square of the strength. So errors of the steps are
taken away, at the cost of an evaluation for each correction.
`MixtureSteps(refresh=...)` renews tokens within its steps, by the posterior that it has asked
already.
Source: Campbell et al. (2022), arXiv 2205.14987, section 4.4; Gat et al. (2024), arXiv 2407.15595
(corrector iterations).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.jump.draw import Draw
from cflow.jump.rates import Posterior
from cflow.jump.sampler import JumpSampler, JumpWalk, SteppingJumps
from cflow.jump.tokens import expect_independent
from cflow.ode import march
from cflow.samples.options import expect_amount, expect_count

__all__ = ["Corrected"]

DRAW = Draw()


@dataclass(frozen=True)
class Corrected(JumpSampler):
    """Follow every step of a sampler by corrections at the time it has come to.

    At t = 1, where all is data, there is none.

    Attributes:
        sampler: The predictor, for posteriors along any path.
        iterations: Corrections after each of its steps, each an evaluation.
        strength: Each correction renews a share 1 - exp(-strength) of the tokens; a number, or a
            function of the time.
        draw: How ends are drawn: temperature, nucleus, precision.

    Raises:
        DomainError: An option is out of range; on use, the rates are no posterior, or the tokens of
            the base are not independent.

    References:
        Campbell et al. (2022), arXiv 2205.14987, section 4.4.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import MixtureSteps, NetworkPosterior
        >>> base = MaskTokens(6, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> sampler = Corrected(MixtureSteps(8), iterations=2)
        >>> x = sampler.sample(NetworkPosterior(uniform, base), base.sample((5,)), base=base)
        >>> bool((x < 4).all())
        True
    """

    sampler: SteppingJumps
    iterations: int = 1
    strength: float | Callable[[float], float] = 0.1
    draw: Draw = DRAW

    def __post_init__(self) -> None:
        expect_count("Corrected", least=0, iterations=self.iterations)
        if not callable(self.strength):
            expect_amount("Corrected", strength=self.strength)

    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        if not isinstance(walk.rates, Posterior):
            raise DomainError(f"Corrected: needs a posterior, got {type(walk.rates).__name__}")
        expect_independent("Corrected", walk.base)
        times = list(self.sampler.times(start, walk.end))
        bar.reset(total=len(times) - 1)

        def step(t: float, t_next: float, x: Tensor) -> Tensor:
            bar.update()
            x = self.sampler.step(walk, t, t_next, x)
            for _ in range(self.iterations if t_next < 1 else 0):
                x = self._corrected(walk, t_next, x)
            return x

        return march(step, x0, times)

    def _corrected(self, walk: JumpWalk, t: float, x: Tensor) -> Tensor:
        """Renew some tokens at one time."""
        strength = self.strength(t) if callable(self.strength) else self.strength
        renewed = walk.uniform(*x.shape, like=x) < -math.expm1(-strength)
        renewed = renewed if walk.fixed is None else renewed & ~walk.fixed
        movable = walk.movable(x)
        guessed = renewed if movable is None else renewed & movable  # others are their own ends
        x1 = x
        if bool(guessed.any()):
            x1 = x.masked_scatter(guessed, walk.ends(t, x, guessed, self.draw))
        assert walk.rates.path is not None  # of every posterior
        x0 = walk.base.sample(tuple(x.shape[:1]), generator=walk.generator)
        noise = walk.uniform(*x.shape, like=x)
        now = torch.full(x.shape[:1], t, device=x.device)
        return torch.where(renewed, walk.rates.path.sample(x0, x1, now, noise=noise).x, x)
