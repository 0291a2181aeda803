"""A transport in a few leaps: steps along the average velocity of a flow map.

    x_{k+1} = x_k + (t_{k+1} - t_k) u(t_k, t_{k+1}, x_k),     ladj = sum_k log|det(1 + h_k du/dx)|

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
        self, flow_map: FlowMap, solver: Euler | Tuned | None = None, *, event_dim: int = 1
    ) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.solver: Euler | Tuned = Euler(1) if solver is None else solver
        self.event_dim = event_dim

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
                x, jacobian = _linearised(leap, x, context)
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
            x = _undone(leap, x, guess, context, f"from t={r:g} to {t:g}")
            if ladj is not None:
                jacobian = _linearised(leap, x, context)[1]
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
        return shape

    def _spans(self) -> list[tuple[float, float]]:
        return list(pairwise(self.solver.grid.shares(self.solver.steps, 0.0, 1.0)))

    def _leap(self, r: float, t: float, x: Tensor, context: Tensor | None) -> Tensor:
        start, end = (x.new_full(x.shape[:1], time) for time in (r, t))
        return x + (t - r) * self.flow_map(start, end, x, context)

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
        return (x.flatten(0, len(batch) - 1) if batch else x[None]), batch

    def _state(self, state: State, x: Tensor, ladj: Tensor | None, batch: Shape) -> State:
        nfe = state.nfe + torch.full(batch, len(self._spans()), device=x.device)
        again = lambda leaf: leaf.unflatten(0, batch) if batch else leaf[0]
        return state._replace(x=again(x), ladj=None if ladj is None else again(ladj), nfe=nfe)


def _linearised(leap: Map, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ends of leaps and their Jacobians, `(rows, D, D)`, in float32 at least."""

    def single(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y = leap(x[None], None if context is None else context[None])[0]
        return y.flatten(), y

    dims = (0, None if context is None else 0)
    rows = torch.func.vmap(torch.func.jacrev(single, has_aux=True), in_dims=dims)
    jacobian, y = rows(x, context)
    square = jacobian.flatten(2)
    return y, square.to(torch.promote_types(square.dtype, torch.float32))


def _undone(leap: Map, y: Tensor, guess: Tensor, context: Tensor | None, where: str) -> Tensor:
    """Return the starts of leaps that end at y."""
    root = _searched(leap, y.detach(), guess, context, where)
    end, jacobian = _linearised(leap, root, context)
    # One more step of Newton's, at the detached root: its gradient is that of the inverse.
    return root - _solved(jacobian.detach(), end - y)


@torch.no_grad()
def _searched(leap: Map, y: Tensor, x: Tensor, context: Tensor | None, where: str) -> Tensor:
    end, jacobian = _linearised(leap, x, context)
    size = lambda residual: residual.flatten(1).norm(dim=1)
    miss = size(end - y)
    tolerance = 100 * torch.finfo(y.dtype).eps * (1 + size(y))
    for _ in range(ITERATIONS):
        if bool((miss <= tolerance).all()):
            break
        step, share, tried = _solved(jacobian, end - y), torch.ones_like(miss), x
        for _ in range(HALVINGS):
            tried = x - share.reshape(-1, *(1,) * (x.dim() - 1)) * step
            worse = ~(size(leap(tried, context) - y) < miss) & (miss > tolerance)
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        moving = (miss > tolerance).reshape(-1, *(1,) * (x.dim() - 1))
        x = torch.where(moving, tried, x)
        end, jacobian = _linearised(leap, x, context)
        miss = size(end - y)
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
    """Return J^-1 residual in shape and dtype of the residual; itself where J is singular."""
    flat = residual.flatten(1).to(jacobian.dtype)[..., None]
    step, info = torch.linalg.solve_ex(jacobian, flat)
    step = torch.where((info == 0)[:, None, None], step, flat)
    return step[..., 0].reshape(residual.shape).to(residual.dtype)


def _rows(context: Tensor | None, batch: Shape) -> Tensor | None:
    if context is None:
        return None
    return context.flatten(0, len(batch) - 1) if batch else context[None]
