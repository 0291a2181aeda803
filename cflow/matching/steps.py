"""The times of k Euler steps: matching at these alone distils a field to k evaluations.

    push: t in {0, 1/k, ..., (k-1)/k},            pull: t in {1, 1 - 1/k, ..., 1/k}

Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, section 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.matching.times import TimeLaw
from cflow.typing import Times

__all__ = ["StepTimes"]


@dataclass(frozen=True)
class StepTimes(TimeLaw):
    """Draw the time at which one of k equal Euler steps begins, each as often.

    Over pairs that a field has made (`PairedCoupling`, `LinearPath`) the ordinary loss at these
    times is distillation: with one step the field has to say x1 - x0 at x0.

    Attributes:
        steps: Steps k of the sampler that is wanted.
        reverse: Take the steps of a pull, from data to base: fast encoding.

    Raises:
        DomainError: `steps` is not a whole number of at least 1.

    References:
        Liu et al. (2023), arXiv 2209.03003, section 2.

    Example:
        >>> t = StepTimes(4, reverse=True).sample(1000, like=torch.zeros(1))
        >>> t.unique().tolist()
        [0.25, 0.5, 0.75, 1.0]
    """

    steps: int
    reverse: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise DomainError(
                f"StepTimes: steps must be a whole number of at least 1, got {self.steps!r}"
            )

    def sample(self, n: int, *, like: Tensor, generator: Generator | None = None) -> Times:
        index = torch.randint(self.steps, (n,), device=like.device, generator=generator)
        return (index + int(self.reverse)).to(like.dtype) / self.steps

    def log_density(self, t: Times) -> Tensor:
        """Return the log of the mass, -log k at each of the k times: they have no density."""
        index = (self.steps * t).round()
        own = (index / self.steps == t) & (index >= self.reverse)
        own = own & (index < self.steps + int(self.reverse))
        return torch.where(own, -math.log(self.steps), -torch.inf).to(t.dtype)
