"""Restarts: noise finished tokens back to an earlier time, and go the rest of the way again.

    x1 from a sampler,  then  rounds times:  x_b ~ p_b(x | x1),  x1 from the sampler, from b to 1

With the true posterior, and a base that is drawn apart from the data, each round leaves the law of
data as it is: p_b(x | x1) takes it to p_b, and the rest of the way takes p_b to it again. What
earlier steps got wrong is drawn anew, given all that is known by then, so that rounds go on
repairing where a finer grid no longer helps.
Source: Xu et al. (2023), Restart sampling for improving generative processes, arXiv 2306.14878
(for ODEs).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.jump.sampler import JumpSampler, JumpWalk
from cflow.samples.options import expect_count

__all__ = ["Restarted"]


@dataclass(frozen=True)
class Restarted(JumpSampler):
    """Run a sampler to data, then several times back to noise of a time and to data again.

    Attributes:
        sampler: Any sampler, which must end at t = 1.
        rounds: How often to go back.
        back: Time b to go back to, in (0, 1); a run that starts later goes back to its start. A
            token is noised with probability 1 - kappa(b) along a mixture.
        again: The sampler from b to 1, `sampler` itself by default; where that takes steps, fewer
            of them do.

    Raises:
        DomainError: An option is out of range; on use, the run ends before t = 1, the rates follow
            no path.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import FirstHitting, NetworkPosterior
        >>> base = MaskTokens(6, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> sampler = Restarted(FirstHitting(order="margin"), rounds=2)
        >>> x = sampler.sample(NetworkPosterior(uniform, base), base.sample((5,)), base=base)
        >>> bool((x < 4).all())
        True
    """

    sampler: JumpSampler
    rounds: int = 3
    back: float = 0.7
    again: JumpSampler | None = None

    def __post_init__(self) -> None:
        expect_count("Restarted", least=0, rounds=self.rounds)
        if not 0 < self.back < 1:
            raise DomainError(f"Restarted: back must lie in (0, 1), got {self.back}")

    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        if walk.end < 1:
            raise DomainError(
                f"Restarted: only data can be noised back, got end={walk.end}; run to end=1, or "
                "take Corrected, which repairs at any time"
            )
        if walk.rates.path is None:
            raise DomainError(
                f"Restarted: needs rates along a path, got {type(walk.rates).__name__} without one"
            )
        back = max(start, self.back)
        x = self.sampler.run(walk, x0, start, bar)
        for _ in range(self.rounds):
            x = (self.again or self.sampler).run(walk, self._noised(walk, x, back), back, bar)
        return x

    def _noised(self, walk: JumpWalk, x1: Tensor, t: float) -> Tensor:
        """Draw tokens of the path to x1 at one time; fixed ones stay."""
        assert walk.rates.path is not None
        x0 = walk.base.sample(tuple(x1.shape[:1]), walk.context, generator=walk.generator)
        times = torch.full(x1.shape[:1], t, device=x1.device)
        noise = walk.uniform(*x1.shape, like=x1)
        x = walk.rates.path.sample(x0, x1, times, noise=noise).x
        return x if walk.fixed is None else torch.where(walk.fixed, x1, x)
