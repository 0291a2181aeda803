"""The contract of a solver, and the one loop over time that stands below every one of them.

    y' = f(t, y, *args),    y(t0) = y0,    wanted: y(t1)

`y0` and `args` are trees of tensors with one leading batch axis; `f` sees `t` as `(batch,)`.
`t1 < t0` runs backward. This package imports nothing but `errors`, and can be used alone.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cflow.errors import SolverError
from cflow.ode.dense import Dense
from cflow.ode.problem import Problem, Span, Time

__all__ = ["Solution", "Solver", "Status", "finite_rows", "march", "raise_failures"]

Y = TypeVar("Y")


class Status(IntEnum):
    """Say how the solve of one sample ended."""

    DONE = 0
    STEPS_EXHAUSTED = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3


class Solution(NamedTuple):
    """Hold the result of a solve and what it took, per sample.

    Attributes:
        y: The tree at t1, or, with `save_at`, at each saved time (a new leading axis). A sample
            that failed holds its last good state, there and at every saved time after it.
        ts: Times that `y` belongs to: `(saved,)` with `save_at`, else t1 itself.
        nfe: Evaluations of f for each sample, `(batch,)`.
        accepted: Accepted steps, `(batch,)`.
        rejected: Rejected steps, `(batch,)`; zero for fixed steps.
        status: One `Status` each, `(batch,)`.
        reached: The time that each sample reached, `(batch,)`.
        dense: With `dense=True`, the solution between t0 and t1 as a function of time.
    """

    y: Any
    ts: Time
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    reached: Tensor
    dense: Dense | None = None


class Solver(ABC):
    """Integrate an initial value problem; concrete solvers are frozen dataclasses of options."""

    def __repr__(self) -> str:
        """Show the first option and those that are not at their default."""
        shown = []
        for position, option in enumerate(dataclasses.fields(self)):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            if position == 0 or (value is not option.default and value != option.default):
                shown.append(f"{option.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    @abstractmethod
    def per_sample(self) -> bool:
        """Whether a sample's result is independent of its batch mates."""

    @property
    @abstractmethod
    def adaptive(self) -> bool:
        """Whether the step size follows an error estimate."""

    def solve(
        self,
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        t0: Time,
        t1: Time,
        *,
        args: tuple[Any, ...] = (),
        project: Callable[[Any], Any] | None = None,
        save_at: Sequence[float] | Tensor | None = None,
        stop_at: Sequence[float] | Tensor = (),
        dense: bool = False,
        parameters: Iterable[Tensor] = (),
    ) -> Solution:
        """Solve y' = f(t, y, *args) from t0 to t1, forward or backward.

        Args:
            f: `f(t, y, *args)` with `t` of shape `(batch,)`, returning the structure of `y`.
            y0: Tree of tensors, each `(batch, ...)`.
            t0: Start: a number, or a tensor `()` or `(batch,)` (then gradients reach it).
            t1: End, likewise. Where it equals t0, y0 comes back and f is not asked.
            args: Trees handed on to f, with gradients. Tensors in them carry the batch axis,
                because samples that are done leave the batch together with their rows; what all
                samples share belongs into f itself.
            project: Maps a state back onto its constraint; applied after every step.
            save_at: Times to keep, running from t0 to t1; needs numbers for t0 and t1. The states
                are read between the steps, so saving changes neither steps nor result.
            stop_at: Times between t0 and t1 that steps must hit, such as jumps of f.
            dense: Keep all steps, so that `Solution.dense` gives the state at any time.
            parameters: Tensors that f reads besides y and args. Only solvers with an adjoint of
                their own look at them; what the first evaluation reaches is found anyway.

        Returns:
            The solution, with per-sample counts and status.

        Raises:
            ShapeError: A leaf lacks the batch axis, or f returns other shapes.
            DomainError: Times are not finite, or `save_at` does not run from t0 to t1, or f returns
                another dtype.
            SolverError: A solver that throws ran into a status other than DONE.

        Example:
            >>> from cflow.ode import RK4
            >>> y = RK4(steps=20).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y
            >>> round(y.item(), 4)
            0.3679
        """
        problem = Problem.check(f, y0, args, project, parameters)
        span = Span.check(problem, t0, t1, save_at, stop_at, dense=dense)
        if problem.batch == 0 or span.empty:
            return _unmoved(problem, span)
        return self._solve(problem, span)

    @abstractmethod
    def _solve(self, problem: Problem, span: Span) -> Solution:
        """Solve from span.t0 to span.t1, keeping what the span asks for."""


def march(
    step: Callable[[Any, Any, Y], Y],
    y: Y,
    grid: Iterable[Any],
    *,
    visit: Callable[[Any, Y], None] | None = None,
) -> Y:
    """Carry y along a time grid: the only loop over time in the package.

    Args:
        step: `step(t, t_next, y) -> y_next`; a Runge-Kutta step, an adaptive stretch, or a jump.
        y: Start, anything that `step` accepts.
        grid: Times in the order of travel, the start first; or numbers of steps.
        visit: Called as `visit(t, y)` at every time of the grid, the start included.

    Returns:
        The state at the last time.

    Example:
        >>> march(lambda t, t_next, y: y + (t_next - t), 0.0, [0.0, 0.5, 2.0])
        2.0
    """
    times = iter(grid)
    t = next(times)
    if visit is not None:
        visit(t, y)
    for t_next in times:
        y = step(t, t_next, y)
        t = t_next
        if visit is not None:
            visit(t, y)
    return y


def finite_rows(leaves: Sequence[Tensor]) -> Tensor:
    """Say for each sample whether all its entries are finite, `(batch,)`."""
    flags = [torch.isfinite(leaf) for leaf in leaves]
    rows = [flag if flag.dim() == 1 else flag.flatten(1).all(1) for flag in flags]
    return rows[0] if len(rows) == 1 else torch.stack(rows).all(0)


def raise_failures(name: str, status: Tensor, reached: Tensor, attempts: Tensor) -> None:
    """Raise a `SolverError` that names the first sample that did not arrive, its time and cause."""
    failed = torch.nonzero(status != Status.DONE).flatten()
    if not len(failed):
        return
    first = int(failed[0])
    reason = Status(int(status[first])).name.lower().replace("_", " ")
    raise SolverError(
        f"{name}.solve: {len(failed)} of {len(status)} samples failed; sample {first} stopped at "
        f"t={reached[first].item():.6g} ({reason} after {int(attempts[first])} steps); check the "
        "field there, raise max_steps or the tolerances, or pass throw=False to keep the last good "
        "states"
    )


def _unmoved(problem: Problem, span: Span) -> Solution:
    """Return the start where there is nothing to solve: no samples, or no time."""
    y, ts = problem.leaves, span.t1
    device = y[0].device
    if span.save is not None:
        ts = torch.tensor(span.save, dtype=problem.time_dtype)
        y = [leaf.expand(len(span.save), *leaf.shape) for leaf in y]
    zero = torch.zeros(problem.batch, dtype=torch.long, device=device)
    reached = torch.as_tensor(span.t1, dtype=problem.time_dtype, device=device).detach()
    dense = Dense(problem, [], None) if span.dense else None
    return Solution(
        problem.tree(y), ts, zero, zero, zero, zero, reached.expand(problem.batch), dense
    )
