"""The contract of a sampler of tokens: carry them from a time to a later one by jumps.

Tokens march along a grid of times, as the points of an ODE do. Both ends are kept: a run from t to
t' ends in the law of t', and only a run to t = 1 ends in data. What differs is the step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.base import TokenBase
from cflow.errors import DomainError, ShapeError, expect_tokens
from cflow.jump.draw import Draw
from cflow.jump.rates import Posterior, Rates
from cflow.jump.tokens import expect_finite_rates, expect_flags, expect_rates
from cflow.ode import Grid, UniformGrid, march
from cflow.samples.options import expect_count
from cflow.typing import Data

__all__ = ["JumpSampler", "JumpWalk", "SteppingJumps"]

UNIFORM = UniformGrid()
ENTRIES = 1 << 19  # of logits that are drawn from at once


@dataclass(frozen=True)
class JumpWalk:
    """Hold what one run of a sampler has in common.

    Attributes:
        rates: The model.
        base: The law at t = 0.
        context: Conditions `(n, *context)`.
        fixed: Tokens that never jump, `(n, *event)`, or None.
        generator: Source of the randomness.
        end: Time at which the run ends.
    """

    rates: Rates
    base: TokenBase
    context: Tensor | None
    fixed: Tensor | None
    generator: Generator | None
    end: float

    def ends(self, t: float, x: Tensor, flagged: Tensor, draw: Draw | None) -> Tensor:
        """Draw ends x1 for flagged tokens, `(k,)` of them, by a posterior asked at one time.

        The likeliest where no `draw` is given. Rows of logits are taken a few at a time: they stay
        in the processor's cache, and a large vocabulary takes no memory beside the logits.
        """
        if not isinstance(self.rates, Posterior):
            raise DomainError(
                "JumpSampler: this sampler needs p(x1 | x_t), got "
                f"{type(self.rates).__name__}; take EulerJumps or TauLeaping for rates alone"
            )
        logits = self.rates.logits(self._times(t, x), x, self.context)
        logits = logits.reshape(-1, logits.shape[-1])
        places = flagged.flatten().nonzero()[:, 0]
        found, few = [], max(1, ENTRIES // logits.shape[-1])
        for first in range(0, len(places), few):
            rows = logits[places[first : first + few]]
            expect_finite_rates("JumpSampler", t, rows, flagged, first=first)
            found.append(rows.argmax(-1) if draw is None else self.drawn(draw, rows))
        return torch.cat(found)

    def ask(self, t: float, x: Tensor) -> Tensor:
        """Return the rates `(n, *event, states)` at one time, 0 for tokens that never jump."""
        u = self.rates(self._times(t, x), x, self.context)
        expect_rates("JumpSampler", t, u)
        return u if self.fixed is None else u.masked_fill(self.fixed[..., None], 0.0)

    def movable(self, x: Tensor) -> Tensor | None:
        """Flag tokens that may jump, or return None where all may."""
        unsettled = self.rates.unsettled(x) if isinstance(self.rates, Posterior) else None
        if self.fixed is None:
            return unsettled
        return ~self.fixed if unsettled is None else unsettled & ~self.fixed

    def drawn(self, draw: Draw, rows: Tensor) -> Tensor:
        """Draw a token from each row of logits `(k, values)`."""
        return draw(rows, self.uniform(len(rows), like=rows, dtype=draw.dtype))

    def uniform(self, *shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Draw uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=like.device, dtype=dtype)

    def _times(self, t: float, x: Tensor) -> Tensor:
        return torch.full(x.shape[:1], t, device=x.device)


class JumpSampler(ABC):
    """Turn noise into tokens; concrete samplers are frozen dataclasses of options."""

    def sample(
        self,
        rates: Rates,
        x0: Data,
        context: Tensor | None = None,
        *,
        base: TokenBase,
        start: float = 0.0,
        end: float = 1.0,
        fixed: Tensor | None = None,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Data:
        """Carry tokens from one time to a later one, without gradients.

        Args:
            rates: The model.
            x0: Tokens at the start, `(n, *event)`, masks among them where the base has masks.
            context: Conditions `(n, *context)`.
            base: The law at t = 0.
            start: Time at which x0 stands, in [0, 1].
            end: Time at which the tokens are wanted, not before the start.
            fixed: Tokens that never jump, boolean, broadcasting to x0.
            generator: Source of the randomness.
            progress: Show a bar of the steps where there is a terminal.

        Returns:
            Tokens at the end, `(n, *event)`.

        Raises:
            DomainError: The end lies before the start, a token is out of range, rates are not
                finite, or the sampler does not fit the rates.
            ShapeError: Shapes disagree.
        """
        where = f"{type(self).__name__}.sample"
        if not 0 <= start <= end <= 1:
            raise DomainError(
                f"{where}: needs 0 <= start <= end <= 1, got start={start} and end={end}; a jump "
                "process runs from base to data alone"
            )
        if rates.states != base.states:
            raise DomainError(
                f"{where}: rates and base must agree on the states of a token, got {rates.states} "
                f"of {type(rates).__name__} and {base.states} of {type(base).__name__}"
            )
        expect_tokens(where, x0, base.event_shape, base.states)
        if x0.dim() != len(base.event_shape) + 1 or (
            context is not None and context.shape[:1] != x0.shape[:1]
        ):
            raise ShapeError(
                f"{where}: tokens and context must share one leading batch axis, got "
                f"{tuple(x0.shape)} and {None if context is None else tuple(context.shape)}"
            )
        if fixed is not None:
            fixed = expect_flags(where, "fixed", fixed, x0)
        x0 = x0.long()
        if start == end or not len(x0):
            return x0
        walk = JumpWalk(rates, base, context, fixed, generator, end)
        silent = None if progress else True  # None: silent where there is no terminal
        bar: tqdm[Any] = tqdm(desc="steps", disable=silent, leave=False)
        with torch.no_grad(), bar:
            return self.run(walk, x0, start, bar)

    @abstractmethod
    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        """Carry tokens from the start to `walk.end`, writing into no argument; count on the bar."""


@dataclass(frozen=True)
class SteppingJumps(JumpSampler):
    """A sampler that steps all tokens along one grid; authors write `step`.

    Attributes:
        steps: Number of steps, at least 1.
        grid: Where the steps fall from start to end; a `TimeGrid` has its own number of them.

    Raises:
        DomainError: `steps` is not a whole number of at least 1.
    """

    steps: int = 64
    grid: Grid = UNIFORM

    def __post_init__(self) -> None:
        expect_count(type(self).__name__, steps=self.steps)

    @abstractmethod
    def step(self, walk: JumpWalk, t: float, t_next: float, x: Tensor) -> Tensor:
        """Carry tokens over one step, writing into no argument."""

    def times(self, start: float, end: float) -> Iterator[float]:
        """Yield the times of the steps, both ends included."""
        for share in self.grid.shares(self.steps, start, end)[:-1]:
            yield start + (end - start) * share
        yield end

    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        times = list(self.times(start, walk.end))
        bar.reset(total=len(times) - 1)

        def step(t: float, t_next: float, x: Tensor) -> Tensor:
            bar.update()
            return self.step(walk, t, t_next, x)

        return march(step, x0, times)
