"""What an ODE owes on every manifold: it comes back, stays there, and keeps account of volumes."""

import functools

import pytest
import torch
from manifolds import CASES, ManifoldCase
from torch import Tensor
from torch.func import jacrev

from cflow.field import FlowMap, FourierTime, FunctionField, MLPField, SpanTime, SurfaceField
from cflow.manifold import Manifold
from cflow.nets import MLP
from cflow.ode import RK4, Dopri5, Euler, Heun, Midpoint, Solver
from cflow.state import State, tracked
from cflow.transport import ODE, Leap

every = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
SMOOTH = [case for case in CASES if case.smooth]
smooth_ones = pytest.mark.parametrize("case", SMOOTH, ids=[case.name for case in SMOOTH])
LOGARITHMS = [case for case in CASES if case.logarithm]
with_log = pytest.mark.parametrize("case", LOGARITHMS, ids=[case.name for case in LOGARITHMS])


def smooth(case: ManifoldCase, space: Manifold, speed: float = 0.5) -> FunctionField:
    """Return a smooth field, tangent by projection; periodic where the points are angles."""
    torch.manual_seed(5)
    size = torch.Size(case.event).numel()
    net = MLP(2 * size, size, context=1, hidden_features=(16,), activation="tanh")
    period = getattr(space, "period", 2 * torch.pi)
    wave = 2 * torch.pi / period

    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        flat = wave * x.flatten(-space.ndim)
        seen = torch.cat([flat.sin(), flat.cos()], -1)
        u = case.reach * speed * net(seen, t[..., None]).reshape(x.shape)
        return space.proju(x, u)

    return FunctionField(velocity)


@smooth_ones
@pytest.mark.parametrize("solver", [Dopri5(1e-6, 1e-6), RK4(6)], ids=["adaptive", "fixed"])
def test_there_and_back_again(case: ManifoldCase, solver: Solver) -> None:
    space, x, _ = case.draw()
    ode = ODE(smooth(case, space), solver, manifold=space)
    there = ode.push(tracked(x, event_dim=space.ndim))
    assert space.check_point(there.x, atol=1e-9)[0]
    assert (space.dist(there.x, x) > 1e-3 * case.reach).all()
    back = ode.pull(there)
    assert space.dist(back.x, x).max() < 1e-5
    assert back.ladj is not None
    assert back.ladj.abs().max() < 1e-5


def framed_log_det(space: Manifold, x: Tensor, ode: ODE | Leap) -> Tensor:
    """Return log|det| of a push between Riemannian volumes, from its autograd Jacobian."""
    size = x.numel()
    push = lambda x: ode.push(State(x)).x.flatten()
    y = ode.push(State(x)).x
    start, end = space.frame(x), space.frame(y)
    basis = torch.eye(size) if start is None else start[0].flatten(1)
    dual = torch.eye(size) if end is None else end[1].flatten(1)
    along = lambda c: push(space.expmap(x, (c @ basis).reshape(x.shape)))
    jacobian = dual @ jacrev(along)(torch.zeros(len(basis)))
    before, after = space.log_volume_element(x), space.log_volume_element(y)
    gained = 0.0 if before is None or after is None else after - before
    return torch.linalg.slogdet(jacobian).logabsdet + gained


@smooth_ones
def test_ladj_is_that_of_the_jacobian_between_tangent_spaces(case: ManifoldCase) -> None:
    """Its error is that of the steps; an independent account of volumes, frame by frame."""
    space, x, _ = case.draw(2)
    ode = ODE(smooth(case, space), RK4(8), manifold=space)
    for point in x:
        ladj = ode.push(tracked(point, event_dim=space.ndim)).ladj
        assert ladj is not None
        assert abs(ladj - framed_log_det(space, point, ode)) < 1e-6


@functools.cache
def exact_end(case: ManifoldCase) -> Tensor:
    """Return where the points of a case arrive, which all solvers are held against."""
    space, x, _ = case.draw()
    return ODE(smooth(case, space), Dopri5(1e-11, 1e-11), manifold=space).push(State(x)).x.detach()


@smooth_ones
@pytest.mark.parametrize("solver", [Euler, Midpoint, Heun, RK4])
def test_solvers_keep_their_order(case: ManifoldCase, solver: type) -> None:
    space, x, _ = case.draw()
    field, exact = smooth(case, space), exact_end(case)
    run = lambda s: ODE(field, s, manifold=space).push(State(x)).x
    order = {Euler: 1, Midpoint: 2, Heun: 2, RK4: 4}[solver]
    coarse, fine = (space.dist(run(solver(n)), exact).mean() for n in (8, 16))
    assert fine < 1e-9 or coarse / fine > 2 ** (order - 0.5)


@smooth_ones
def test_a_trajectory_passes_through_the_states_of_its_pieces(case: ManifoldCase) -> None:
    space, x, _ = case.draw(3)
    ode = ODE(smooth(case, space), Dopri5(1e-8, 1e-8), manifold=space)
    path = ode.trajectory(x, [0.0, 0.3, 1.0])
    assert path.shape == (3, *x.shape)
    assert space.check_point(path, atol=1e-8)[0]
    assert space.dist(path[2], ode.push(State(x)).x).max() < 1e-6
    assert space.dist(ode.trajectory(path[1], [0.3, 0.0])[1], x).max() < 1e-5


@every
def test_gradients_reach_the_field(case: ManifoldCase) -> None:
    space, x, _ = case.draw(3)
    field = MLPField(torch.Size(case.event).numel(), hidden_features=(8,), frequencies=1)
    flat = FunctionField(
        lambda t, x, c: case.reach * field(t, x.flatten(-space.ndim), c).reshape(x.shape)
    )
    ode = ODE(SurfaceField(flat, space) if space.creased else flat, RK4(2), manifold=space)
    state = ode.pull(tracked(x, event_dim=space.ndim))
    assert state.ladj is not None
    (state.ladj.sum() + state.x.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


class FlatMap(FlowMap):
    """A flow map whose network sees the entries of a point as a vector."""

    def __init__(self, size: int, space: Manifold, scale: float) -> None:
        super().__init__()
        time = SpanTime(FourierTime(1), FourierTime(1))
        self.net = MLPField(size, hidden_features=(8,), time=time)
        self.space, self.scale = space, scale

    def forward(self, r: Tensor, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        times = torch.stack([r, t - r], -1)
        return self.scale * self.net(times, x.flatten(-self.space.ndim), context).reshape(x.shape)


@with_log
def test_leaps_keep_account_and_come_back(case: ManifoldCase) -> None:
    space, x, _ = case.draw(2)
    torch.manual_seed(3)
    size = torch.Size(case.event).numel()
    leap = Leap(FlatMap(size, space, 0.5 * case.reach), Euler(2), manifold=space)
    there = leap.push(tracked(x, event_dim=space.ndim))
    assert space.check_point(there.x, atol=1e-9)[0]
    back = leap.pull(there)
    assert space.dist(back.x, x).max() < 1e-7
    assert back.ladj is not None
    assert there.ladj is not None
    assert back.ladj.abs().max() < 1e-6
    for point, ladj in zip(x, there.ladj, strict=True):
        assert abs(ladj - framed_log_det(space, point, leap)) < 1e-6
