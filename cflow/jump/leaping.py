"""Tau-leaping: all jumps of a step at once, as if none changed the rates of another.

    k_y ~ Poisson(h u(x -> y)),    ordinal values:  x <- x + sum_y k_y (y - x),  held in their range
                                   others:          x <- y where k_y = 1 is the only jump, else x

where h is the step in the clock of the rates. Names have no sum, so two jumps of one token have no
meaning without an order, and are refused. The law is right to first order.
Source: Gillespie (2001), Approximate accelerated stochastic simulation of chemically reacting
systems, J. Chem. Phys. 115; Campbell et al. (2022), arXiv 2205.14987, section 4.3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.jump.euler import finish, moved
from cflow.jump.sampler import JumpWalk, SteppingJumps

__all__ = ["TauLeaping"]


@dataclass(frozen=True)
class TauLeaping(SteppingJumps):
    """Add up Poisson numbers of jumps at the rates of the beginning of each step.

    The last step of a path that ends in data is that of `EulerJumps`.

    Attributes:
        ordinal: Whether values are levels that can be added, such as grey levels; needs a base
            without masks.

    Example:
        >>> TauLeaping(16, ordinal=True).ordinal
        True
    """

    ordinal: bool = False

    def step(self, walk: JumpWalk, t: float, t_next: float, x: Tensor) -> Tensor:
        if self.ordinal and walk.base.mask is not None:
            raise DomainError(
                "TauLeaping: a mask is no level that could be added, got ordinal=True with "
                f"{type(walk.base).__name__}; take ordinal=False, or a base without masks"
            )
        h = walk.rates.clock.between(t, t_next)
        if math.isinf(h):
            return finish(walk, t, x)
        u = walk.ask(t, x)
        if self.ordinal:
            return _added(walk, x, h * u)
        mean = h * u.sum(-1)
        once = walk.uniform(*x.shape, like=x) < mean * (-mean).exp()
        return moved(walk, x, u, once)


def _added(walk: JumpWalk, x: Tensor, mean: Tensor) -> Tensor:
    """Add a Poisson number of jumps to each value, with means `(n, *event, states)`."""
    counts = torch.poisson(mean, generator=walk.generator)
    values = torch.arange(mean.shape[-1], device=x.device)
    total = (counts * (values - x[..., None])).sum(-1)
    return (x + total).clamp(0, mean.shape[-1] - 1).to(x.dtype)
