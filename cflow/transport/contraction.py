"""Solve x + g(x) = y for a contraction g by fixed-point iteration, with a status for each sample.

    x <- T(x) = y - g(x),    residual = max |x + g(x) - y| / (1 + max(|x|, |y|))

Banach's theorem promises convergence by the Lipschitz constant L of g a step; the error of x is at
most residual / (1 - L), relatively. Anderson's acceleration combines the last few T(x) such that
their residuals cancel, and is held to account: a point that does not improve is given up for the
plain steps. Gradients come from the implicit function theorem: with J = dg/dx at the solution,
dx = (I + J)^-1 (dy - dg), and the transposed system is solved by the same iteration.
Source: Behrmann et al. (2019), Invertible residual networks, arXiv 1811.00995, algorithm 1; Walker
and Ni (2011), Anderson acceleration for fixed-point iterations, SIAM Journal on Numerical Analysis
49; Bai et al. (2019), Deep equilibrium models, arXiv 1909.01377, theorem 1.
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
        residual: max |x + g(x) - y| / (1 + max(|x|, |y|)) at those points, `(rows,)`.
        slope: The largest |g(a) - g(b)| / |a - b| between neighbouring iterates, in the Euclidean
            norm, `(rows,)`. No contraction in any p-norm goes beyond the root of the event's size.
        steps: Evaluations of g, `(rows,)`.
        arrived: Whether the residual is within the tolerance and no slope spoke against a
            contraction, `(rows,)`.
    """

    x: Tensor
    residual: Tensor
    slope: Tensor
    steps: Tensor
    arrived: Tensor


@dataclass(frozen=True)
class FixedPoint:
    """Iterate x <- y - g(x), accelerated; samples that have arrived leave the batch.

    Attributes:
        tolerance: Residual at which a sample has arrived; 1e-6 suits float32.
        max_steps: Evaluations of g after which a sample counts as lost.
        depth: Earlier iterates that Anderson's acceleration combines; 0 for the plain iteration.

    Raises:
        DomainError: A tolerance or number of steps that is not positive, a negative depth.

    Example:
        >>> arrival = FixedPoint().solve(lambda x, context: x / 2, torch.ones(1, 2))
        >>> arrival.arrived, arrival.x.round(decimals=4)
        (tensor([True]), tensor([[0.6667, 0.6667]]))
    """

    tolerance: float = 1e-6
    max_steps: int = 1000
    depth: int = 2

    def __post_init__(self) -> None:
        expect_positive("FixedPoint", tolerance=self.tolerance)
        if self.max_steps < 1 or self.depth < 0:
            raise DomainError(
                "FixedPoint: max_steps must be at least 1 and depth at least 0, got "
                f"max_steps={self.max_steps}, depth={self.depth}"
            )

    def solve(self, g: Map, y: Tensor, context: Tensor | None = None) -> Arrival:
        """Find x for each row of y, without gradients; says what happened, and raises nothing."""

        def part(x: Tensor, rows: Tensor) -> Tensor:
            given = None if context is None else context[rows]
            return g(x.reshape(len(x), *event), given).reshape(x.shape)

        event = y.shape[1:]
        with torch.no_grad():
            arrival = self.iterate(part, y.reshape(len(y), event.numel()))
            return arrival._replace(x=arrival.x.reshape(y.shape))

    def iterate(self, g: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> Arrival:
        """Run the iteration on rows `(rows, size)`; g takes points and the indices of their rows.

        In the loop, `new` is T(here) and `step` their difference; `safe` is the plain step from the
        last point that was kept, whose step had length `kept`. A combined point that does not
        shorten the step is given up for `safe`, and the sample takes plain steps, `wait` of them,
        twice as many at each failure: in all, few more than without acceleration.
        """
        x, residual = y.clone(), y.new_full((len(y),), math.inf)
        slope, steps = torch.zeros_like(residual), torch.zeros_like(residual, dtype=torch.long)
        active = torch.arange(len(y), device=y.device)
        here, target, safe = y, y, y
        kept, steepest, past = residual.clone(), slope.clone(), _Past(self.depth)
        wait, fine = torch.ones_like(active), torch.ones_like(active)  # the first step is plain
        limit = 1.01 * math.sqrt(y.shape[1])
        for count in range(1, self.max_steps + 1):
            if not len(active):
                break
            new = target - g(here, active)
            step = new - here
            length = torch.linalg.vector_norm(step, dim=-1)
            gap = _largest(step) / (1 + torch.maximum(_largest(here), _largest(target)))
            steepest = torch.maximum(steepest, past.slope(here, new))
            leaves = (gap <= self.tolerance) | ~torch.isfinite(gap) | (steepest > limit)
            if count == self.max_steps:
                leaves = torch.ones_like(leaves)
            if bool(leaves.any()):
                gone, stays = active[leaves], ~leaves
                x[gone], residual[gone], steps[gone] = here[leaves], gap[leaves], count
                slope[gone] = steepest[leaves]
                rows = (active, here, target, new, step, length, kept, wait, fine, safe, steepest)
                active, here, target, new, step, length, kept, wait, fine, safe, steepest = (
                    leaf[stays] for leaf in rows
                )
                past.keep(stays)
            failed = (wait == 0) & ~(length < kept) & (self.depth > 0)
            bold = past.combined(new, step)
            past.add(here, new)
            kept = torch.where(failed, kept, length)
            safe = torch.where(failed[:, None], safe, new)
            wait = torch.where(failed, fine, (wait - 1).clamp(min=0))
            fine = torch.where(failed, 2 * fine, fine)
            here = torch.where((wait > 0)[:, None], safe, bold)
        return Arrival(x, residual, slope, steps, (residual <= self.tolerance) & (slope <= limit))

    def expect_arrival(self, where: str, arrival: Arrival) -> None:
        """Raise `SolverError` naming the first sample that did not arrive."""
        if bool(arrival.arrived.all()):
            return
        lost = torch.nonzero(~arrival.arrived).flatten()
        first = int(lost[0])
        raise SolverError(
            f"{where}: {len(lost)} of {len(arrival.arrived)} samples did not arrive; sample "
            f"{first} has a residual of {float(arrival.residual[first]):.3g} after "
            f"{int(arrival.steps[first])} steps, where {self.tolerance:g} was asked for, and met "
            f"slopes of {float(arrival.slope[first]):.3g}; lower the network's Lipschitz constant "
            "(it must be below 1), raise max_steps, or widen the tolerance to what the dtype can "
            "reach"
        )


class _Past:
    """Keep the last points and their images under T, for secants."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.points: list[Tensor] = []
        self.images: list[Tensor] = []

    def add(self, point: Tensor, image: Tensor) -> None:
        count = max(1, self.depth)
        self.points = [*self.points, point][-count:]
        self.images = [*self.images, image][-count:]

    def keep(self, rows: Tensor) -> None:
        self.points = [point[rows] for point in self.points]
        self.images = [image[rows] for image in self.images]

    def slope(self, point: Tensor, image: Tensor) -> Tensor:
        """Return the slope of the newest secant, zero where rounding would speak through it."""
        if not self.points:
            return point.new_zeros(len(point))
        run = torch.linalg.vector_norm(point - self.points[-1], dim=-1)
        rise = torch.linalg.vector_norm(image - self.images[-1], dim=-1)
        far = run > math.sqrt(torch.finfo(run.dtype).eps) * (1 + _largest(point))
        return torch.where(far, rise / torch.where(far, run, 1.0), 0.0)

    def combined(self, image: Tensor, step: Tensor) -> Tensor:
        """Return the combination of images whose steps, combined likewise, are the smallest."""
        if not self.points or not self.depth:
            return image
        images = image[:, None] - torch.stack(self.images, 1)
        steps = images - (image - step)[:, None] + torch.stack(self.points, 1)
        gram = steps @ steps.mT
        # Rows whose secants agree to rounding would make it singular.
        ridge = gram.diagonal(dim1=-2, dim2=-1).sum(-1) * 8 * torch.finfo(gram.dtype).eps
        ridge = ridge + torch.finfo(gram.dtype).tiny
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        share = torch.linalg.solve(gram + ridge[:, None, None] * eye, steps @ step[..., None])
        return image - (share * images).sum(1)


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
        size = _largest(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        size = size.reshape(-1, *(1,) * (gradient.dim() - 1))
        unit = (gradient / size).reshape(len(gradient), gradient.shape[1:].numel())

        def back(w: Tensor, rows: Tensor) -> Tensor:
            whole = torch.zeros_like(gradient)
            whole[rows] = w.reshape(len(w), *gradient.shape[1:])
            (product,) = torch.autograd.grad(value, root, whole, retain_graph=True)
            return product[rows].reshape(w.shape)

        arrival = inverse.iterate(back, unit)
        inverse.expect_arrival("ResidualLayer.pull, backward", arrival)
        return arrival.x.reshape(gradient.shape) * size, None, None


def _largest(x: Tensor) -> Tensor:
    """Return the largest absolute entry of each row."""
    return x.abs().reshape(len(x), -1).amax(-1) if x.numel() else x.new_zeros(len(x))
