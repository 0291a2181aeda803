"""Checkpointing: exact gradients of the steps, with memory for the square root of their number.

The steps are cut into stretches. The forward pass keeps the state at the ends of stretches; the
backward pass runs each stretch once more, with its graph. An adaptive solve first finds its steps
without a graph and then takes just the accepted ones.
Source: Chen et al. (2016), Training deep nets with sublinear memory cost, arXiv 1604.06174.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cflow.errors import DomainError
from cflow.ode.adaptive import Adaptive
from cflow.ode.adjoint import Adjoint
from cflow.ode.fixed import Carry, FixedStep, report
from cflow.ode.loop import Loop, Round
from cflow.ode.moves import Move, moves_of
from cflow.ode.pieces import in_pieces
from cflow.ode.problem import Problem, Span, Time, select_rows
from cflow.ode.solver import Solution, Solver, march
from cflow.ode.step import RungeKutta, widths

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """Differentiate the steps exactly, keeping about two square roots of their number.

    Costs one more run of the accepted steps; an adaptive solve costs two. Second derivatives work.
    States to save are ends of steps here.

    Attributes:
        segments: Stretches that the steps are cut into; None for the square root of their number.

    Example:
        >>> from cflow.ode import RK4
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> Checkpoint().solve(RK4(20), lambda t, y: -y, y0, 0.0, 1.0).y.sum().backward()
        >>> round(y0.grad.item(), 4)
        0.3679
    """

    segments: int | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and self.segments < 1:
            raise DomainError(f"Checkpoint: segments must be at least 1, got {self.segments}")

    def solve(
        self,
        solver: Solver,
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        t0: Time,
        t1: Time,
        *,
        args: tuple[Any, ...] = (),
        parameters: Iterable[Tensor] = (),
        project: Callable[[Any], Any] | None = None,
        save_at: Sequence[float] | Tensor | None = None,
        stop_at: Sequence[float] | Tensor = (),
    ) -> Solution:
        """Solve as `Solver.solve` does."""
        if not isinstance(solver, FixedStep | Adaptive):
            raise DomainError(
                "Checkpoint: needs a fixed or adaptive solver of cflow.ode itself, got "
                f"{solver!r}; use Direct()"
            )
        return _Checkpointed(solver, self.segments).solve(
            f, y0, t0, t1, args=args, project=project, save_at=save_at, stop_at=stop_at
        )


@dataclass(frozen=True, repr=False)
class _Checkpointed(Solver):
    """A solver that keeps the ends of stretches only."""

    solver: FixedStep | Adaptive
    segments: int | None

    @property
    def per_sample(self) -> bool:
        return self.solver.per_sample

    @property
    def adaptive(self) -> bool:
        return self.solver.adaptive

    def _solve(self, problem: Problem, span: Span) -> Solution:
        if not torch.is_grad_enabled():
            return self.solver._solve(problem, span)
        if span.save is not None:
            return in_pieces(problem, span, self._solve)
        if isinstance(self.solver, Adaptive):
            return self._adaptive(self.solver, problem, span)
        return self._fixed(self.solver, problem, span)

    def _fixed(self, solver: FixedStep, problem: Problem, span: Span) -> Solution:
        ticks = solver.ticks(problem, span, solver.nodes)
        nfe: list[int] = []

        def step(k: int, carry: Carry) -> Carry:
            if k and ticks[k].start in span.stops:
                carry = Carry(carry.y, None, ())
            carry, evaluations = solver.step(problem, ticks[k], carry)
            if len(nfe) == k:  # not when a stretch is run again
                nfe.append(evaluations)
            return carry

        def states() -> Iterator[list[Tensor]]:
            carry = Carry(problem.leaves, None, ())
            for k in range(len(ticks)):
                carry = step(k, carry)
                yield carry.y

        last = self._stretches(step, Carry(problem.leaves, None, ()), len(ticks))
        return report(solver, problem, span, ticks, last.y, nfe=sum(nfe), states=states)

    def _adaptive(self, solver: Adaptive, problem: Problem, span: Span) -> Solution:
        record: list[Round] = []
        method = RungeKutta(solver.tableau)
        with torch.no_grad():
            loop = Loop(solver, method, problem, span, record)
            solution = loop.run()
        moves = moves_of(loop, record)
        stops = np.array(span.stops, dtype=np.float64)
        fresh = [  # no slope is carried from the start, nor across a stop
            bool((np.isin(m.start, stops) | (m.start == loop.start[m.index])).any()) for m in moves
        ]
        clocks = [_Clock(move, problem, span) for move in moves]

        def step(k: int, carry: list[Tensor]) -> list[Tensor]:
            rows = clocks[k].rows
            times, sizes = clocks[k].read(method.nodes)
            part = carry if rows is None else [x.index_select(0, rows) for x in carry]
            args = problem.args if rows is None else select_rows(problem.args, rows)
            if fresh[k]:
                y = method.state(part)
                part = method.resume(part, problem.f(times[0], y, args))
            made = method.step(problem, part, args, times, widths(sizes, problem.leaves)).carry
            if rows is None:
                return made
            return [x.index_copy(0, rows, new) for x, new in zip(carry, made, strict=True)]

        start = method.start(problem.leaves, problem.leaves)
        carry = self._stretches(step, start, len(moves))
        return solution._replace(y=problem.tree(method.state(carry)))

    def _stretches(self, step: Callable[[int, Any], Any], carry: Any, count: int) -> Any:  # noqa: ANN401
        segments = self.segments or math.isqrt(max(0, count - 1)) + 1
        size = max(1, math.ceil(count / segments))
        grid = [*range(0, count, size), count]

        def stretch(first: int, last: int, carry: Any) -> Any:  # noqa: ANN401
            def run(carry: Any) -> Any:  # noqa: ANN401
                return march(lambda k, _, c: step(k, c), carry, range(first, last + 1))

            return checkpoint(run, carry, use_reentrant=False)

        return march(stretch, carry, grid)


class _Clock:
    """Times of one move, with the gradients of t0 and t1."""

    def __init__(self, move: Move, problem: Problem, span: Span) -> None:
        leaf = problem.leaves[0]
        assert move.index is not None
        self.move = move
        self.like = leaf.new_empty(0, dtype=problem.time_dtype)
        index = torch.from_numpy(move.index).to(leaf.device)
        self.rows = None if len(move.index) == problem.batch else index
        self.ends: list[Tensor] = []
        if any(isinstance(t, Tensor) and t.requires_grad for t in (span.t0, span.t1)):
            t0, t1 = (
                torch.as_tensor(t, dtype=self.like.dtype, device=leaf.device)
                .expand(problem.batch)
                .index_select(0, index)
                for t in (span.t0, span.t1)
            )
            late = torch.from_numpy(move.end_share).to(self.like)
            early = t0 - t0.detach()
            self.ends = [early, (1 - late) * early + late * (t1 - t1.detach())]

    def read(self, nodes: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        return self.move.clock(nodes, self.like, *self.ends)
