"""The backward pass of a reversible solve: rebuild each step, differentiate it, forget it.

    z_n = z_{n+1} + Psi_{-h}(t_{n+1}, y_{n+1})
    y_n = (y_{n+1} - (1 - lambda) z_n - Psi_h(t_n, z_n)) / lambda

The two increments are evaluated once, with a graph of their own, for the states and the gradient.
Source: McCallum and Foster (2024), arXiv 2410.11648, equation 4 and algorithm 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import SolverError
from cflow.ode.moves import Move
from cflow.ode.pair import Pair
from cflow.ode.problem import Problem, select_rows
from cflow.ode.step import widths

__all__ = ["Retrace", "Trace"]


@dataclass(frozen=True)
class Trace:
    """Hold what a solve leaves behind for its backward pass.

    Attributes:
        method: The step.
        problem: The problem, cut from the caller's graph.
        carry: The last pair of states, y and then z.
        moves: All steps, in order.
        floating: Which of the flat args are floating tensors.
        tolerance: Largest mismatch of the rebuilt start; None for the default.
    """

    method: Pair
    problem: Problem
    carry: list[Tensor]
    moves: list[Move]
    floating: list[int]
    tolerance: float | None


class Retrace:
    """The backward pass of one solve: the pair, its adjoints, and the gradients gathered so far.

    Args:
        trace: What the forward pass left.
        inputs: Times t0 and t1, leaves of the state, floating args, parameters.
        needed: Which of them want gradients.
        grads: Cotangents of the final y.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: Sequence[Tensor],
        needed: Sequence[bool],
        grads: Sequence[Tensor | None],
    ) -> None:
        self.of, self.problem, self.needed = trace, trace.problem, list(needed)
        count = len(trace.problem.leaves)
        self.first, last = 2 + count, 2 + count + len(trace.floating)
        self.parameters = list(inputs[last:])
        self.y, self.z = trace.carry[:count], trace.carry[count:]
        self.ay = [
            torch.zeros_like(y) if g is None else g for y, g in zip(self.y, grads, strict=True)
        ]
        self.az = [torch.zeros_like(z) for z in self.z]
        self.times = [torch.zeros_like(x) for x in inputs[:2]]
        self.args = [torch.zeros_like(x) for x in inputs[self.first : last]]
        self.totals: list[Tensor | None] = [None] * len(self.parameters)

    def run(self) -> list[Tensor | None]:
        """Retrace every move; return the gradients of the inputs."""
        for move in reversed(self.of.moves):
            self._retrace(move)
        self._compare()
        start = [a + b for a, b in zip(self.ay, self.az, strict=True)]
        found = [*self.times, *start, *self.args, *self.totals]
        return [g if need else None for g, need in zip(found, self.needed, strict=True)]

    def _retrace(self, move: Move) -> None:
        method, problem, coupling = self.of.method, self.problem, self.of.method.coupling
        rows = None
        if move.index is not None and len(move.index) < problem.batch:
            rows = torch.from_numpy(move.index).to(self.y[0].device)
        y, z, ay, az = (_take(part, rows) for part in (self.y, self.z, self.ay, self.az))
        with torch.enable_grad():
            args, leaves = self._args(rows)
            times, width, ends = self._clock(move)
            y1 = [leaf.detach().requires_grad_() for leaf in y]
            back = method.behind(problem, args, times, width, y1)
            z0 = [(a + b).detach().requires_grad_() for a, b in zip(z, back, strict=True)]
            ahead, _ = method.ahead(problem, args, times, width, z0)
        shared = [*ends, *leaves, *self.parameters]
        # z1 = z0 - Psi_{-h}(y1)
        change, gathered = _pull(back, y1, shared, [-a for a in az])
        ay = [a + c for a, c in zip(ay, change, strict=True)]
        # y1 = coupling y0 + (1 - coupling) z0 + Psi_h(z0)
        change, more = _pull(ahead, z0, shared, ay)
        az = [a + (1 - coupling) * b + c for a, b, c in zip(az, ay, change, strict=True)]
        y = [
            (a - (1 - coupling) * b.detach() - d.detach()) / coupling
            for a, b, d in zip(y, z0, ahead, strict=True)
        ]
        ay = [coupling * a for a in ay]
        z = [leaf.detach() for leaf in z0]
        self.y, self.z = _put(self.y, rows, y), _put(self.z, rows, z)
        self.ay, self.az = _put(self.ay, rows, ay), _put(self.az, rows, az)
        self._gather(move, rows, ends, leaves, gathered)
        self._gather(move, rows, ends, leaves, more)

    def _args(self, rows: Tensor | None) -> tuple[tuple[Any, ...], list[Tensor]]:
        """Return the rows of args, with fresh leaves where they need gradients."""
        flat, spec = pytree.tree_flatten(self.problem.args)
        flat = flat if rows is None else select_rows(flat, rows)
        fresh = []
        for place, k in enumerate(self.of.floating):
            flat[k] = flat[k].detach().requires_grad_(self.needed[self.first + place])
            fresh.append(flat[k])
        return pytree.tree_unflatten(flat, spec), fresh

    def _clock(self, move: Move) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return node times, step sizes and, where times want gradients, shifts of both ends."""
        like = self.times[0]
        ends: list[Tensor] = []
        if any(self.needed[:2]):
            shape = like[: len(move.start)]
            ends = [torch.zeros_like(shape).requires_grad_() for _ in range(2)]
        times, sizes = move.clock(self.of.method.nodes, like, *ends)
        return times, widths(sizes, self.problem.leaves), ends

    def _gather(
        self,
        move: Move,
        rows: Tensor | None,
        ends: list[Tensor],
        leaves: list[Tensor],
        grads: list[Tensor | None],
    ) -> None:
        """Add one step's gradients of times, args and parameters to the totals."""
        for grad, share in zip(
            grads[: len(ends)], (move.start_share, move.end_share), strict=False
        ):
            if grad is None:
                continue
            late = torch.from_numpy(share).to(grad.dtype).to(grad.device) * grad
            _add(self.times[0], rows, grad - late)
            _add(self.times[1], rows, late)
        grads = grads[len(ends) :]
        for total, grad in zip(self.args, grads[: len(leaves)], strict=True):
            if grad is not None:
                _add(total, rows, grad)
        for k, grad in enumerate(grads[len(leaves) :]):
            if grad is not None:
                total = self.totals[k]
                self.totals[k] = grad if total is None else total + grad

    def _compare(self) -> None:
        """Raise where the rebuilt start is not the one that was kept."""
        tolerance = self.of.tolerance
        for start, y, z in zip(self.problem.leaves, self.y, self.z, strict=True):
            bound = tolerance or torch.finfo(start.dtype).eps ** 0.5
            gap = torch.maximum((y - start).abs(), (z - start).abs()) / (1 + start.abs())
            gap = gap[..., None].flatten(1).amax(1)
            lost = torch.nonzero(~(gap <= bound)).flatten()
            if len(lost):
                worst = int(lost[0])
                raise SolverError(
                    f"Reversible: the start of {len(lost)} of {len(gap)} samples could not be "
                    f"rebuilt; sample {worst} is off by {gap[worst].item():.2g}, allowed are "
                    f"{bound:.2g}, so its gradient would be wrong. The field is too stiff for this "
                    "scheme: use Checkpoint(), more steps, a tighter tolerance or float64"
                )


def _pull(
    outputs: list[Tensor],
    state: list[Tensor],
    shared: list[Tensor],
    cotangents: list[Tensor],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return vector-Jacobian products with the state (zeros where unused) and the shared inputs."""
    live = [k for k, out in enumerate(outputs) if out.requires_grad]
    wanted = [*state, *(x for x in shared if x.requires_grad)]
    if not live:
        return [torch.zeros_like(x) for x in state], [None] * len(shared)
    grads = iter(
        torch.autograd.grad(
            [outputs[k] for k in live],
            wanted,
            [cotangents[k] for k in live],
            allow_unused=True,
            retain_graph=True,  # the field may close over a graph of the caller's
        )
    )
    ahead = [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(state, [next(grads) for _ in state], strict=True)
    ]
    return ahead, [next(grads) if x.requires_grad else None for x in shared]


def _take(leaves: list[Tensor], rows: Tensor | None) -> list[Tensor]:
    return leaves if rows is None else [leaf.index_select(0, rows) for leaf in leaves]


def _put(leaves: list[Tensor], rows: Tensor | None, new: list[Tensor]) -> list[Tensor]:
    if rows is None:
        return new
    return [leaf.index_copy(0, rows, part) for leaf, part in zip(leaves, new, strict=True)]


def _add(total: Tensor, rows: Tensor | None, part: Tensor) -> None:
    if rows is None:
        total += part
    else:
        total.index_add_(0, rows, part)
