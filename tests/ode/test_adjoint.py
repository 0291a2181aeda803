"""Adjoints: gradients of everything, against autograd through the same steps and closed forms."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, SolverError
from cflow.ode import (
    RK4,
    AdamsBashforth3,
    Adjoint,
    Backsolve,
    BogackiShampine,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    Reversible,
    Solver,
    Torchdiffeq,
    Tsit5,
)


class Case(NamedTuple):
    """A field that reads a network, a leaf, a tensor with a graph of its own, and a context."""

    f: object
    y0: tuple[Tensor, Tensor]
    context: Tensor
    times: tuple[Tensor, Tensor]
    wanted: list[Tensor]


def case(batch: int = 7, per_sample_times: bool = False) -> Case:
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    leaf, hidden = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    derived = 0.5 * hidden**2
    y0 = torch.randn(batch, 3, requires_grad=True), torch.randn(batch, requires_grad=True)
    context = torch.randn(batch, 1, requires_grad=True)
    shape = (batch,) if per_sample_times else ()
    t0 = (0.1 + 0.2 * torch.rand(shape)).requires_grad_()
    t1 = (0.8 + 0.2 * torch.rand(shape)).requires_grad_()

    def f(t: Tensor, y: tuple[Tensor, Tensor], args: dict) -> tuple[Tensor, Tensor]:
        x, energy = y
        v = net(torch.cat([x, t[:, None], args["c"]], 1)) * torch.sigmoid(leaf) + derived
        return v, v.square().sum(1) - energy

    wanted = [*y0, context, t0, t1, leaf, hidden, *net.parameters()]
    return Case(f, y0, context, (t0, t1), wanted)


def gradients(made: Case, solver: Solver, adjoint: Adjoint) -> list[Tensor]:
    args = ({"c": made.context, "note": None},)
    x, energy = adjoint.solve(solver, made.f, made.y0, *made.times, args=args).y
    loss = (x * torch.linspace(-1, 1, 3)).sum() + energy.square().sum()
    return list(torch.autograd.grad(loss, made.wanted, retain_graph=True))


def worst(found: list[Tensor], true: list[Tensor]) -> float:
    pairs = zip(found, true, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


TIGHT = dict(rtol=1e-6, atol=1e-6)
SOLVERS = [Euler(7), RK4(9), AdamsBashforth3(12), Dopri5(**TIGHT), Tsit5(**TIGHT)]
name = lambda s: type(s).__name__


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("segments", [None, 1, 3, 50])
@pytest.mark.parametrize("each", [False, True], ids=["one time", "times by sample"])
def test_checkpoint_is_direct_to_rounding(solver: Solver, segments: int | None, each: bool) -> None:
    made = case(per_sample_times=each)
    direct = gradients(made, solver, Direct())
    assert worst(gradients(made, solver, Checkpoint(segments)), direct) < 1e-13


@pytest.mark.parametrize(
    "solver",
    [Euler(60), RK4(300), BogackiShampine(1e-4, 1e-4), Dopri5(**TIGHT), Tsit5(**TIGHT)],
    ids=name,
)
@pytest.mark.parametrize("each", [False, True], ids=["one time", "times by sample"])
def test_reversible_is_backpropagation_through_its_own_steps(solver: Solver, each: bool) -> None:
    made = case(per_sample_times=each)
    kept = gradients(made, Reversible(solver, backward="direct"), Direct())
    assert worst(gradients(made, Reversible(solver), Direct()), kept) < 1e-9
    plain = gradients(made, solver, Direct())
    assert worst(kept, plain) < (0.1 if isinstance(solver, Euler) else 1e-3)


@pytest.mark.parametrize("seminorm", [True, False])
@pytest.mark.parametrize("each", [False, True], ids=["one time", "times by sample"])
def test_backsolve_is_as_good_as_its_solver(seminorm: bool, each: bool) -> None:
    made = case(per_sample_times=each)
    true = gradients(made, Dopri5(1e-11, 1e-11), Direct())
    for tolerance in (1e-5, 1e-8):
        solver = Dopri5(tolerance, tolerance)
        assert worst(gradients(made, solver, Backsolve(seminorm=seminorm)), true) < 30 * tolerance
    other = gradients(made, Torchdiffeq("rk4", steps=40), Backsolve(Dopri5(1e-9, 1e-9)))
    assert worst(other, true) < 1e-5


def test_the_seminorm_saves_evaluations_of_the_backward_solve() -> None:
    calls = 0
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return net(y) * torch.cos(20 * t)[:, None]

    start, spent = torch.randn(100, 2), {}
    for seminorm in (True, False):
        y = Backsolve(seminorm=seminorm).solve(Dopri5(1e-7, 1e-7), f, start, 0.0, 1.0).y
        calls = 0
        y.sum().backward()
        spent[seminorm] = calls
    assert spent[True] < 0.8 * spent[False]


ADJOINTS = [Direct(), Checkpoint(), Backsolve()]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
@pytest.mark.parametrize("solver", [Dopri5(1e-8, 1e-8), Reversible(Dopri5(1e-8, 1e-8))], ids=name)
def test_gradients_pass_through_every_saved_time(adjoint: Adjoint, solver: Solver) -> None:
    if isinstance(solver, Reversible) and isinstance(adjoint, Checkpoint):
        with pytest.raises(DomainError, match="needs a fixed or adaptive solver"):
            adjoint.solve(solver, lambda t, y: y, torch.ones(1, 1), 0.0, 1.0)
        return
    rate = torch.tensor(0.7, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0]], requires_grad=True)
    times = torch.tensor([0.0, 0.3, 0.9])
    y = adjoint.solve(solver, lambda t, y: rate * y, y0, 0.0, 1.0, save_at=times).y
    weights = torch.tensor([1.0, -2.0, 3.0])[:, None, None]
    (y * weights).sum().backward()
    growth = (rate.detach() * times).exp()[:, None, None]
    assert torch.allclose(y0.grad, (weights * growth).sum(0).expand(2, 1), atol=1e-6)
    slope = (weights * growth * times[:, None, None] * y0.detach()).sum()
    assert rate.grad.item() == pytest.approx(slope.item(), abs=1e-6)


@pytest.mark.parametrize("solver", [RK4(4), Tsit5(1e-3, 1e-3)], ids=name)
@pytest.mark.parametrize("adjoint", [Direct(), Checkpoint()], ids=name)
def test_second_derivatives(solver: Solver, adjoint: Adjoint) -> None:
    scale = torch.tensor([0.5, 1.5], requires_grad=True)
    y0 = torch.randn(2, 2, requires_grad=True)

    def end(y0: Tensor, scale: Tensor) -> Tensor:
        return adjoint.solve(solver, lambda t, y: torch.sin(y) * scale, y0, 0.0, 1.0).y

    assert torch.autograd.gradgradcheck(end, (y0, scale), atol=1e-5)


@pytest.mark.parametrize("adjoint", [Backsolve(), Reversible(RK4(4))], ids=name)
def test_where_there_are_none_the_error_says_so(adjoint: object) -> None:
    y0 = torch.randn(2, 2, requires_grad=True)
    f = lambda t, y: torch.sin(y)
    if isinstance(adjoint, Reversible):
        y = adjoint.solve(f, y0, 0.0, 1.0).y
    else:
        y = adjoint.solve(RK4(4), f, y0, 0.0, 1.0).y
    with pytest.raises(
        DomainError, match=r"cannot be differentiated again.*Direct\(\) or Checkpoint"
    ):
        torch.autograd.grad(y.sum(), y0, create_graph=True)


@pytest.mark.parametrize("inner", [RK4(400), Tsit5(1e-5, 1e-5, max_steps=10_000)], ids=name)
def test_a_start_that_cannot_be_rebuilt_is_reported(inner: Solver) -> None:
    """Backward in time a relaxation of rate 100 grows rounding errors by e^100."""
    y0, rate = torch.randn(3, 1, requires_grad=True), torch.tensor([1.0, 100.0, 1.0])
    f = lambda t, y, r: -r[:, None] * (y - torch.cos(t)[:, None])
    y = Reversible(inner).solve(f, y0, 0.0, 1.0, args=(rate,)).y
    with pytest.raises(
        SolverError, match=r"start of 1 of 3 samples.*sample 1 is off by.*Checkpoint"
    ):
        y.sum().backward()
    assert torch.isfinite(y).all()


@pytest.mark.unchecked  # passes a wrong type on purpose
def test_reversible_refuses_what_it_cannot_rebuild() -> None:
    with pytest.raises(DomainError, match="projected state cannot be rebuilt"):
        Reversible(RK4()).solve(lambda t, y: y, torch.ones(1, 2), 0.0, 1.0, project=lambda y: y)
    with pytest.raises(DomainError, match="explicit Runge-Kutta"):
        Reversible(AdamsBashforth3())  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="coupling must lie in"):
        Reversible(RK4(), coupling=1.5)
    y0 = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(DomainError, match="solved backward"):
        Backsolve().solve(RK4(), lambda t, y: y, y0, 0.0, 1.0, project=lambda y: y)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_frozen_and_unused_parameters_are_left_alone(adjoint: Adjoint) -> None:
    """Half of the parameters act only late, so that no evaluation at the start can find them."""
    early, late = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    frozen, unused = torch.tensor(1.0), torch.tensor(1.0, requires_grad=True)
    f = lambda t, y: frozen * early * y + (late * y if bool((t > 0.5).all()) else 0.0)
    y0 = torch.ones(2, 1, requires_grad=True)
    given = (early, late, frozen, unused)
    solver = RK4(64)
    y = adjoint.solve(solver, f, y0, 0.0, 1.0, parameters=given).y
    y.sum().backward()
    assert late.grad.item() == pytest.approx(2 * 0.5 * torch.tensor(1.5).exp().item(), rel=0.02)
    assert unused.grad is None or unused.grad == 0
    assert frozen.grad is None
