"""Fixed-step Runge-Kutta solvers: a known number of evaluations, one graph when compiled.

Each takes `steps` equal steps from t0 to t1; times that are to be saved are added to the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.ode.solver import Problem, Solution, Solver, Status, Time, finite_rows, march
from cflow.ode.tableau import EULER, HEUN, MIDPOINT, Tableau
from cflow.ode.tableau import RK4 as RK4_TABLEAU

__all__ = ["RK4", "Euler", "FixedStep", "Heun", "Midpoint", "advance", "stages"]


@dataclass(frozen=True)
class FixedStep(Solver):
    """Take `steps` equal Runge-Kutta steps; what differs is the tableau.

    Attributes:
        steps: Number of steps, at least 1.
    """

    steps: int = 8

    tableau: ClassVar[Tableau]
    per_sample: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise DomainError(
                f"{type(self).__name__}: steps must be a whole number of at least 1, "
                f"got {self.steps!r}"
            )

    def _solve(self, problem: Problem, stops: Sequence[Time], *, save: bool) -> Solution:
        grid, kept = _grid(stops, self.steps)
        visited: list[list[Tensor]] = []

        def step(t: Time, t_next: Time, y: list[Tensor]) -> list[Tensor]:
            y_next, _ = stages(self.tableau, problem, problem.args, t, t_next - t, y)
            return y_next if problem.project is None else problem.project(y_next)

        def visit(t: Time, y: list[Tensor]) -> None:
            visited.append(y)

        y = march(step, problem.leaves, grid, visit=visit if save else None)
        ts: Time = stops[-1]
        out: list[Tensor] = y
        if save:
            ts = torch.tensor(stops[1:-1], dtype=problem.time_dtype)
            out = [torch.stack(leaf) for leaf in zip(*(visited[k] for k in kept), strict=True)]
        return Solution(problem.tree(out), ts, *self._report(y, len(grid) - 1))

    def _report(self, y: list[Tensor], steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        accepted = torch.full((y[0].shape[0],), steps, device=y[0].device)
        status = torch.where(finite_rows(y), int(Status.DONE), int(Status.NON_FINITE))
        return accepted * self.tableau.stages, accepted, torch.zeros_like(accepted), status


@dataclass(frozen=True)
class Euler(FixedStep):
    """Euler's method: order 1, one evaluation a step.

    Example:
        >>> Euler(steps=4)
        Euler(steps=4)
    """

    tableau: ClassVar[Tableau] = EULER


@dataclass(frozen=True)
class Midpoint(FixedStep):
    """The explicit midpoint method: order 2, two evaluations a step."""

    tableau: ClassVar[Tableau] = MIDPOINT


@dataclass(frozen=True)
class Heun(FixedStep):
    """Heun's method (explicit trapezoid): order 2, two evaluations a step."""

    tableau: ClassVar[Tableau] = HEUN


@dataclass(frozen=True)
class RK4(FixedStep):
    """The classical Runge-Kutta method: order 4, four evaluations a step."""

    tableau: ClassVar[Tableau] = RK4_TABLEAU


def stages(
    tableau: Tableau,
    problem: Problem,
    args: list[Any],
    t: Time,
    h: Time,
    y: list[Tensor],
    *,
    k1: list[Tensor] | None = None,
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Run one explicit step of size h from (t, y); return the next state and all slopes.

    `k1` hands in the first slope where the caller has it. With a tableau that is first same as
    last, the last slope is that of the next state.
    """
    slopes = [problem.f(t, y, args) if k1 is None else k1]
    y_stage = y
    for row, node in zip(tableau.a, tableau.c, strict=True):
        y_stage = advance(y, h, row, slopes)
        slopes.append(problem.f(t + node * h, y_stage, args))
    y_next = y_stage if tableau.fsal else advance(y, h, tableau.b, slopes)
    return y_next, slopes


def advance(
    y: list[Tensor], h: Time, weights: Sequence[float], slopes: list[list[Tensor]]
) -> list[Tensor]:
    """Return y + h sum_i w_i k_i, leaf by leaf, each leaf in its own dtype."""
    out = []
    for index, leaf in enumerate(y):
        terms = [(w, k[index]) for w, k in zip(weights, slopes, strict=False) if w != 0.0]
        if isinstance(h, Tensor):
            increment = sum(w * k for w, k in terms[1:]) + terms[0][0] * terms[0][1]
            width = h.to(leaf.dtype).reshape(h.shape + (1,) * (leaf.dim() - h.dim()))
            out.append(leaf + width * increment)
        else:
            for w, k in terms:
                leaf = torch.add(leaf, k, alpha=h * w)
            out.append(leaf)
    return out


def _grid(stops: Sequence[Time], steps: int) -> tuple[list[Time], list[int]]:
    """Cut [t0, t1] into equal steps, add the inner stops, and say where they stand in the grid."""
    t0, t1 = stops[0], stops[-1]
    span = t1 - t0
    grid: list[Time] = [t0, *(t0 + span * (k / steps) for k in range(1, steps)), t1]
    if len(stops) == 2:
        return grid, []
    kept = []
    for stop in stops[1:-1]:
        near = min(range(len(grid)), key=lambda k: abs(grid[k] - stop))
        if abs(grid[near] - stop) > 1e-9 * abs(span):
            near += 1 if (stop - grid[near]) * span > 0 else 0
            grid.insert(near, stop)
        kept.append(near)
    return grid, kept
