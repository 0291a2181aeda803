"""The loop of an adaptive solve, in which every sample has its own time, step size and error.

Samples that have arrived or failed leave the batch, so they cost nothing and cannot be changed by
their mates. How steps are judged and chosen is in `control`; a step's arithmetic in `step`.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.ode.clock import node_times
from cflow.ode.control import error_size, first_step, numbers, per_leaf
from cflow.ode.dense import Dense, Piece
from cflow.ode.problem import Problem, Span
from cflow.ode.rows import Rows
from cflow.ode.solver import Solution, Status, finite_rows, march, raise_failures
from cflow.ode.step import Method, Step, between, widths

if TYPE_CHECKING:
    from cflow.ode.adaptive import Adaptive

__all__ = ["Loop", "Round", "times_of_rows"]

BROKEN = 1e8  # scaled errors beyond this, and NaN, mark a trial that must not share a graph


class Round(NamedTuple):
    """Hold which samples took a step together, and from when to when."""

    rows: np.ndarray
    start: np.ndarray
    end: np.ndarray


class Loop:
    """Solve one problem adaptively with any one-step method that estimates its error.

    Args:
        solver: The options.
        method: The step.
        problem: What to solve.
        span: From when to when, and what to keep.
        record: Filled with the accepted steps, for adjoints that retrace them.
    """

    def __init__(
        self,
        solver: "Adaptive",
        method: Method,
        problem: Problem,
        span: Span,
        record: list[Round] | None = None,
    ) -> None:
        self.solver, self.method, self.problem, self.span = solver, method, problem, span
        self.record = record
        self.rtol = per_leaf("rtol", solver.rtol, problem.leaves)
        self.atol = per_leaf("atol", solver.atol, problem.leaves)
        self.nodes = np.asarray((*method.nodes, 1.0))[:, None]  # the last row is the size itself
        first = method.nodes.index(1.0) if 1.0 in method.nodes else len(method.nodes)
        self.ends = slice(first, first + method.nodes.count(1.0))  # they stand together
        self.start, self.end = (times_of_rows(t, problem.batch) for t in (span.t0, span.t1))
        self.moved = [_moved(t, problem.batch) for t in (span.t0, span.t1)]
        self.moving = any(m is not None for m in self.moved)
        self.keeps = record is not None or span.dense or span.save is not None
        self.longest = 0  # attempts so far, no fewer than those of any sample
        self.epsilon = torch.finfo(problem.time_dtype).eps
        self.save = np.asarray(span.save or (), dtype=np.float64)
        self.kept: list[tuple[np.ndarray, np.ndarray, list[Tensor]]] = []
        self.pieces: list[Piece] = []
        self.carry: list[Tensor] = []  # that of all samples, once run

    def run(self) -> Solution:
        """Solve, and report."""
        with np.errstate(all="ignore"):
            rows = self._start()
            rows = march(self._stretch, rows, [self.span.t0, *self.span.stops, self.span.t1])
            self.carry = rows.carry
            return self._report(rows)

    def _start(self) -> Rows:
        problem = self.problem
        batch = problem.batch
        zero = np.zeros(batch, dtype=np.int64)
        start = self.start
        index = np.arange(batch)
        rows = Rows(
            self.method.start(problem.leaves, problem.leaves),  # slopes follow in the stretch
            problem.args, index, start, np.zeros(batch), np.ones(batch),
            zero, zero.copy(), zero.copy(), zero.copy(), zero.copy(),
        )  # fmt: skip
        here = len(self.save) and self.save[0] == start[0]
        while here and rows.saved[0] < len(self.save) and self.save[rows.saved[0]] == start[0]:
            self.kept.append((index, rows.saved.copy(), problem.leaves))
            rows.saved = rows.saved + 1
        return rows

    def _stretch(self, t: object, t_next: object, rows: Rows) -> Rows:
        """Bring every sample that has not failed to t_next."""
        goal = self.end if t_next is self.span.t1 else times_of_rows(t_next, self.problem.batch)
        going = (rows.t != goal) & (rows.status == Status.DONE)
        if not going.any():
            return rows
        finished = [] if going.all() else [rows.select(~going)]
        live = rows if going.all() else rows.select(going)
        live, failed = self._set_out(live, goal)
        finished += failed
        ends = goal[live.index]
        while len(live):
            live = self._attempt(live, ends)
            going = (live.t != ends) & (live.status == Status.DONE)
            if not going.all():
                finished.append(live.select(~going))
                live = live.select(going)
                ends = goal[live.index]
        return Rows.join(finished, self.problem.args)

    def _set_out(self, rows: Rows, goal: np.ndarray) -> tuple[Rows, list[Rows]]:
        """Evaluate the slope at the start of a stretch; part with rows that have none."""
        problem, solver = self.problem, self.solver
        y = self.method.state(rows.carry)
        still = np.zeros(len(rows))
        times, _ = self._clock(rows, still, goal[rows.index], still > 0)
        slope = problem.f(times[0], y, rows.args)
        rows.nfe += 1
        fine = finite_rows([*y, *slope]).cpu().numpy()
        if not fine.all():
            failed = rows.select(~fine)
            failed.status = np.full(len(failed), int(Status.NON_FINITE))
            if not fine.any():
                return rows.select(fine), [failed]
            live, others = self._set_out(rows.select(fine), goal)  # a graph without NaN in it
            return live, [failed, *others]
        if not rows.h.any():
            size = solver.initial_step
            if size is None:
                h = first_step(
                    problem, slope, rows.args, rows.t, goal[rows.index], y,
                    self.rtol, self.atol, solver.norm, solver.tableau.order,
                )  # fmt: skip
                rows.h = h
                rows.nfe += 1
            else:
                rows.h = size * np.sign(goal[rows.index] - rows.t)
        rows.carry = self.method.resume(rows.carry, slope)
        return rows, []

    def _attempt(self, rows: Rows, goal: np.ndarray) -> Rows:
        """Try one step for every row; rows whose error is too large stay where they are."""
        rest = goal - rows.t
        last = rows.h / rest >= 1 - 1e-6
        h = np.where(last, rest, rows.h)
        t_next = np.where(last, goal, rows.t + h)
        times, sizes = self._clock(rows, h, t_next, last)
        width = widths(sizes, self.problem.leaves)
        step = self.method.step(self.problem, rows.carry, rows.args, times, width)
        rows.nfe += step.evaluations
        solver = self.solver
        size = error_size(step, width, self.rtol, self.atol, solver.norm)
        ok = size <= 1
        if ok.all():
            if self.keeps:
                self._keep(rows, step, width, ok, t_next)
            rows.carry = step.carry
            self._accept(rows, h, t_next, last, size)
            self._count(rows, goal)
            return rows
        broken = ~(size < BROKEN)
        if broken.any() and not broken.all() and step.y_next[0].requires_grad:
            # A NaN times a zero gradient is a NaN: such rows must not share a graph with others.
            good, bad = rows.select(~broken), rows.select(broken)
            good = self._attempt(good, goal[~broken])
            self._judge(bad, h[broken], t_next[broken], last[broken], goal[broken], size[broken])
            return Rows.join([good, bad], rows.args)
        if self.keeps and ok.any():
            self._keep(rows, step, width, ok, t_next)
        rows.carry = _choose(ok, step.carry, rows.carry)
        self._judge(rows, h, t_next, last, goal, size)
        return rows

    def _accept(
        self, rows: Rows, h: np.ndarray, t_next: np.ndarray, last: np.ndarray, size: np.ndarray
    ) -> None:
        """Move the clocks of rows that were all accepted, and choose the next sizes."""
        wish = h * self.solver.controller.factor(size, rows.size, self.solver.tableau.order)
        if last.any():  # a step that its goal cut short says little about the one after it
            wish = np.where(last & (np.abs(rows.h) > np.abs(wish)), rows.h, wish)
        rows.h = wish
        rows.t, rows.size = t_next, np.maximum(size, 1e-4)
        rows.accepted += 1

    def _judge(
        self,
        rows: Rows,
        h: np.ndarray,
        t_next: np.ndarray,
        last: np.ndarray,
        goal: np.ndarray,
        size: np.ndarray,
    ) -> None:
        """Move the clocks of accepted rows, choose the next sizes, and fail rows that cannot."""
        solver = self.solver
        ok = size <= 1
        factor = solver.controller.factor(size, rows.size, solver.tableau.order)
        wish = h * np.where(ok, factor, np.minimum(factor, 0.9))
        longer = ok & last & (np.abs(rows.h) > np.abs(wish))
        rows.h = np.where(longer, rows.h, wish)
        rows.t = np.where(ok, t_next, rows.t)
        rows.size = np.where(ok, np.maximum(size, 1e-4), rows.size)
        rows.accepted += ok
        rows.rejected += ~ok
        floor = self.epsilon * np.maximum(np.abs(rows.t), np.abs(goal))
        tiny = ~ok & (np.abs(wish) <= np.maximum(floor, solver.min_step))
        cause = np.where(np.isfinite(size), int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
        rows.status = np.where(tiny, cause, rows.status)
        self._count(rows, goal)

    def _count(self, rows: Rows, goal: np.ndarray) -> None:
        """Fail rows that have spent their steps and not arrived."""
        self.longest += 1
        if self.longest < self.solver.max_steps:
            return
        spent = (rows.accepted + rows.rejected >= self.solver.max_steps) & (rows.t != goal)
        spent &= rows.status == Status.DONE
        rows.status = np.where(spent, int(Status.STEPS_EXHAUSTED), rows.status)

    def _clock(
        self, rows: Rows, h: np.ndarray, t_next: np.ndarray, last: np.ndarray
    ) -> tuple[list[Tensor], Tensor]:
        """Return the times of the nodes and the sizes as tensors, with the gradients of t0, t1."""
        table = self.nodes * h
        table[:-1] += rows.t
        table[self.ends] = t_next
        if self.span.stops:
            stops, dtype = self.span.stops, self.problem.time_dtype
            table[:-1] = node_times(self.method.nodes, rows.t, t_next, stops, dtype)
        leaf = self.problem.leaves[0]
        tensor = torch.from_numpy(table).to(self.problem.time_dtype).to(leaf.device)
        if self.moving:
            start, end = self._shifts(rows, tensor)
            share = torch.from_numpy(self.nodes).to(tensor)
            reach = (end - start) * torch.from_numpy(last).to(tensor)
            shift = share * reach
            tensor = tensor + torch.cat([start + shift[:-1], shift[-1:]])
        *times, sizes = tensor.unbind(0)
        return times, sizes

    def _shifts(self, rows: Rows, like: Tensor) -> list[Tensor]:
        """Return zeros that carry the gradients of t0 and of t1 for these rows."""
        index = torch.from_numpy(rows.index).to(like.device)
        return [
            torch.zeros(len(rows)).to(like) if m is None else m.to(like).index_select(0, index)
            for m in self.moved
        ]

    def _keep(
        self, rows: Rows, step: Step, width: list[Tensor], ok: np.ndarray, t_next: np.ndarray
    ) -> None:
        """Keep what was asked for of the accepted rows: record, dense output, saved states."""
        if self.record is not None:
            self.record.append(Round(rows.index[ok], rows.t[ok], t_next[ok]))
        tableau = self.solver.tableau
        if self.span.dense:
            start = np.where(ok, rows.t, np.nan)
            self.pieces.append(Piece(rows.index, start, t_next, step, width, tableau))
        if not len(self.save):
            return
        sign = np.sign(t_next - rows.t)
        while True:
            due = self.save[np.minimum(rows.saved, len(self.save) - 1)]
            hit = ok & (rows.saved < len(self.save)) & (sign * (due - t_next) <= 0)
            if not hit.any():
                return
            share = np.where(hit, (due - rows.t) / (t_next - rows.t), 0.0)
            states = between(tableau, step, width, share)
            if self.problem.project is not None:
                states = self.problem.project(states)
            states = _choose(due == t_next, step.y_next, states)
            pick = torch.from_numpy(np.flatnonzero(hit)).to(states[0].device)
            taken = [state.index_select(0, pick) for state in states]
            self.kept.append((rows.index[hit], rows.saved[hit], taken))
            rows.saved = rows.saved + hit

    def _report(self, rows: Rows) -> Solution:
        problem, solver = self.problem, self.solver
        device = problem.leaves[0].device
        count = lambda a: torch.from_numpy(a).to(device)
        reached = count(rows.t).to(problem.time_dtype)
        status, steps = count(rows.status), count(rows.accepted + rows.rejected)
        if solver.throw and rows.status.any():
            raise_failures(type(solver).__name__, status, reached, steps)
        ts, out = self.span.t1, self.method.state(rows.carry)
        if self.span.save is not None:
            ts = torch.tensor(self.span.save, dtype=problem.time_dtype)
            out = self._saved(rows, out)
        dense = Dense(problem, self.pieces, rows.t) if self.span.dense else None
        accepted, rejected = count(rows.accepted), count(rows.rejected)
        return Solution(
            problem.tree(out), ts, count(rows.nfe), accepted, rejected, status, reached, dense
        )

    def _saved(self, rows: Rows, last: list[Tensor]) -> list[Tensor]:
        """Sort the saved states by time and sample; failed samples repeat their last good one."""
        kept = list(self.kept)
        for k in range(len(self.save)):
            missing = np.flatnonzero(rows.saved <= k)
            if len(missing):
                pick = torch.from_numpy(missing).to(last[0].device)
                taken = [leaf.index_select(0, pick) for leaf in last]
                kept.append((missing, np.full(len(missing), k), taken))
        batch = self.problem.batch
        place = np.concatenate([number * batch + index for index, number, _ in kept])
        order = torch.from_numpy(np.argsort(place)).to(last[0].device)
        leaves = [torch.cat(list(column)) for column in zip(*(k[2] for k in kept), strict=True)]
        return [
            leaf.index_select(0, order).unflatten(0, (len(self.save), batch)) for leaf in leaves
        ]


def _choose(ok: np.ndarray, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    if ok.all():
        return new
    if not ok.any():
        return old
    mask = torch.from_numpy(ok).to(new[0].device)
    return [
        torch.where(mask.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    ]


def times_of_rows(t: object, batch: int) -> np.ndarray:
    """Return one time for each sample as plain numbers."""
    if isinstance(t, Tensor):
        return np.broadcast_to(numbers(t), (batch,))
    return np.full(batch, t, dtype=np.float64)


def _moved(t: object, batch: int) -> Tensor | None:
    """Return zeros that carry the gradient of a time, or None where it has none."""
    if not isinstance(t, Tensor) or not t.requires_grad:
        return None
    return (t - t.detach()).expand(batch)
