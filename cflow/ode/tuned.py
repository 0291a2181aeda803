"""A solver whose times and weights were tuned for one field: few evaluations, one way.

    y_{k+1} = y_0 + (t_n - t_0) sum_{j <= k} w_kj f(t_j, y_j)

Every explicit method with one evaluation a step is of this form, Euler's and those of Adams and
Bashforth; so are Runge-Kutta methods, whose stages are steps here. What a tuned solver gains over
them it gains for the field and the starts that it was tuned on, see `cflow.samples.calibrate`.
Source: Shaul et al. (2024), Bespoke non-stationary solvers for fast sampling of diffusion and flow
models, arXiv 2403.01329, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.errors import DomainError
from cflow.ode.fixed import Carry, FixedStep
from cflow.ode.grid import TimeGrid
from cflow.ode.problem import Problem
from cflow.ode.step import advance
from cflow.ode.tableau import EULER, Tableau
from cflow.ode.ticks import Tick

__all__ = ["Tuned"]

MOST = 64  # steps, all of whose slopes are kept


@dataclass(frozen=True, repr=False)
class Tuned(FixedStep):
    """Step through given times with given weights of all slopes so far.

    Its steps belong together: it runs the way it was tuned for, in the direction of its times, and
    refuses any other, so a `pull` needs another solver.

    Attributes:
        weights: For each step the weights of the slopes from the first to the newest, as shares of
            the whole way: row k has k + 1 of them.
        grid: A `TimeGrid` with one time more than there are rows.

    Raises:
        DomainError: Rows, times and steps do not fit together; when solving, another way.

    Example:
        >>> import torch
        >>> from cflow.ode import Euler
        >>> euler = Tuned(weights=((0.5,), (0.5, 0.5)), grid=TimeGrid((0.0, 0.5, 1.0)))
        >>> same = euler.solve(lambda t, y: y, torch.ones(1, 1), 0.0, 1.0)
        >>> same.y.item(), Euler(2).solve(lambda t, y: y, torch.ones(1, 1), 0.0, 1.0).y.item()
        (2.25, 2.25)
    """

    weights: Sequence[Sequence[float]] = ()

    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    memory: ClassVar[int] = MOST

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(w) for w in row) for row in self.weights)
        lengths = [len(row) for row in rows]
        times = len(self.grid.times) if isinstance(self.grid, TimeGrid) else None
        if not 1 <= len(rows) <= MOST or lengths != list(range(1, len(rows) + 1)):
            raise DomainError(
                f"Tuned: weights must have rows of 1, 2, ... numbers, {MOST} rows at most, got "
                f"rows of {lengths}"
            )
        if times != len(rows) + 1:
            raise DomainError(
                f"Tuned: {len(rows)} steps need grid=TimeGrid with {len(rows) + 1} times, got "
                f"{self.grid}"
            )
        object.__setattr__(self, "weights", rows)  # frozen, hashable and ready for JSON
        object.__setattr__(self, "steps", len(rows))

    def _advance(
        self, problem: Problem, tick: Tick, carry: Carry
    ) -> tuple[list[Tensor], list[list[Tensor]], int]:
        k = len(carry.past)
        self._expect_own(tick, k)
        slope = carry.slope or problem.f(tick.times[0], carry.y, problem.args)
        assert isinstance(self.grid, TimeGrid)
        times = [float(t) for t in self.grid.times]
        scale = (times[-1] - times[0]) / (times[k + 1] - times[k])  # a step is advanced by its h
        before = (*self.weights[k - 1], 0.0) if k else (0.0,)
        change = [scale * (w - b) for w, b in zip(self.weights[k], before, strict=True)]
        terms = tuple(enumerate(reversed(change)))  # newest first, as slopes are kept
        return advance(carry.y, tick.h, terms, [slope, *carry.past]), [slope], 1

    @property
    def _interpolant(self) -> Tableau:
        return EULER

    def _expect_own(self, tick: Tick, k: int) -> None:
        assert isinstance(self.grid, TimeGrid)
        times = [float(t) for t in self.grid.times]
        own = times[k : k + 2] if k < self.steps else []
        if len(own) < 2 or max(abs(tick.start - own[0]), abs(tick.end - own[1])) > 1e-9:
            raise DomainError(
                f"Tuned: its steps were tuned for the way from {times[0]:g} to {times[-1]:g} as a "
                f"whole, got one from {tick.start:g} to {tick.end:g}; take another solver to pull, "
                "or to stop on the way"
            )
