"""Solve x + g(x) = y for a contraction g by fixed-point iteration, with a status for each sample.

    x <- y - g(x),    residual = max |x + g(x) - y| / (1 + max |y|)

Banach's theorem promises convergence by the Lipschitz constant L of g a step; the error of x is at
most residual / (1 - L). Gradients come from the implicit function theorem: with J = dg/dx at the
solution, dx = (I + J)^-1 (dy - dg), and the transposed system is solved by the same iteration.
Source: Behrmann et al. (2019), Invertible residual networks, arXiv 1811.00995, algorithm 1; Bai et
al. (2019), Deep equilibrium models, arXiv 1909.01377, theorem 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cflow.errors import DomainError, SolverError, expect_positive

__all__ = ["Arrival", "FixedPoint", "implicit"]

Map: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""g as a function of points and context, `(rows, *event)` and `(rows, *context)`."""


class Arrival(NamedTuple):
    """Report a solve, sample by sample.

    Attributes:
        x: The points where each sample stopped, `(rows, *event)`.
        residual: max |x + g(x) - y| / (1 + max |y|) at those points, `(rows,)`.
        steps: Evaluations of g, `(rows,)`.
        arrived: Whether the residual is within the tolerance, `(rows,)`.
    """

    x: Tensor
    residual: Tensor
    steps: Tensor
    arrived: Tensor


@dataclass(frozen=True)
class FixedPoint:
    """Iterate x <- y - g(x); samples that have arrived leave the batch.

    Attributes:
        tolerance: Residual at which a sample has arrived; relative, 1e-6 suits float32.
        max_steps: Evaluations of g after which a sample counts as lost.

    Raises:
        DomainError: A tolerance or number of steps that is not positive.

    Example:
        >>> arrival = FixedPoint().solve(lambda x, context: x / 2, torch.ones(1, 2))
        >>> arrival.arrived, arrival.x.round(decimals=4)
        (tensor([True]), tensor([[0.6667, 0.6667]]))
    """

    tolerance: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        expect_positive("FixedPoint", tolerance=self.tolerance)
        if self.max_steps < 1:
            raise DomainError(f"FixedPoint: max_steps must be at least 1, got {self.max_steps}")

    def solve(self, g: Map, y: Tensor, context: Tensor | None = None) -> Arrival:
        """Find x for each row of y, without gradients; says what happened, and raises nothing."""
        with torch.no_grad():
            rows = len(y)
            x, residual = y.clone(), y.new_full((rows,), math.inf)
            steps = torch.zeros(rows, dtype=torch.long, device=y.device)
            active = torch.arange(rows, device=y.device)
            here, target, given = y, y, context
            for step in range(1, self.max_steps + 1):
                if not len(active):
                    break
                there = target - g(here, given)
                gap = _largest(there - here) / (1 + _largest(target))
                leaves = (gap <= self.tolerance) | ~torch.isfinite(gap)
                if step == self.max_steps:
                    leaves = torch.ones_like(leaves)
                if bool(leaves.any()):
                    gone, stays = active[leaves], ~leaves
                    x[gone], residual[gone], steps[gone] = here[leaves], gap[leaves], step
                    active, target, there = active[stays], target[stays], there[stays]
                    given = None if given is None else given[stays]
                here = there
            return Arrival(x, residual, steps, residual <= self.tolerance)

    def expect_arrival(self, where: str, arrival: Arrival) -> None:
        """Raise `SolverError` naming the first sample that did not arrive."""
        if bool(arrival.arrived.all()):
            return
        lost = torch.nonzero(~arrival.arrived).flatten()
        first = int(lost[0])
        raise SolverError(
            f"{where}: {len(lost)} of {len(arrival.x)} samples did not arrive; sample {first} has "
            f"a residual of {float(arrival.residual[first]):.3g} after "
            f"{int(arrival.steps[first])} steps, where {self.tolerance:g} was asked for; lower the "
            "network's Lipschitz constant (it must be below 1), raise max_steps, or widen the "
            "tolerance to what the dtype can reach"
        )


def implicit(inverse: FixedPoint, g: Map, y: Tensor, context: Tensor | None, x: Tensor) -> Tensor:
    """Return the solution x with the gradient of the implicit function theorem.

    Args:
        inverse: How the transposed system is solved, to its tolerance relative to the gradient.
        g: The contraction.
        y: Targets `(rows, *event)`.
        context: Conditions `(rows, *context)`.
        x: The solution, `(rows, *event)`.

    Returns:
        The same values, differentiable once with respect to y, context and the parameters of g.
        Backward raises `SolverError` where the transposed system does not converge.
    """
    x = x.detach()
    step = y - g(x, context)  # to first order dx = (I + J)^-1 d(step), at a fixed x in g
    if not step.requires_grad:
        return x
    root = x.requires_grad_()
    value = g(root, None if context is None else context.detach())
    return _Implicit.apply(step, root.detach(), (inverse, root, value))  # type: ignore[no-any-return]


class _Implicit(torch.autograd.Function):
    """Pass x on, and send its gradient back through (I + J')^-1."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, x: Tensor, held: Any) -> Tensor:  # noqa: ANN401
        ctx.held = held
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None]:
        inverse, root, value = ctx.held
        solution, scale = gradient, _largest(gradient)
        going = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
        for _ in range(inverse.max_steps):
            (product,) = torch.autograd.grad(value, root, solution, retain_graph=True)
            new = gradient - product
            gap = _largest(new - solution)
            # A sample that has arrived stays: its gradient knows nothing of its batch mates.
            open_ = going.reshape(-1, *(1,) * (gradient.dim() - 1))
            solution = torch.where(open_, new, solution)
            going = going & ~(gap <= inverse.tolerance * scale)
            if not bool(going.any()):
                return solution, None, None
        lost = int(torch.nonzero(going)[0])
        raise SolverError(
            f"ResidualLayer.pull, backward: the gradient of sample {lost} did not converge within "
            f"{inverse.max_steps} steps; lower the network's Lipschitz constant, raise max_steps, "
            "or widen the tolerance"
        )


def _largest(x: Tensor) -> Tensor:
    """Return the largest absolute entry of each row."""
    return x.abs().reshape(len(x), -1).amax(-1) if x.numel() else x.new_zeros(len(x))
