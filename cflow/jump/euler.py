"""Steps by the rates alone, held for the step: for any jump process.

    a token jumps with probability 1 - exp(-h U),  U = sum_y u(x -> y),  then to y with u / U,

where h is the step in the clock of the rates. No token jumps twice in a step, so the law is right
to first order; on even steps to t = 1, where h grows, up to log(n) / n for n steps, and likewise
from t = 0 along a `NoisingPath`, whose rates are infinite there. On the last step of a path that
ends in data h is infinite; what a token is at t = 1 has law p(x1 | x_t), and that is drawn (see
`finish`).
Source: Campbell et al. (2022), A continuous time framework for discrete denoising models, arXiv
2205.14987, section 4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.jump.draw import Draw
from cflow.jump.rates import Posterior
from cflow.jump.sampler import JumpWalk, SteppingJumps

__all__ = ["EulerJumps", "finish", "moved"]

DRAW = Draw()


@dataclass(frozen=True)
class EulerJumps(SteppingJumps):
    """Let each token jump once at most in a step, at the rates of its beginning.

    Works for rates of any path, and for those of none. For a posterior along a mixture path
    `MixtureSteps` costs the same and is nearer to the process: it counts jumps that return.

    Example:
        >>> from cflow.base import UniformTokens
        >>> from cflow.jump import DirectRates
        >>> ring = lambda t, x, context: torch.eye(3)[(x + 1) % 3].log()
        >>> x0 = torch.zeros(5, 2, dtype=torch.long)
        >>> x1 = EulerJumps(8).sample(DirectRates(ring, 3), x0, base=UniformTokens(2, 3))
        >>> x1.shape
        torch.Size([5, 2])
    """

    def step(self, walk: JumpWalk, t: float, t_next: float, x: Tensor) -> Tensor:
        h = walk.rates.clock.between(t, t_next)
        if math.isinf(h):
            return finish(walk, t, x)
        u = walk.ask(t, x)
        chance = -torch.expm1(-h * u.sum(-1))
        return moved(walk, x, u, walk.uniform(*x.shape, like=x) < chance)


def moved(walk: JumpWalk, x: Tensor, u: Tensor, jumps: Tensor) -> Tensor:
    """Send the tokens that jump to values in proportion to their rates.

    Args:
        walk: The run.
        x: Tokens `(n, *event)`.
        u: Their rates `(n, *event, states)`.
        jumps: Flags of the tokens that jump; each needs a positive rate.

    Returns:
        Tokens `(n, *event)`.
    """
    return x.masked_scatter(jumps, walk.drawn(DRAW, u[jumps].log()))


def finish(walk: JumpWalk, t: float, x: Tensor) -> Tensor:
    """Take the last step of a path that ends in data, whose length in the clock is infinite.

    A posterior says where each token ends, and the tokens are drawn from it. Rates alone say so as
    well on a path, see `JumpPath.posterior`: what they leave of 1 is the chance to be right
    already. Without a path all tokens with a positive rate jump.

    Args:
        walk: The run.
        t: Time before the step.
        x: Tokens `(n, *event)`.

    Returns:
        Tokens at t = 1.
    """
    rates, path = walk.rates, walk.rates.path
    if isinstance(rates, Posterior):
        movable = walk.movable(x)
        movable = torch.ones_like(x, dtype=torch.bool) if movable is None else movable
        if not bool(movable.any()):
            return x
        return x.masked_scatter(movable, walk.ends(t, x, movable, DRAW))
    u = walk.ask(t, x)
    if path is not None:
        u = path.posterior(x, u)
    return moved(walk, x, u, u.sum(-1) > 0)
