"""The continuous adjoint: solve the state and its sensitivity backward, keeping only the end.

    a' = -(df/dy)^T a,    g' = -(df/dtheta)^T a,    a(t1) = dL/dy(t1),  dL/dtheta = g(t0)

The backward solve runs all samples on one clock, because g is one integral over all of them. Its
gradient is that of the equation, not of the steps taken: it is off by the solver's error, and the
rebuilt states are trusted unseen. `Reversible` is exact at the same memory.
Source: Chen et al. (2018), Neural ordinary differential equations, arXiv 1806.07366, appendix C;
Kidger et al. (2021), "Hey, that's not an ODE": faster ODE adjoints via seminorms, arXiv 2009.09457.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import DomainError
from cflow.ode.adaptive import Adaptive
from cflow.ode.adjoint import Adjoint
from cflow.ode.control import per_leaf, rms_of_leaves
from cflow.ode.pieces import in_pieces
from cflow.ode.problem import Problem, Span, Time
from cflow.ode.reach import cut, floating, inputs_of, refuse_second_order
from cflow.ode.solver import Solution, Solver

__all__ = ["Backsolve"]


@dataclass(frozen=True)
class Backsolve(Adjoint):
    """Solve the adjoint equation backward: memory of one evaluation, gradients of solver accuracy.

    Attributes:
        solver: Solves backward; None for the solver of the forward pass.
        seminorm: Leave the integrals for args and parameters out of the error control, which they
            do not feed back into.

    Example:
        >>> from cflow.ode import Dopri5
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> Backsolve().solve(Dopri5(), lambda t, y: -y, y0, 0.0, 1.0).y.sum().backward()
        >>> round(y0.grad.item(), 3)
        0.368
    """

    solver: Solver | None = None
    seminorm: bool = True

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
        return _Backsolved(solver, self.solver or solver, self.seminorm).solve(
            f, y0, t0, t1, args=args, project=project, save_at=save_at, stop_at=stop_at,
            parameters=parameters,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class _Backsolved(Solver):
    """A solver that keeps nothing but the end."""

    ahead: Solver
    back: Solver
    seminorm: bool

    @property
    def per_sample(self) -> bool:
        return self.ahead.per_sample

    @property
    def adaptive(self) -> bool:
        return self.ahead.adaptive

    def _solve(self, problem: Problem, span: Span) -> Solution:
        if not torch.is_grad_enabled():
            return self.ahead._solve(problem, span)
        if problem.project is not None or span.stops:
            raise DomainError(
                "Backsolve: neither a projected state nor stops can be solved backward; use "
                "Direct() or Checkpoint()"
            )
        if span.save is not None:
            return in_pieces(problem, span, self._solve)
        inputs = inputs_of(problem, span)
        box: list[Solution] = []
        leaves = _Solve.apply(self, cut(problem), span, box, *inputs)
        solution = box[0]  # one more evaluation found what the field reads
        return solution._replace(y=problem.tree(list(leaves)), nfe=solution.nfe + 1)


class _Solve(torch.autograd.Function):
    """Solve without a graph; solve the adjoint equation in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        solver: _Backsolved,
        problem: Problem,
        span: Span,
        box: list[Solution],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        solution = solver.ahead._solve(problem, _detached(span))
        box.append(solution)
        leaves = [leaf.clone() for leaf in pytree.tree_leaves(solution.y)]
        ctx.solver, ctx.problem = solver, problem
        ctx.save_for_backward(*inputs, *leaves)
        return tuple(leaves)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        refuse_second_order("Backsolve")
        problem, count = ctx.problem, len(ctx.problem.leaves)
        inputs, end = ctx.saved_tensors[:-count], list(ctx.saved_tensors[-count:])
        a = [torch.zeros_like(y) if g is None else g for y, g in zip(end, grads, strict=True)]
        needed = ctx.needs_input_grad[4:]
        return None, None, None, None, *_backward(ctx.solver, problem, inputs, needed, end, a)


def _backward(
    solver: _Backsolved,
    problem: Problem,
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    end: list[Tensor],
    a: list[Tensor],
) -> list[Tensor | None]:
    """Return the gradients of the inputs, given the final states and their cotangents."""
    count = len(problem.leaves)
    t0, t1 = (t.detach() for t in inputs[:2])
    flat, spec = pytree.tree_flatten(problem.args)
    places = floating(flat)
    rest = list(inputs[2 + count :])  # floating args, then parameters
    wanted = [k for k, need in enumerate(needed[2 + count :]) if need]

    def rates(
        t: Tensor, y: list[Tensor], a: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return f, (df/dy)^T a, and (df/drest)^T a for what is wanted of the rest."""
        with torch.enable_grad():
            y = [leaf.detach().requires_grad_() for leaf in y]
            own = [x.detach().requires_grad_(x.requires_grad) for x in rest[: len(places)]]
            filled = list(flat)
            for place, x in zip(places, own, strict=True):
                filled[place] = x
            slopes = problem.f(t, y, pytree.tree_unflatten(filled, spec))
        shared = [[*own, *rest[len(places) :]][k] for k in wanted]
        live = [k for k, s in enumerate(slopes) if s.requires_grad]
        grads: list[Tensor | None] = [None] * (count + len(shared))
        if live:
            grads = list(
                torch.autograd.grad(
                    [slopes[k] for k in live],
                    [*y, *shared],
                    [a[k] for k in live],
                    allow_unused=True,
                    retain_graph=True,
                )
            )
        full = [
            torch.zeros_like(x) if g is None else g
            for x, g in zip([*y, *shared], grads, strict=True)
        ]
        return [s.detach() for s in slopes], full[:count], full[count:]

    def f(s: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Run all samples on one clock s from 0 at t1 to 1 at t0."""
        y = [leaf[0] for leaf in state[:count]]
        a = [leaf[0] for leaf in state[count : 2 * count]]
        pace = [_rows(t0 - t1, leaf) for leaf in y]
        scaled = [-x * p for x, p in zip(a, pace, strict=True)]
        slopes, down, gathered = rates(t1 + s * (t0 - t1), y, scaled)
        moved = [x * p for x, p in zip(slopes, pace, strict=True)]
        return [x[None] for x in (*moved, *down, *gathered)]

    zeros = [torch.zeros_like(rest[k]) for k in wanted]
    with torch.no_grad():
        start = [x[None] for x in (*end, *a, *zeros)]
        back = _one_clock(solver.back, problem, count, len(zeros), seminorm=solver.seminorm)
        final = [x[0] for x in back.solve(f, start, 0.0, 1.0).y]
        y0, a0, gathered = final[:count], final[count : 2 * count], final[2 * count :]
        found: list[Tensor | None] = [None] * len(needed)
        for k, (t, y, cotangent, sign) in enumerate(((t0, y0, a0, -1.0), (t1, end, a, 1.0))):
            if needed[k]:
                slopes = problem.f(t, y, problem.args)
                total = torch.zeros_like(t)
                for x, slope in zip(cotangent, slopes, strict=True):
                    total += (x * slope).reshape(problem.batch, -1).sum(1).to(t.dtype)
                found[k] = sign * total
    for k in range(count):
        found[2 + k] = a0[k] if needed[2 + k] else None
    for k, g in zip(wanted, gathered, strict=True):
        found[2 + count + k] = g
    return found


def _one_clock(
    solver: Solver, problem: Problem, states: int, gathered: int, *, seminorm: bool
) -> Solver:
    """Give an adaptive solver the tolerances of the joint state, integrals left out if asked."""
    if not isinstance(solver, Adaptive):
        return solver
    rtol = per_leaf("rtol", solver.rtol, problem.leaves)
    atol = per_leaf("atol", solver.atol, problem.leaves)
    free = [math.inf] * gathered if seminorm else [atol[0]] * gathered
    return replace(
        solver,
        rtol=(*rtol, *rtol, *(rtol[0],) * gathered),
        atol=(*atol, *atol, *free),
        norm=rms_of_leaves,
        initial_step=None,
        throw=True,
    )


def _detached(span: Span) -> Span:
    t0, t1 = (t.detach() if isinstance(t, Tensor) else t for t in (span.t0, span.t1))
    return replace(span, t0=t0, t1=t1)


def _rows(t: Tensor, leaf: Tensor) -> Tensor:
    return t.to(leaf.dtype).reshape(-1, *(1,) * (leaf.dim() - 1))
