"""Steps of tokens and points together, by one answer of a network that sees both.

    tokens:  a jump step for the logits of p(x1 | z_t), held for the step, see `mixture_steps.py`
    points:  x' = x + h v(t, z_t)

Within a step the parts do not see each other move, so the law is right to first order in the step.
With `order=2` a step asks twice: it goes half the way by the first answer, and the rest by
2 second - first, for probabilities as for the velocity, which is the midpoint rule for points. Both
parts are then right to second order, but where a jump changes probabilities so much that
2 second - first is negative; it is cut off there, and of that the error remains of first order.
Source: Campbell et al. (2024), Generative flows on discrete state-spaces, arXiv 2402.04997,
section 4 (MultiFlow); Hu, Li and Min (2011), A weak second order tau-leaping method for chemical
kinetic systems, J. Chem. Phys. 135 (the extrapolated second half).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.base import TokenBase
from cflow.errors import DomainError
from cflow.jump.mixed_state import Mixed
from cflow.jump.mixture_steps import MixtureSteps
from cflow.jump.path import MixturePath
from cflow.jump.rates import Posterior
from cflow.jump.sampler import JumpWalk, SteppingJumps
from cflow.ode import march
from cflow.typing import Data, Times

__all__ = ["HeldPosterior", "MixedSteps", "MixedWalk"]

STEPS = MixtureSteps()


class HeldPosterior(Posterior):
    """Give logits that have been asked already, whatever time and tokens are named.

    Args:
        base: The law of tokens at t = 0.
        path: Their path.

    Attributes:
        answer: The logits `(n, *event, vocabulary)`, to be set before use.
    """

    answer: Tensor

    def __init__(self, base: TokenBase, path: MixturePath) -> None:
        masked = base.mask is not None
        super().__init__(base.vocabulary, path, masked=masked, absorbing=base.absorbing)

    def logits(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        return self.answer


@dataclass(frozen=True)
class MixedWalk:
    """Hold what one run has in common.

    Attributes:
        ask: Gives logits and velocity at one time, `ask(t, state)`.
        held: The posterior that the steps of tokens read.
        jumps: The run of the tokens, whose rates are `held`, or None where all of them are known.
        moves: Whether points move, or are known.
    """

    ask: Callable[[float, Mixed], tuple[Tensor, Tensor]]
    held: HeldPosterior
    jumps: JumpWalk | None
    moves: bool


@dataclass(frozen=True)
class MixedSteps:
    """Step tokens and points along one grid of times.

    Attributes:
        jumps: How tokens step; its number of steps and its grid are those of both parts.
        order: 1 asks the network once in a step, 2 twice.

    Raises:
        DomainError: The order is neither.

    Example:
        >>> from cflow.jump import Draw
        >>> MixedSteps(MixtureSteps(16, draw=Draw(temperature=0.8)), order=2).jumps.steps
        16
    """

    jumps: SteppingJumps = STEPS
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise DomainError(f"MixedSteps: order must be 1 or 2, got {self.order!r}")

    def run(
        self, walk: MixedWalk, state: Mixed, start: float, end: float, bar: "tqdm[Any]"
    ) -> Mixed:
        """Carry a state from one time to a later one, writing into no argument."""
        times = list(self.jumps.times(start, end))
        bar.reset(total=len(times) - 1)

        def step(t: float, t_next: float, z: Mixed) -> Mixed:
            bar.update()
            if self.order == 1:
                return self._advanced(walk, t, t_next, z, *walk.ask(t, z))
            middle = 0.5 * (t + t_next)
            first = walk.ask(t, z)
            z = self._advanced(walk, t, middle, z, *first)
            second = walk.ask(middle, z)
            logits, v = _beyond(first[0], second[0]), 2 * second[1] - first[1]
            return self._advanced(walk, middle, t_next, z, logits, v)

        return march(step, state, times)

    def _advanced(
        self, walk: MixedWalk, t: float, t_next: float, z: Mixed, logits: Tensor, v: Tensor
    ) -> Mixed:
        """Step the parts that are not known."""
        tokens, x = z
        if walk.jumps is not None:
            walk.held.answer = logits
            tokens = self.jumps.step(walk.jumps, t, t_next, tokens)
        return Mixed(tokens, x + (t_next - t) * v if walk.moves else x)


def _beyond(first: Tensor, second: Tensor) -> Tensor:
    """Return logits of 2 p_second - p_first, with nothing where that is negative."""
    wide = torch.promote_types(first.dtype, torch.float32)
    p, q = (logits.to(wide).softmax(-1) for logits in (first, second))
    return (2 * q - p).clamp_min(0).log()
