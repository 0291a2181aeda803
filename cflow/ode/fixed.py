"""Fixed-step solvers: a known number of evaluations, one graph when compiled.

Each crosses the times of its grid; times at which to stop are added to it, times to save are read
between the steps.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError, known
from cflow.ode.dense import Dense, Piece
from cflow.ode.grid import Grid, UniformGrid
from cflow.ode.problem import Problem, Span
from cflow.ode.solver import Solution, Solver, Status, finite_rows, march, raise_failures
from cflow.ode.step import Step, stages
from cflow.ode.tableau import EULER, HEUN, MIDPOINT, Tableau
from cflow.ode.tableau import RK4 as RK4_TABLEAU
from cflow.ode.ticks import Tick, lay_out

__all__ = [
    "RK4",
    "Carry",
    "Euler",
    "FixedRungeKutta",
    "FixedStep",
    "Heun",
    "Midpoint",
    "report",
]


UNIFORM = UniformGrid()


class Carry(NamedTuple):
    """Hold what a step hands to the next: the state, its slope if known, and slopes before it."""

    y: list[Tensor]
    slope: list[Tensor] | None
    past: Sequence[list[Tensor]]


@dataclass(frozen=True, repr=False)
class FixedStep(Solver):
    """Step along a grid; what differs is the step.

    Attributes:
        steps: Number of steps, at least 1.
        grid: Where the steps fall.
        throw: Raise when a sample's state is no longer finite; otherwise its last good state comes
            back with its status. In a compiled or exported graph nothing is raised.
    """

    steps: int = 8
    grid: Grid = UNIFORM
    throw: bool = True

    nodes: ClassVar[tuple[float, ...]]
    memory: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise DomainError(
                f"{type(self).__name__}: steps must be a whole number of at least 1, "
                f"got {self.steps!r}; times of your own go in as grid=TimeGrid(times)"
            )

    @property
    def per_sample(self) -> bool:
        return True

    @property
    def adaptive(self) -> bool:
        return False

    @abstractmethod
    def _advance(
        self, problem: Problem, tick: Tick, carry: Carry
    ) -> tuple[list[Tensor], list[list[Tensor]], int]:
        """Take one step; return the next state, the slopes (the first at the start) and nfe."""

    @property
    @abstractmethod
    def _interpolant(self) -> Tableau:
        """The tableau whose order says how to read between steps."""

    def ticks(self, problem: Problem, span: Span, nodes: Sequence[float]) -> list[Tick]:
        """Lay the solver's grid over a span, for a method with these nodes."""
        memory = self.memory
        return lay_out(problem, span, self.grid, self.steps, nodes, memory=memory)

    def step(self, problem: Problem, tick: Tick, carry: Carry) -> tuple[Carry, int]:
        """Take one step; return what the next one starts from, and the evaluations."""
        y, slopes, evaluations = self._advance(problem, tick, carry)
        return self._next(problem, carry, y, slopes), evaluations

    def _solve(self, problem: Problem, span: Span) -> Solution:
        ticks = self.ticks(problem, span, self.nodes)
        jumps = (
            {k for k, tick in enumerate(ticks) if tick.start in span.stops} if span.stops else set()
        )
        inner = set(range(len(ticks))) if span.dense else _holding(ticks, span.save)
        pieces: list[Piece] = []
        visited = [problem.leaves]
        nfe = 0

        def step(k: int, k_next: int, carry: Carry) -> Carry:
            nonlocal nfe
            tick = ticks[k]
            y, slopes, evaluations = self._advance(problem, tick, carry)
            after = self._next(problem, carry, y, slopes)
            nfe += evaluations
            if k in inner:
                if self._interpolant.order > 1:
                    after = after._replace(slope=problem.f(tick.until, after.y, problem.args))
                    slopes = [*slopes, after.slope]
                    nfe += 1
                pieces.append(_piece(problem, tick, carry.y, after.y, slopes, self._interpolant))
            if span.save is not None:
                visited.append(after.y)
            return Carry(after.y, None, ()) if k_next in jumps else after

        def states() -> Iterator[list[Tensor]]:
            carry = Carry(problem.leaves, None, ())
            for tick in ticks:
                carry, _ = self.step(problem, tick, carry)
                yield carry.y

        last = march(step, Carry(problem.leaves, None, ()), range(len(ticks) + 1))
        return report(
            self, problem, span, ticks, last.y,
            nfe=nfe, states=states, visited=visited, pieces=pieces,
        )  # fmt: skip

    def _next(
        self, problem: Problem, carry: Carry, y: list[Tensor], slopes: list[list[Tensor]]
    ) -> Carry:
        if problem.project is not None:
            y = problem.project(y)
        if not self.memory:
            return Carry(y, None, ())
        return Carry(y, None, [slopes[0], *carry.past][: self.memory])


@dataclass(frozen=True, repr=False)
class FixedRungeKutta(FixedStep):
    """Take explicit Runge-Kutta steps; what differs is the tableau."""

    tableau: ClassVar[Tableau]

    def _advance(
        self, problem: Problem, tick: Tick, carry: Carry
    ) -> tuple[list[Tensor], list[list[Tensor]], int]:
        y, slopes = stages(
            self.tableau, problem, problem.args, tick.times, tick.h, carry.y, k1=carry.slope
        )
        return y, slopes, self.tableau.stages - (carry.slope is not None)

    @property
    def _interpolant(self) -> Tableau:
        return self.tableau


@dataclass(frozen=True, repr=False)
class Euler(FixedRungeKutta):
    """Euler's method: order 1, one evaluation a step.

    Example:
        >>> Euler(steps=4)
        Euler(steps=4)
    """

    tableau: ClassVar[Tableau] = EULER
    nodes: ClassVar[tuple[float, ...]] = (0.0, *EULER.c)


@dataclass(frozen=True, repr=False)
class Midpoint(FixedRungeKutta):
    """The explicit midpoint method: order 2, two evaluations a step."""

    tableau: ClassVar[Tableau] = MIDPOINT
    nodes: ClassVar[tuple[float, ...]] = (0.0, *MIDPOINT.c)


@dataclass(frozen=True, repr=False)
class Heun(FixedRungeKutta):
    """Heun's method (explicit trapezoid): order 2, two evaluations a step."""

    tableau: ClassVar[Tableau] = HEUN
    nodes: ClassVar[tuple[float, ...]] = (0.0, *HEUN.c)


@dataclass(frozen=True, repr=False)
class RK4(FixedRungeKutta):
    """The classical Runge-Kutta method: order 4, four evaluations a step."""

    tableau: ClassVar[Tableau] = RK4_TABLEAU
    nodes: ClassVar[tuple[float, ...]] = (0.0, *RK4_TABLEAU.c)


def report(
    solver: FixedStep,
    problem: Problem,
    span: Span,
    ticks: Sequence[Tick],
    y: list[Tensor],
    *,
    nfe: int,
    states: Callable[[], Iterator[list[Tensor]]],
    visited: list[list[Tensor]] | None = None,
    pieces: list[Piece] | None = None,
) -> Solution:
    """Make the solution of a fixed-step run; `states` repeats it to find the time of a failure."""
    batch, device = problem.batch, y[0].device
    finite = finite_rows(y)
    status = torch.where(finite, int(Status.DONE), int(Status.NON_FINITE))
    accepted = torch.full((batch,), len(ticks), device=device)
    reached = ticks[-1].until.detach()
    if known(finite.all()) is False:
        visited, reached, accepted = _last_good(problem, ticks, states)
        y = visited[-1]
        if solver.throw:
            raise_failures(type(solver).__name__, status, reached, accepted)
    ts, out = span.t1, y
    if span.save is not None and visited is not None:
        ts = torch.tensor(span.save, dtype=problem.time_dtype)
        path = [ticks[0].start, *(tick.end for tick in ticks)]
        between = Dense(problem, pieces or [], np.full(batch, path[-1]))
        saved = [visited[path.index(s)] if s in path else between.leaves(s) for s in span.save]
        if known(finite.all()) is False:  # interpolants of steps that broke down
            saved = [_repaired(leaves, visited[-1]) for leaves in saved]
        out = [torch.stack(leaf) for leaf in zip(*saved, strict=True)]
    dense = Dense(problem, pieces or [], np.full(batch, ticks[-1].end)) if span.dense else None
    count = torch.full((batch,), nfe, device=device)
    rejected = torch.zeros_like(accepted)
    return Solution(problem.tree(out), ts, count, accepted, rejected, status, reached, dense)


@torch.no_grad()
def _last_good(
    problem: Problem, ticks: Sequence[Tick], states: Callable[[], Iterator[list[Tensor]]]
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Return the last finite state of each sample at every tick, its time, and its good steps."""
    visited, reached = [problem.leaves], ticks[0].times[0].clone()
    accepted = torch.zeros(problem.batch, dtype=torch.long, device=reached.device)
    for tick, y in zip(ticks, states(), strict=True):
        fine = finite_rows(y)
        mask = [fine.reshape(-1, *(1,) * (leaf.dim() - 1)) for leaf in y]
        columns = zip(mask, y, visited[-1], strict=True)
        visited.append([torch.where(m, new, old) for m, new, old in columns])
        reached = torch.where(fine, tick.until, reached)
        accepted = accepted + fine
    return visited, reached, accepted


def _repaired(leaves: list[Tensor], good: list[Tensor]) -> list[Tensor]:
    fine = finite_rows(leaves)
    mask = [fine.reshape(-1, *(1,) * (leaf.dim() - 1)) for leaf in leaves]
    return [torch.where(m, a, b) for m, a, b in zip(mask, leaves, good, strict=True)]


def _holding(ticks: Sequence[Tick], save: Sequence[float] | None) -> set[int]:
    """Return the numbers of the ticks with a time to save strictly inside."""
    if save is None:
        return set()
    inside = lambda t: any(min(t.start, t.end) < s < max(t.start, t.end) for s in save)
    return {k for k, tick in enumerate(ticks) if inside(tick)}


def _piece(
    problem: Problem,
    tick: Tick,
    y: list[Tensor],
    y_next: list[Tensor],
    slopes: list[list[Tensor]],
    tableau: Tableau,
) -> Piece:
    start, end = (np.full(problem.batch, t) for t in (tick.start, tick.end))
    step = Step([], y, y_next, slopes, None, 0)
    return Piece(np.arange(problem.batch), start, end, step, tick.h, tableau)
