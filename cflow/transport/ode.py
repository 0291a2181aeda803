"""A transport in N solver steps: the flow of a velocity field, in flat space or on a manifold.

    dx/dt = v(t, x),    d ladj/dt = div v(t, x),    d cost/|dt| = cost(t, x, v, dv/dx)

Push runs t from 0 to 1, pull from 1 to 0; the same equations give the log-determinant of either
direction. On a manifold the field is evaluated on it and projected to the tangent space, its
divergence is summed over a frame of that, and where the metric is not that of the space around,
log sqrt(det g) at the end less that at the start is added: ladj is between Riemannian volumes.
Source: Chen et al. (2018), Neural ordinary differential equations, arXiv 1806.07366, theorem 1;
Falorsi and Forre (2020), Neural ordinary differential equations on manifolds, arXiv 2006.06663;
Ghosh et al. (2020), STEER: simple temporal regularization for neural ODEs, arXiv 2006.10711.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_floating, expect_unit_times
from cflow.field import Analytic, AnalyticField, Cost, Divergence, Exact, Field
from cflow.manifold import Euclidean, Manifold, Projector, expect_on
from cflow.ode import Adjoint, Direct, Dopri5, Solution, Solver
from cflow.state import State
from cflow.transport.stepping import stepping
from cflow.transport.transport import Likelihood, Shape, Transport
from cflow.typing import Points

__all__ = ["ODE"]


class ODE(Transport):
    """Move points along a field.

    Args:
        field: The velocity.
        solver: How the equation is integrated.
        manifold: Where the points live; its `ndim` says how many axes make up one point, so
            images of shape (channels, height, width) take `Euclidean(3)`. Its `steps` say how a
            solver steps there. geoopt's manifolds fit too, without a likelihood.
        divergence: How the log-determinant is computed, when it is tracked; by default `Analytic()`
            for an `AnalyticField` in flat space, else `Exact()`.
        adjoint: How gradients pass through the solve.
        cost: A regulariser. In training mode it is integrated into `State.cost` beside a tracked
            state; in evaluation mode nobody computes it, so a validation loss is free of it.
        steer: Half width b of the end time, 0 <= b < 1. In training mode a tracked pull ends, for
            each sample, at a time drawn from U(-b, b) instead of 0, which keeps the field smooth at
            the base; the field then sees times outside [0, 1] by at most b. Evaluation ends at 0.

    Attributes:
        evaluations: Samples that the field has been evaluated for by solves, in all, backward
            passes included; not counted in compiled graphs.

    Raises:
        DomainError: `steer` lies outside [0, 1); when points are pushed or pulled that lie off the
            manifold, by more than 1e-4 in its units; when a likelihood is asked of a manifold that
            does not say its volume, or on a mesh of a field that does not conserve mass.
        ShapeError: When a `Flow` is built whose points have another number of axes than the
            manifold's.

    References:
        Chen et al. (2018), arXiv 1806.07366; Grathwohl et al. (2019), arXiv 1810.01367; Ghosh et
        al. (2020), arXiv 2006.10711.

    Example:
        >>> from cflow.field import FunctionField
        >>> from cflow.state import tracked
        >>> growth = ODE(FunctionField(lambda t, x, context: x))
        >>> growth.push(tracked(torch.ones(1, 2))).ladj  # e^t in both coordinates
        tensor([2.0000])
    """

    def __init__(
        self,
        field: Field,
        solver: Solver | None = None,
        *,
        manifold: Projector | None = None,
        divergence: Divergence | None = None,
        adjoint: Adjoint | None = None,
        cost: Cost | None = None,
        steer: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= steer < 1:
            raise DomainError(f"ODE: steer must lie in [0, 1), the time of a push, got {steer}")
        self.field = field
        self.solver = Dopri5() if solver is None else solver
        self.manifold = Euclidean() if manifold is None else manifold
        self.divergence = self._known_divergence() if divergence is None else divergence
        self.adjoint = Direct() if adjoint is None else adjoint
        self.cost = cost
        self.steer = steer
        self.evaluations = 0

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self._run("push", state, context, 0.0, 1.0, generator)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self._run("pull", state, context, 1.0, 0.0, generator)

    @property
    def likelihood(self) -> Likelihood:
        return self.divergence.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) != self.manifold.ndim:
            raise ShapeError(
                f"ODE: the points of this flow have shape {tuple(shape)}, but the manifold takes "
                f"{self.manifold.ndim} axes for one point, the others for a batch; for points in "
                f"flat space pass manifold=Euclidean({len(shape)})"
            )
        if isinstance(self.manifold, Manifold):
            self.manifold.dim(shape)
        return shape

    def velocity(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the field on the manifold: at the projected point, in its tangent space."""
        return self._tangent(t.to(x.dtype), self.manifold.projx(x), context)

    def trajectory(
        self, x: Points, ts: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Points:
        """Follow points through given times; the first time is where x stands.

        Args:
            x: Points at ts[0], `(*batch, *event)`.
            ts: Times in [0, 1], rising or falling.
            context: Condition `(*batch, *context)`.

        Returns:
            The points at each time, `(len(ts), *batch, *event)`.

        Raises:
            DomainError: Times lie outside [0, 1], turn back, or are fewer than two.
        """
        path = ts.tolist() if isinstance(ts, Tensor) else list(ts)
        if not isinstance(path, list) or len(path) < 2:
            raise DomainError(f"ODE.trajectory: ts must list two times or more, got {path}")
        expect_unit_times("ODE.trajectory", torch.tensor(path))
        batch = self._batch("trajectory", x, context)
        solution = self._solve((x,), context, batch, path[0], path[-1], None, save_at=path)
        points = solution.y[0]
        return points.unflatten(1, batch) if batch else points.squeeze(1)

    def _run(
        self,
        method: str,
        state: State,
        context: Tensor | None,
        t0: float,
        t1: float,
        generator: Generator | None,
    ) -> State:
        batch = self._batch(method, state.x, context)
        if state.ladj is None:
            solution = self._solve((state.x,), context, batch, t0, t1, None)
            nfe = state.nfe + _unflatten(solution.nfe, batch)
            return state._replace(x=_unflatten(solution.y[0], batch), nfe=nfe)
        self._check_divergence()
        noise = self.divergence.draw(state.x, len(batch), generator)
        cost = state.cost
        y0 = (state.x, state.ladj)
        if self.cost is not None and self.training:
            y0 = (*y0, torch.zeros_like(state.ladj) if cost is None else cost)
        end: float | Tensor = t1
        if self.steer and self.training and method == "pull":
            end = self._jitter(cast(Tensor, _flatten(state.ladj, batch)), generator)
        solution = self._solve(y0, context, batch, t0, end, noise)
        x, ladj, *rest = (_unflatten(leaf, batch) for leaf in solution.y)
        nfe = state.nfe + _unflatten(solution.nfe, batch)
        return State(x, ladj + self._volume_gained(state.x, x), rest[0] if rest else cost, nfe)

    def _solve(
        self,
        y0: tuple[Tensor | None, ...],
        context: Tensor | None,
        batch: Shape,
        t0: float,
        t1: float | Tensor,
        noise: Tensor | None,
        *,
        save_at: Sequence[float] | None = None,
    ) -> Solution:
        direction = -1.0 if isinstance(t1, Tensor) or t1 < t0 else 1.0  # tensors: a steered pull
        steps = stepping(self.manifold)
        own = self._framed()
        landed: Tensor | None = None  # the last leaf after a step: then the first is the point

        def f(
            t: Tensor, y: tuple[Tensor, ...], context: Tensor | None, noise: Tensor | None
        ) -> tuple[Tensor, ...]:
            x = y[0] if y[steps.leaves - 1] is landed else steps.point(y[: steps.leaves])
            t = t.to(x.dtype)
            if not torch.compiler.is_compiling():
                self.evaluations += x.shape[0]
            rest = y[steps.leaves :]
            if not rest:
                return steps.slope(y, x, self._tangent(t, x, context))
            cost = self.cost if len(rest) == 2 else None
            frobenius = cost is not None and cost.frobenius
            frame = own.frame(x) if own is not None else None
            velocity = self.field if self._flat else self._tangent
            rates = self.divergence(
                velocity, t, x, context, noise, frobenius=frobenius, frame=frame
            )
            slopes = (*steps.slope(y, x, rates.v), rates.div.to(rest[0].dtype))
            if cost is None:
                return slopes
            return (*slopes, (direction * cost(t, x, rates)).to(rest[1].dtype))

        def project(y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal landed
            after = steps.project(y[: steps.leaves])
            landed = after[-1]
            return (*after, *y[steps.leaves :])

        x0, *rest = (_flatten(leaf, batch) for leaf in y0)
        solution = self.adjoint.solve(
            self.solver,
            f,
            (*steps.start(cast(Tensor, x0)), *rest),
            t0,
            t1,
            args=(_flatten(context, batch), _flatten(noise, batch)),
            parameters=tuple(self.field.parameters()) if torch.is_grad_enabled() else (),
            project=project if steps.projects else None,
            save_at=save_at,
            stop_at=() if save_at is None or steps.between else save_at,
        )
        return solution._replace(y=(solution.y[0], *solution.y[steps.leaves :]))

    def _tangent(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the velocity at a point of the manifold."""
        return self.manifold.proju(x, self.field(t, x, context))

    @property
    def _flat(self) -> bool:
        return isinstance(self.manifold, Euclidean)

    def _framed(self) -> Manifold | None:
        """Return the manifold, where it says its divergence."""
        return self.manifold if isinstance(self.manifold, Manifold) else None

    def _volume_gained(self, start: Tensor, end: Tensor) -> Tensor | float:
        """Return log sqrt(det g) at the end less that at the start, where it is not constant."""
        manifold = self._framed()
        before = None if manifold is None else manifold.log_volume_element(start)
        after = None if manifold is None else manifold.log_volume_element(end)
        return 0.0 if before is None or after is None else after - before

    def _batch(self, method: str, x: Tensor, context: Tensor | None) -> Shape:
        where = f"ODE.{method}"
        expect_floating(where, x)
        if x.dim() < self.manifold.ndim:
            raise ShapeError(
                f"{where}: points need at least {self.manifold.ndim} axes, got {tuple(x.shape)}"
            )
        batch = tuple(x.shape[: x.dim() - self.manifold.ndim])
        if context is not None and tuple(context.shape[: len(batch)]) != batch:
            raise ShapeError(
                f"{where}: the context must have the batch axes {batch} of the points, got "
                f"{tuple(context.shape)}; expand it to them"
            )
        if not self._flat:
            expect_on(where, "x", self.manifold, x)
        return batch

    def _known_divergence(self) -> Divergence:
        return Analytic() if isinstance(self.field, AnalyticField) and self._flat else Exact()

    def _jitter(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Draw the end time of each sample, `(batch,)`."""
        uniform = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return self.steer * (2 * uniform - 1)

    def _check_divergence(self) -> None:
        own = self._framed()
        if own is None:
            raise DomainError(
                f"ODE: {type(self.manifold).__name__} does not say its volume and divergence, so "
                "it can sample and train but has no likelihood; use one of cflow.manifold"
            )
        parts = self.field.modules() if own.creased else ()
        if own.creased and not any(isinstance(part, Field) and part.conserves for part in parts):
            raise DomainError(
                f"ODE: a field that is merely projected to {own} makes or loses mass at its edges, "
                "so it can sample but has no likelihood; train and solve SurfaceField(field, mesh) "
                "instead, or set conserves = True on a field that keeps its mass by itself"
            )


def _flatten(leaf: Tensor | None, batch: Shape) -> Tensor | None:
    """Gather any number of batch axes, none included, into one."""
    if leaf is None:
        return None
    return leaf.flatten(0, len(batch) - 1) if batch else leaf[None]


def _unflatten(leaf: Tensor, batch: Shape) -> Tensor:
    return leaf.unflatten(0, batch) if batch else leaf[0]
