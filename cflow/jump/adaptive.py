"""Steps as long as few tokens jump in them, chosen on the way from the rates.

    h = -log(1 - p) / U,    U = the mean, or the greatest, of sum_y u(x -> y) over all tokens

in the clock of the rates, so that a token that jumps at the rate U does so with probability p in
each step. With the mean, a share p of all tokens at most jumps in a step, and steps grow as tokens
settle; with the greatest no token has more than p.
Source: Cao, Gillespie and Petzold (2006), Efficient step size selection for the tau-leaping
simulation method, J. Chem. Phys. 124 (the principle).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.jump.euler import finish, moved
from cflow.jump.sampler import JumpSampler, JumpWalk
from cflow.ode import march
from cflow.samples.options import expect_count

__all__ = ["AdaptiveJumps"]


@dataclass(frozen=True)
class AdaptiveJumps(JumpSampler):
    """Take the steps of `EulerJumps`, each so long that a token jumps with a given probability.

    Each step costs one evaluation, and all rows of a batch share it, so that a result depends on
    batch mates.

    Attributes:
        probability: The probability p, in (0, 1).
        over: What p is of: all tokens on `"mean"`, or the token that is `"fastest"`.
        max_steps: Steps that are taken at most; the last of them goes to the end, however far that
            is. Towards data the fastest token never slows down, and this ends the run.

    Raises:
        DomainError: An option is out of range.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior
        >>> base = MaskTokens(6, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> sampler = AdaptiveJumps(0.2)
        >>> x = sampler.sample(NetworkPosterior(uniform, base), base.sample((5,)), base=base)
        >>> bool((x < 4).all())
        True
    """

    probability: float = 0.1
    over: Literal["mean", "fastest"] = "mean"
    max_steps: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise DomainError(
                f"AdaptiveJumps: probability must lie in (0, 1), got {self.probability}"
            )
        if self.over not in ("mean", "fastest"):
            raise DomainError(f"AdaptiveJumps: over must be 'mean' or 'fastest', got {self.over!r}")
        expect_count("AdaptiveJumps", max_steps=self.max_steps)

    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        here = x0, torch.empty(0)  # tokens that the run has come to, and their rates

        def times() -> Iterator[float]:
            nonlocal here
            t, taken = start, 0
            yield t
            while t < walk.end:
                here = here[0], walk.ask(t, here[0])
                taken += 1
                t = walk.end if taken == self.max_steps else self._next(walk, t, here[1])
                yield t

        def step(t: float, t_next: float, x: Tensor) -> Tensor:
            nonlocal here
            bar.update()
            h, u = walk.rates.clock.between(t, t_next), here[1]
            if math.isinf(h):
                x = finish(walk, t, x)
            else:
                jumps = walk.uniform(*x.shape, like=x) < -torch.expm1(-h * u.sum(-1))
                x = moved(walk, x, u, jumps)
            here = x, u
            return x

        return march(step, x0, times())

    def _next(self, walk: JumpWalk, t: float, u: Tensor) -> float:
        """Return the time of the next step, the end if nothing moves before."""
        total = u.sum(-1).double()
        pace = (total.mean() if self.over == "mean" else total.max()).item()
        if pace == 0:
            return walk.end
        clock = walk.rates.clock
        now = clock(torch.tensor(t, dtype=torch.float64))
        then = clock.time(now - math.log1p(-self.probability) / pace).item()
        # a clock that has come to rest in its digits is at its end
        return walk.end if then <= t else min(then, walk.end)
