"""Adaptive Runge-Kutta solving in which every sample has its own time, step size and error.

A step is accepted when the norm of error / (atol + rtol max(|y|, |y_next|)) is at most 1; the next
one is h * clip(0.9 norm^(-1/order), 0.2, 10). Samples that have arrived leave the batch, so they
cost nothing and cannot be changed by their mates. Step sizes are constants to autograd: the
gradient is that of the accepted steps.
Source: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, II.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.errors import DomainError, SolverError, expect_positive
from cflow.ode.fixed import advance, stages
from cflow.ode.solver import Problem, Solution, Solver, Status, Time, finite_rows, march
from cflow.ode.tableau import DOPRI5, Tableau

__all__ = ["Adaptive", "Dopri5", "rms_of_leaves"]

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


def rms_of_leaves(ratios: Sequence[Tensor]) -> Tensor:
    """Measure scaled errors sample by sample: the largest root mean square over the leaves.

    Taking the largest leaf, not the mean over all entries, gives a tracked log-determinant the
    same say as the whole point, however many axes that has.

    Args:
        ratios: Error over tolerance, one tensor `(batch, ...)` for each leaf of the state.

    Returns:
        One norm per sample, `(batch,)`.

    Example:
        >>> rms_of_leaves([torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])])
        tensor([3.5355])
    """
    flat = [r[..., None].flatten(1) for r in ratios]
    return torch.stack([r.square().mean(1).sqrt() for r in flat if r.shape[1]]).amax(0)


@dataclass(frozen=True)
class Adaptive(Solver):
    """Step with an embedded pair under per-sample error control; what differs is the tableau.

    Attributes:
        rtol: Tolerated error relative to the state.
        atol: Tolerated absolute error, in the units of the state.
        max_steps: Attempts that each sample may spend on the whole solve.
        norm: Maps scaled errors to one number per sample; 1 is the tolerance.
        throw: Raise when a sample fails; otherwise its last good state comes back with its status.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000
    norm: Callable[[Sequence[Tensor]], Tensor] = field(default=rms_of_leaves, repr=False)
    throw: bool = True

    tableau: ClassVar[Tableau]
    per_sample: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        expect_positive(type(self).__name__, rtol=self.rtol, atol=self.atol)
        if isinstance(self.max_steps, bool) or self.max_steps < 1:
            raise DomainError(
                f"{type(self).__name__}: max_steps must be at least 1, got {self.max_steps!r}"
            )

    def _solve(self, problem: Problem, stops: Sequence[Time], *, save: bool) -> Solution:
        visited: list[list[Tensor]] = []

        def stretch(t: Time, t_next: Time, rows: "_Rows") -> "_Rows":
            return self._stretch(problem, rows, t_next)

        def visit(t: Time, rows: "_Rows") -> None:
            visited.append(rows.y)

        start = self._start(problem, stops[0], stops[-1])
        rows = march(stretch, start, stops, visit=visit if save else None)
        if self.throw:
            self._raise_failures(rows)
        ts, out = stops[-1], rows.y
        if save:
            ts = torch.tensor(stops[1:-1], dtype=problem.time_dtype)
            out = [torch.stack(leaf) for leaf in zip(*visited[1:-1], strict=True)]
        tree = problem.tree(out)
        return Solution(tree, ts, rows.nfe, rows.accepted, rows.rejected, rows.status)

    def _start(self, problem: Problem, t0: Time, t1: Time) -> "_Rows":
        """Evaluate the first slope and guess each sample's first step (Hairer et al., II.4)."""
        y, batch, device = problem.leaves, problem.batch, problem.leaves[0].device
        t = torch.as_tensor(t0, dtype=problem.time_dtype, device=device).expand(batch)
        end = torch.as_tensor(t1, dtype=problem.time_dtype, device=device).expand(batch)
        slope = problem.f(t, y, problem.args)
        with torch.no_grad():
            span = end - t
            sign = torch.sign(span)
            scale = [self.atol + self.rtol * leaf.abs() for leaf in y]
            d0 = self.norm([leaf / s for leaf, s in zip(y, scale, strict=True)])
            d1 = self.norm([k / s for k, s in zip(slope, scale, strict=True)])
            small = (d0 < 1e-5) | (d1 < 1e-5)
            h0 = torch.where(small, 1e-6, 0.01 * d0 / d1).to(t.dtype)
            h0 = torch.nan_to_num(h0, nan=1e-6).minimum(span.abs()) * sign
            probe = problem.f(t + h0, advance(y, h0, (1.0,), [slope]), problem.args)
            change = [(b - a) / s for a, b, s in zip(slope, probe, scale, strict=True)]
            d2 = self.norm(change) / h0.abs()
            worst = torch.maximum(d1, d2)
            h1 = (0.01 / worst) ** (1.0 / self.tableau.order)
            h1 = torch.where(worst <= 1e-15, (1e-3 * h0.abs()).clamp(min=1e-6), h1)
            h = torch.nan_to_num(torch.minimum(100 * h0.abs(), h1), nan=1e-6).to(t.dtype) * sign
            finite = finite_rows(y) & finite_rows(slope)
        zero = torch.zeros(batch, dtype=torch.long, device=device)
        status = torch.where(finite, int(Status.DONE), int(Status.NON_FINITE))
        index = torch.arange(batch, device=device)
        return _Rows(y, slope, problem.args, t, h, zero + 2, zero, zero, status, index)

    def _stretch(self, problem: Problem, rows: "_Rows", t_next: Time) -> "_Rows":
        """Bring every sample that has not failed to t_next."""
        device = rows.t.device
        end = torch.as_tensor(t_next, dtype=rows.t.dtype, device=device).expand(len(rows.t))
        finished: list[_Rows] = []
        live = rows
        while len(live.t):
            goal = end[live.index]
            going = (live.t != goal) & (live.status == Status.DONE)
            if not bool(going.all()):
                finished.append(live.select(~going))
                live = live.select(going)
                continue
            live = self._attempt(problem, live, goal)
        return rows if not finished else _Rows.join(finished)

    def _attempt(self, problem: Problem, rows: "_Rows", goal: Tensor) -> "_Rows":
        """Try one step for every row; rows whose error is too large stay where they are."""
        rest = goal - rows.t
        last = rows.h.abs() >= rest.abs() * (1 - 1e-6)
        h = torch.where(last, rest, rows.h)
        y_new, slopes = stages(self.tableau, problem, rows.args, rows.t, h, rows.y, k1=rows.slope)
        evaluations = self.tableau.stages - 1
        if problem.project is not None:
            y_new = problem.project(y_new)
        if problem.project is not None or not self.tableau.fsal:
            slope_new = problem.f(torch.where(last, goal, rows.t + h), y_new, rows.args)
            evaluations += 1
        else:
            slope_new = slopes[-1]
        with torch.no_grad():
            size = self._size(rows.y, y_new, slopes, h)
            accept = (size <= 1) & finite_rows(y_new) & finite_rows(slope_new)
            factor = (SAFETY * size ** (-1.0 / self.tableau.order)).to(h.dtype)
            factor = torch.nan_to_num(factor, nan=SHRINK, posinf=GROW).clamp(SHRINK, GROW)
            factor = torch.where(accept, factor, factor.clamp(max=1.0 - 1e-3))
            # A step that was cut short by the goal says little about the one after it.
            proposal = torch.where(
                accept & last, torch.maximum((h * factor).abs(), rows.h.abs()), (h * factor).abs()
            ) * torch.sign(rest)
        t = torch.where(accept, torch.where(last, goal, rows.t + h), rows.t)
        nfe, accepted = rows.nfe + evaluations, rows.accepted + accept
        rejected = rows.rejected + ~accept
        status = self._status(rows, accept, accepted + rejected, t, goal, proposal, size)
        return replace(
            rows,
            y=[_choose(accept, a, b) for a, b in zip(y_new, rows.y, strict=True)],
            slope=[_choose(accept, a, b) for a, b in zip(slope_new, rows.slope, strict=True)],
            t=t,
            h=proposal,
            nfe=nfe,
            accepted=accepted,
            rejected=rejected,
            status=status,
        )

    def _size(
        self, y: list[Tensor], y_new: list[Tensor], slopes: list[list[Tensor]], h: Tensor
    ) -> Tensor:
        assert self.tableau.error is not None
        error = advance([torch.zeros_like(leaf) for leaf in y], h, self.tableau.error, slopes)
        ratios = [
            e / (self.atol + self.rtol * torch.maximum(a.abs(), b.abs()))
            for e, a, b in zip(error, y, y_new, strict=True)
        ]
        return self.norm(ratios)

    def _status(
        self,
        rows: "_Rows",
        accept: Tensor,
        attempts: Tensor,
        t: Tensor,
        goal: Tensor,
        proposal: Tensor,
        size: Tensor,
    ) -> Tensor:
        """Fail a row that has not arrived and has no steps left, or only steps too small for t."""
        status = rows.status
        arrived = t == goal
        resolution = torch.finfo(t.dtype).eps * torch.maximum(t.abs(), goal.abs())
        tiny = proposal.abs() <= resolution
        cause = torch.where(
            torch.isfinite(size), int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE)
        )
        status = torch.where(~arrived & ~accept & tiny, cause, status)
        spent = ~arrived & (attempts >= self.max_steps) & (status == Status.DONE)
        return torch.where(spent, int(Status.STEPS_EXHAUSTED), status)

    def _raise_failures(self, rows: "_Rows") -> None:
        failed = torch.nonzero(rows.status != Status.DONE).flatten()
        if not len(failed):
            return
        first = int(failed[0])
        reason = Status(int(rows.status[first])).name.lower().replace("_", " ")
        raise SolverError(
            f"{type(self).__name__}.solve: {len(failed)} of {len(rows.status)} samples failed; "
            f"sample {first} stopped at t={rows.t[first].item():.6g} ({reason} after "
            f"{int(rows.accepted[first] + rows.rejected[first])} steps); check the field there, "
            "raise max_steps or the tolerances, or pass throw=False to keep the last good states"
        )


@dataclass(frozen=True)
class Dopri5(Adaptive):
    """The Dormand-Prince pair of order 5(4): six evaluations a step.

    References:
        Dormand and Prince (1980), A family of embedded Runge-Kutta formulae.

    Example:
        >>> solution = Dopri5(rtol=1e-8, atol=1e-8).solve(
        ...     lambda t, y: -y, torch.ones(2, 1, dtype=torch.float64), 0.0, 1.0
        ... )
        >>> bool((solution.y - torch.tensor(-1.0).exp()).abs().max() < 1e-7)
        True
    """

    tableau: ClassVar[Tableau] = DOPRI5


@dataclass(frozen=True)
class _Rows:
    """The samples still under way (or finished): all that one of them owns, row by row."""

    y: list[Tensor]
    slope: list[Tensor]
    args: list[Any]
    t: Tensor
    h: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    index: Tensor

    def select(self, mask: Tensor) -> "_Rows":
        """Keep the rows where mask holds."""
        rows = torch.nonzero(mask).flatten()
        return self._map(lambda x: x.index_select(0, rows) if isinstance(x, Tensor) else x)

    def _map(self, take: Callable[[Any], Any]) -> "_Rows":
        return _Rows(
            [take(x) for x in self.y],
            [take(x) for x in self.slope],
            [take(x) for x in self.args],
            take(self.t),
            take(self.h),
            take(self.nfe),
            take(self.accepted),
            take(self.rejected),
            take(self.status),
            take(self.index),
        )

    @staticmethod
    def join(parts: list["_Rows"]) -> "_Rows":
        """Put finished parts together in the original order."""
        if len(parts) == 1:
            return parts[0]
        order = torch.argsort(torch.cat([part.index for part in parts]))

        def cat(pieces: list[Any]) -> Any:  # noqa: ANN401
            if not isinstance(pieces[0], Tensor):
                return pieces[0]
            return torch.cat(pieces).index_select(0, order)

        def leaves(name: str) -> list[Any]:
            columns = zip(*(getattr(part, name) for part in parts), strict=True)
            return [cat(list(column)) for column in columns]

        names = ("t", "h", "nfe", "accepted", "rejected", "status", "index")
        rest = {name: cat([getattr(part, name) for part in parts]) for name in names}
        return _Rows(leaves("y"), leaves("slope"), leaves("args"), **rest)


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.reshape(accept.shape + (1,) * (new.dim() - 1)), new, old)
