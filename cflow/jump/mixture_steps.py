"""Steps along a mixture path, exact for a posterior that stays as it is over the step.

    a token jumps with probability q = 1 - exp(-(s' - s)) = 1 - (1 - kappa') / (1 - kappa),
    and then x1 ~ p(x1 | x_t),

where a jump may return to where it was. Only tokens that jump need a draw. With a refresh eta, data
and noise are exchanged at rates that leave the law of every time as it is,

    noise -> data at eta kappa,    data -> noise at eta (1 - kappa),

which repairs what earlier steps did wrong: in each step 1 - exp(-eta h) of the tokens are drawn
anew, from data with probability kappa, else from the base.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595; Campbell
et al. (2024), arXiv 2402.04997, section 3 (rates of detailed balance).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.jump.draw import Draw
from cflow.jump.noising import NoisingPath
from cflow.jump.path import MixturePath
from cflow.jump.sampler import JumpWalk, SteppingJumps
from cflow.jump.tokens import expect_independent

__all__ = ["MixtureSteps"]

DRAW = Draw()


@dataclass(frozen=True)
class MixtureSteps(SteppingJumps):
    """Step along a mixture path by the jumps of a posterior that is held for the step.

    A posterior along a `NoisingPath` has the same law at each time, and is stepped in the same way.

    Attributes:
        draw: How tokens are drawn: temperature, nucleus, precision.
        argmax: Let jumps of the last step to t = 1 go to the likeliest token.
        refresh: Rate eta, in units of inverse time, at which tokens are drawn anew, or a function
            of t; 0 for never. It needs a base of independent tokens.

    Example:
        >>> MixtureSteps(16, draw=Draw(temperature=0.8)).steps
        16
    """

    draw: Draw = DRAW
    argmax: bool = False
    refresh: float | Callable[[float], float] = 0.0

    def step(self, walk: JumpWalk, t: float, t_next: float, x: Tensor) -> Tensor:
        path = walk.rates.path
        if not isinstance(path, MixturePath | NoisingPath):
            raise DomainError(
                "MixtureSteps: the rates must follow a MixturePath or NoisingPath, got "
                f"{type(path).__name__}; take EulerJumps or TauLeaping"
            )
        chance = -math.expm1(-path.clock.between(t, t_next))
        jumps = walk.uniform(*x.shape, like=x) < chance
        movable = walk.movable(x)
        if movable is not None:
            jumps &= movable
        eta = self.refresh(t) if callable(self.refresh) else self.refresh
        noised = None
        if eta:
            expect_independent("MixtureSteps.refresh", walk.base)
            kappa = path.clock.kappa(torch.tensor(t_next, dtype=torch.float64)).item()
            renewed = walk.uniform(*x.shape, like=x) < -math.expm1(-eta * (t_next - t))
            renewed = renewed if walk.fixed is None else renewed & ~walk.fixed
            to_data = walk.uniform(*x.shape, like=x) < kappa
            noised = renewed & ~to_data
            jumps = (jumps | (renewed & to_data & _open(walk, x))) & ~noised
        out = x
        if bool(jumps.any()):
            likeliest = self.argmax and t_next == 1
            drawn = walk.ends(t, x, jumps, None if likeliest else self.draw)
            out = x.masked_scatter(jumps, drawn)
        if noised is not None:
            fresh = walk.base.sample(tuple(x.shape[:1]), generator=walk.generator)
            out = torch.where(noised, fresh, out)
        return out


def _open(walk: JumpWalk, x: Tensor) -> Tensor:
    """Flag tokens whose posterior is the model's to give: with masks, a token that is one."""
    movable = walk.movable(x)
    return torch.ones_like(x, dtype=torch.bool) if movable is None else movable
