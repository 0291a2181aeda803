"""A transport in a few leaps: steps along the average velocity of a flow map.

    x_{k+1} = x_k + (t_{k+1} - t_k) u(t_k, t_{k+1}, x_k),     ladj = sum_k log|det dx_{k+1}/dx_k|

On a manifold a leap follows the geodesic, exp_x(h u), and the determinant is that between tangent
spaces, by their frames, and between Riemannian volumes.

One leap takes as many evaluations as one step of Euler's method, and where the flow map is right it
makes no error however long it is. With a `Tuned` solver each leap ends in a weighted sum of all
average velocities so far, as its steps do. A leap has no inverse in closed form: `pull` finds it by
Newton's method, with the exact Jacobian, so the likelihood of the leaps themselves is exact
wherever they are invertible. That of the velocity field which the map holds is another one, see
`instantaneous`.
Source: Geng et al. (2025), Mean flows for one-step generative modeling, arXiv 2505.13447, eq. 12.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, SolverError, expect_floating
from cflow.field import FlowMap
from cflow.manifold import Euclidean, Manifold, expect_on
from cflow.ode import Euler, Tuned
from cflow.state import State
from cflow.transport.transport import Likelihood, Shape, Transport

__all__ = ["Leap"]

Map: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]

ITERATIONS = 50  # of Newton's method
HALVINGS = 8  # of its step, where a whole one does not come nearer


class Leap(Transport):
    """Move points by leaps along the average velocity of a flow map.

    Args:
        flow_map: The average velocity.
        solver: How many leaps, and their grid: `Euler(steps, grid)`, one leap by default, or
            `Tuned`, which pushes only. That is what `flow.with_solver(Euler(4))` exchanges.
        event_dim: Trailing axes that make up one point: 1 for vectors, 3 for images.
        manifold: Where the points live, in place of flat space of `event_dim` axes. Tuned weights
            are for flat space.

    Raises:
        DomainError: A tuned solver on a manifold; when points lie off the manifold.

    References:
        Geng et al. (2025), arXiv 2505.13447.

    Example:
        >>> from cflow.field import FourierTime, MLPField, NetworkFlowMap, SpanTime
        >>> time = SpanTime(FourierTime(4), FourierTime(4))
        >>> leap = Leap(NetworkFlowMap(MLPField(2, time=time)))
        >>> state = leap.push(State(torch.randn(3, 5, 2)))
        >>> state.x.shape, int(state.nfe.max())
        (torch.Size([3, 5, 2]), 1)
    """

    def __init__(
        self,
        flow_map: FlowMap,
        solver: Euler | Tuned | None = None,
        *,
        event_dim: int = 1,
        manifold: Manifold | None = None,
    ) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.solver: Euler | Tuned = Euler(1) if solver is None else solver
        self.manifold: Manifold = Euclidean(event_dim) if manifold is None else manifold
        self.event_dim = self.manifold.ndim
        if isinstance(self.solver, Tuned) and not isinstance(self.manifold, Euclidean):
            raise DomainError(
                f"Leap: {type(self.solver).__name__} adds up steps in flat space, got "
                f"{self.manifold}; take Euler(steps)"
            )

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        x, batch = self._flat("push", state.x, context)
        context = _rows(context, batch)
        maps = self._maps()
        ladj = None if state.ladj is None else state.ladj.reshape(-1)
        for leap in maps:
            if ladj is None:
                x = leap(x, context)
            else:
                x, jacobian = _linearised(self.manifold, leap, x, context)
                ladj = ladj + torch.linalg.slogdet(jacobian)[1].to(ladj.dtype)
        return self._state(state, x, ladj, batch)

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        """Undo the leaps, last first, by Newton's method; gradients are exact to first order.

        Raises:
            SolverError: No start of a leap was found for a point, or the map folds there.
            DomainError: The solver is tuned, for a push.
        """
        if isinstance(self.solver, Tuned):
            raise DomainError(
                f"Leap.pull: {type(self.solver).__name__} weighs its steps for a push alone; take "
                "Euler(steps) to pull"
            )
        x, batch = self._flat("pull", state.x, context)
        context = _rows(context, batch)
        ladj = None if state.ladj is None else state.ladj.reshape(-1)
        for leap, (r, t) in reversed(list(zip(self._maps(), self._spans(), strict=True))):
            guess = self._leap(t, r, x.detach(), context)  # backwards
            x = _undone(self.manifold, leap, x, guess, context, f"from t={r:g} to {t:g}")
            if ladj is not None:
                jacobian = _linearised(self.manifold, leap, x, context)[1]
                ladj = ladj - torch.linalg.slogdet(jacobian)[1].to(ladj.dtype)
        return self._state(state, x, ladj, batch)

    @property
    def likelihood(self) -> Likelihood:
        return "exact"

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) != self.event_dim:
            raise ShapeError(
                f"Leap: the points of this flow have shape {tuple(shape)}, but one point was said "
                f"to have {self.event_dim} axes; pass event_dim={len(shape)}"
            )
        self.manifold.dim(shape)
        return shape

    def _spans(self) -> list[tuple[float, float]]:
        return list(pairwise(self.solver.grid.shares(self.solver.steps, 0.0, 1.0)))

    def _leap(self, r: float, t: float, x: Tensor, context: Tensor | None) -> Tensor:
        start, end = (x.new_full(x.shape[:1], time) for time in (r, t))
        u = self.manifold.proju(x, self.flow_map(start, end, x, context))
        return self.manifold.expmap(x, (t - r) * u)

    def _maps(self) -> list[Map]:
        """Return the maps that a push runs one after the other."""
        if isinstance(self.solver, Tuned):
            return [self._weighed]
        return [partial(self._leap, r, t) for r, t in self._spans()]

    def _weighed(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Take all steps of a tuned solver."""
        now, slopes = x, []
        for (r, t), row in zip(self._spans(), cast(Tuned, self.solver).weights, strict=True):
            start, end = (x.new_full(x.shape[:1], time) for time in (r, t))
            slopes.append(self.flow_map(start, end, now, context))
            now = x + sum(w * u for w, u in zip(row, slopes, strict=True))
        return now

    def _flat(self, method: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Shape]:
        where = f"Leap.{method}"
        expect_floating(where, x)
        batch = tuple(x.shape[: x.dim() - self.event_dim])
        if x.dim() < self.event_dim or (
            context is not None and tuple(context.shape[: len(batch)]) != batch
        ):
            raise ShapeError(
                f"{where}: points need {self.event_dim} axes after their batch axes, and a context "
                f"the same batch axes, got {tuple(x.shape)} and "
                f"{None if context is None else tuple(context.shape)}"
            )
        if not isinstance(self.manifold, Euclidean):
            expect_on(where, "x", self.manifold, x)
        return (x.flatten(0, len(batch) - 1) if batch else x[None]), batch

    def _state(self, state: State, x: Tensor, ladj: Tensor | None, batch: Shape) -> State:
        nfe = state.nfe + torch.full(batch, len(self._spans()), device=x.device)
        again = lambda leaf: leaf.unflatten(0, batch) if batch else leaf[0]
        x = again(x)
        if ladj is None:
            return state._replace(x=x, nfe=nfe)
        before = self.manifold.log_volume_element(state.x)
        after = self.manifold.log_volume_element(x)
        gained = 0.0 if before is None or after is None else (after - before).to(ladj.dtype)
        return state._replace(x=x, ladj=again(ladj) + gained, nfe=nfe)


def _linearised(
    manifold: Manifold, leap: Map, x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the ends of leaps and their Jacobians `(rows, dim, dim)`, in float32 at least.

    Those are in the entries of the points, or in the frames of the manifold where it has some.
    """

    def single(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y = leap(x[None], None if context is None else context[None])[0]
        return y.flatten(), y

    dims = (0, None if context is None else 0)
    rows = torch.func.vmap(torch.func.jacrev(single, has_aux=True), in_dims=dims)
    jacobian, y = rows(x, context)
    square = jacobian.flatten(2)
    square = square.to(torch.promote_types(square.dtype, torch.float32))
    start, end = manifold.frame(x), manifold.frame(y)
    if start is not None and end is not None:
        square = end[1].flatten(2).to(square) @ square @ start[0].flatten(2).to(square).mT
    return y, square


def _missed(manifold: Manifold, end: Tensor, y: Tensor) -> Tensor:
    """Return the way from where leaps end to y, in coordinates of its tangent space."""
    way = manifold.logmap(end, y).flatten(1)
    frame = manifold.frame(end)
    return way if frame is None else (frame[1].flatten(2) @ way[..., None]).squeeze(-1)


def _moved(manifold: Manifold, x: Tensor, step: Tensor) -> Tensor:
    """Move points along coordinates of their tangent space."""
    frame = manifold.frame(x)
    if frame is not None:
        step = (frame[0].flatten(2) * step[..., None]).sum(1)
    return manifold.expmap(x, step.reshape(x.shape))


def _undone(
    manifold: Manifold, leap: Map, y: Tensor, guess: Tensor, context: Tensor | None, where: str
) -> Tensor:
    """Return the starts of leaps that end at y."""
    root = _searched(manifold, leap, y.detach(), guess, context, where)
    end, jacobian = _linearised(manifold, leap, root, context)
    # One more step of Newton's, at the detached root: its gradient is that of the inverse.
    return _moved(manifold, root, _solved(jacobian.detach(), _missed(manifold, end, y)))


@torch.no_grad()
def _searched(
    manifold: Manifold, leap: Map, y: Tensor, x: Tensor, context: Tensor | None, where: str
) -> Tensor:
    end, jacobian = _linearised(manifold, leap, x, context)
    miss = manifold.dist(end, y)
    tolerance = 100 * torch.finfo(y.dtype).eps * (1 + y.flatten(1).norm(dim=1))
    for _ in range(ITERATIONS):
        if bool((miss <= tolerance).all()):
            break
        step = _solved(jacobian, _missed(manifold, end, y))
        share, tried = torch.ones_like(miss), x
        for _ in range(HALVINGS):
            tried = _moved(manifold, x, share[:, None] * step)
            worse = ~(manifold.dist(leap(tried, context), y) < miss) & (miss > tolerance)
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        moving = (miss > tolerance).reshape(-1, *(1,) * (x.dim() - 1))
        x = torch.where(moving, tried, x)
        end, jacobian = _linearised(manifold, leap, x, context)
        miss = manifold.dist(end, y)
    lost = ~(miss <= 10 * tolerance)
    folded = ~lost & (torch.linalg.det(jacobian) <= 0)
    if bool((lost | folded).any()):
        raise SolverError(
            f"Leap.pull: the leap {where} is not invertible: {int(lost.sum())} of {len(y)} points "
            f"have no start that Newton's method finds, and at {int(folded.sum())} the map folds; "
            "take more leaps, train longer, or ask the velocity field that the map holds: "
            "instantaneous(flow.transport)"
        )
    return x


def _solved(jacobian: Tensor, residual: Tensor) -> Tensor:
    """Return J^-1 residual in the dtype of the residual `(rows, dim)`; itself if J is singular."""
    column = residual.to(jacobian.dtype)[..., None]
    step, info = torch.linalg.solve_ex(jacobian, column)
    step = torch.where((info == 0)[:, None, None], step, column)
    return step[..., 0].to(residual.dtype)


def _rows(context: Tensor | None, batch: Shape) -> Tensor | None:
    if context is None:
        return None
    return context.flatten(0, len(batch) - 1) if batch else context[None]
