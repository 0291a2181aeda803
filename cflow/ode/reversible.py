"""An algebraically reversible scheme on a pair of states, with its exact gradient in fixed memory.

    y_{n+1} = lambda y_n + (1 - lambda) z_n + Psi_h(t_n, z_n)
    z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1}),                      z_0 = y_0

Psi is the increment of any explicit Runge-Kutta step. Both lines can be solved for the states
before, so the backward pass rebuilds them instead of keeping them; its gradient is that of
backpropagation through the same steps, to rounding.
Source: McCallum and Foster (2024), Efficient, accurate and stable gradients for neural ODEs,
arXiv 2410.11648, equations 2 to 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import DomainError
from cflow.ode.adaptive import Adaptive
from cflow.ode.fixed import FixedRungeKutta, report
from cflow.ode.loop import Loop, Round, times_of_rows
from cflow.ode.moves import Move, moves_of
from cflow.ode.pair import Pair
from cflow.ode.pieces import in_pieces
from cflow.ode.problem import Problem, Span
from cflow.ode.reach import cut, floating, inputs_of, refuse_second_order
from cflow.ode.retrace import Retrace, Trace
from cflow.ode.solver import Solution, Solver, march
from cflow.ode.ticks import Tick

__all__ = ["Reversible"]


@dataclass(frozen=True, repr=False)
class Reversible(Solver):
    """Solve reversibly: gradients exact to rounding, in memory that does not grow with the steps.

    Costs about twice the evaluations of its solver. What is kept is the final pair of states and
    the times of the accepted steps. Rebuilding multiplies rounding errors by 1/lambda a step, and
    by far more where the field is stiff: the rebuilt start is therefore compared with the true
    one, and a backward pass that has lost it raises.

    Attributes:
        solver: Any explicit Runge-Kutta solver of this package, fixed or adaptive.
        coupling: lambda; below 1 it damps the difference of the two states.
        tolerance: Largest |rebuilt - true| / (1 + |true|) of the start; None for the square root of
            the machine precision.
        backward: "rebuild" as above, or "direct" to differentiate through the same steps while
            autograd keeps them (for comparison; memory grows with the steps).

    References:
        McCallum and Foster (2024), arXiv 2410.11648.

    Example:
        >>> from cflow.ode import RK4
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> Reversible(RK4(20)).solve(lambda t, y: -y, y0, 0.0, 1.0).y.sum().backward()
        >>> round(y0.grad.item(), 4)
        0.3679
    """

    solver: FixedRungeKutta | Adaptive
    coupling: float = 0.999
    tolerance: float | None = None
    backward: Literal["rebuild", "direct"] = "rebuild"

    def __post_init__(self) -> None:
        if not isinstance(self.solver, FixedRungeKutta | Adaptive):
            raise DomainError(
                "Reversible: solver must be an explicit Runge-Kutta solver of cflow.ode, got "
                f"{self.solver!r}"
            )
        if not 0 < self.coupling <= 1:
            raise DomainError(f"Reversible: coupling must lie in (0, 1], got {self.coupling}")

    @property
    def per_sample(self) -> bool:
        return True

    @property
    def adaptive(self) -> bool:
        return self.solver.adaptive

    def _solve(self, problem: Problem, span: Span) -> Solution:
        if problem.project is not None:
            raise DomainError(
                "Reversible: a projected state cannot be rebuilt from the one after it; use "
                "Direct() or Checkpoint() on a manifold"
            )
        if span.dense:
            raise DomainError("Reversible: has no dense output; name the times in save_at")
        if span.save is not None:
            return in_pieces(problem, span, self._solve)
        run = _Run(self, span)
        if self.backward == "direct" or not torch.is_grad_enabled():
            return run.forward(problem)
        inputs = inputs_of(problem, span)
        if not any(x.requires_grad for x in inputs):
            solution = run.forward(problem)
            return solution._replace(nfe=solution.nfe + 1)
        leaves = _Rebuild.apply(run, cut(problem), *inputs)
        assert run.solution is not None
        solution = run.solution  # one more evaluation found what the field reads
        return solution._replace(y=problem.tree(list(leaves)), nfe=solution.nfe + 1)


class _Run:
    """One solve: its forward pass, and what the backward pass needs of it."""

    def __init__(self, options: Reversible, span: Span) -> None:
        self.options, self.span = options, span
        self.method = Pair(options.solver.tableau, options.coupling)
        self.carry: list[Tensor] = []
        self.moves: list[Move] = []
        self.solution: Solution | None = None

    def forward(self, problem: Problem) -> Solution:
        """Solve; keep the final pair and the moves."""
        if isinstance(self.options.solver, Adaptive):
            self.solution = self._adaptive(self.options.solver, problem)
        else:
            self.solution = self._fixed(self.options.solver, problem)
        return self.solution

    def _adaptive(self, solver: Adaptive, problem: Problem) -> Solution:
        record: list[Round] = []
        loop = Loop(solver, self.method, problem, self.span, record)
        solution = loop.run()
        self.carry = loop.carry
        self.moves = moves_of(loop, record)
        return solution

    def _fixed(self, solver: FixedRungeKutta, problem: Problem) -> Solution:
        method, ticks = self.method, solver.ticks(problem, self.span, self.method.nodes)

        def step(k: int, _: int, carry: list[Tensor]) -> list[Tensor]:
            tick = ticks[k]
            return method.step(problem, carry, problem.args, tick.times, tick.h).carry

        def states() -> Iterator[list[Tensor]]:
            carry = method.start(problem.leaves, problem.leaves)
            for k in range(len(ticks)):
                carry = step(k, k + 1, carry)
                yield method.state(carry)

        start = method.start(problem.leaves, problem.leaves)
        self.carry = march(step, start, range(len(ticks) + 1))
        self.moves = [self._move(problem.batch, tick) for tick in ticks]
        nfe = (method.tableau.stages + method.back.stages) * len(ticks)
        y = method.state(self.carry)
        return report(solver, problem, self.span, ticks, y, nfe=nfe, states=states)

    def _move(self, batch: int, tick: Tick) -> Move:
        t0, t1 = (times_of_rows(t, batch) for t in (self.span.t0, self.span.t1))
        start, end = np.full(batch, tick.start), np.full(batch, tick.end)
        if isinstance(self.span.t0, Tensor) or isinstance(self.span.t1, Tensor):
            return Move(None, t0 + start * (t1 - t0), t0 + end * (t1 - t0), start, end, ())
        early, late = (start - t0) / (t1 - t0), (end - t0) / (t1 - t0)
        return Move(None, start, end, early, late, self.span.stops)


class _Rebuild(torch.autograd.Function):
    """Solve without a graph; the backward pass retraces the solve."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        run: _Run,
        problem: Problem,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        solution = run.forward(problem)
        flat = pytree.tree_leaves(problem.args)
        ctx.trace = Trace(
            run.method, problem, run.carry, run.moves, floating(flat), run.options.tolerance
        )
        ctx.save_for_backward(*inputs)
        return tuple(leaf.clone() for leaf in pytree.tree_leaves(solution.y))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        refuse_second_order("Reversible")
        retrace = Retrace(ctx.trace, ctx.saved_tensors, ctx.needs_input_grad[2:], grads)
        return None, None, *retrace.run()
