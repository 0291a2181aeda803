"""What every solver owes: its order, both directions of time, and an honest account."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.ode import RK4, Dopri5, Euler, Heun, Midpoint, Solver, Status, tableau

FIXED = [(Euler, 1), (Midpoint, 2), (Heun, 2), (RK4, 4)]
SOLVERS: list[Solver] = [Euler(50), Midpoint(20), Heun(20), RK4(20), Dopri5(1e-8, 1e-8)]


def loose(solver: Solver) -> float:
    """What the solvers above reach on the problems below, by their order."""
    return {"Euler": 5e-2, "Midpoint": 5e-3, "Heun": 5e-3}.get(type(solver).__name__, 1e-4)


fixed = pytest.mark.parametrize(("solver", "order"), FIXED, ids=lambda v: getattr(v, "__name__", v))
every = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def swing(t: Tensor, y: Tensor) -> Tensor:
    """y' = y cos t has the solution y0 exp(sin t - sin t0)."""
    return y * torch.cos(t)[:, None]


def exact(y0: Tensor, t0: float, t1: float) -> Tensor:
    return y0 * math.exp(math.sin(t1) - math.sin(t0))


@fixed
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 2.0), (2.0, 0.0)], ids=["forward", "backward"])
def test_error_falls_at_the_order_of_the_method(solver, order: int, t0: float, t1: float) -> None:
    y0 = torch.tensor([[1.0], [-2.0]])
    steps = (16, 32, 64)
    errors = [
        (solver(n).solve(swing, y0, t0, t1).y - exact(y0, t0, t1)).abs().max().item() for n in steps
    ]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.25)


@fixed
def test_polynomials_up_to_the_order_are_solved_exactly(solver, order: int) -> None:
    f = lambda t, y: (order * t ** (order - 1))[:, None].expand_as(y)
    y = solver(1).solve(f, torch.zeros(1, 1), 0.0, 1.0).y
    assert y.item() == pytest.approx(1.0, abs=1e-14)


def test_dopri5_error_follows_its_tolerance() -> None:
    y0 = torch.tensor([[1.0]])
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        y = Dopri5(tolerance, tolerance).solve(swing, y0, 0.0, 5.0).y
        assert (y - exact(y0, 0.0, 5.0)).abs().max().item() < 20 * tolerance


@pytest.mark.parametrize("name", ["EULER", "MIDPOINT", "HEUN", "RK4", "DOPRI5"])
def test_tableaus_meet_the_order_conditions(name: str) -> None:
    """Row sums, quadrature to the order, and the first condition on the triangle."""
    method = getattr(tableau, name)
    n = method.stages
    a = torch.zeros(n, n)
    for k, row in enumerate(method.a):
        a[k + 1, : len(row)] = torch.tensor(row)
    b, c = torch.tensor(method.b), torch.tensor((0.0, *method.c))
    assert torch.allclose(a.sum(1), c)
    for k in range(method.order):
        assert (b * c**k).sum().item() == pytest.approx(1 / (k + 1), abs=1e-14)
    if method.order >= 3:
        assert (b @ a @ c).item() == pytest.approx(1 / 6, abs=1e-14)
    if method.error is not None:
        lower = b - torch.tensor(method.error)
        for k in range(method.order - 1):
            assert (lower * c**k).sum().item() == pytest.approx(1 / (k + 1), abs=1e-14)
        assert (lower * c**4).sum().item() != pytest.approx(1 / 5, abs=1e-6)


@every
def test_forward_then_backward_returns(solver: Solver) -> None:
    y0 = torch.randn(5, 2)
    there = solver.solve(swing, y0, 0.0, 1.0).y
    back = solver.solve(swing, there, 1.0, 0.0).y
    assert torch.allclose(back, y0, atol=2 * loose(solver))


@every
@pytest.mark.parametrize(("t0", "t1"), [(0.25, 0.75), (0.75, 0.25)], ids=["forward", "backward"])
def test_the_field_is_never_asked_outside_the_interval(
    solver: Solver, t0: float, t1: float
) -> None:
    times = []

    def watched(t: Tensor, y: Tensor) -> Tensor:
        times.append(t)
        return -y

    solver.solve(watched, torch.randn(3, 2), t0, t1)
    seen = torch.cat(times)
    assert seen.min() >= 0.25 - 1e-12
    assert seen.max() <= 0.75 + 1e-12


@every
def test_the_account_counts_every_evaluation_of_every_sample(solver: Solver) -> None:
    rows = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        rows.append(len(t))
        return y * torch.cos(5 * t)[:, None]

    solution = solver.solve(counted, torch.randn(7, 2), 0.0, 1.0)
    assert int(solution.nfe.sum()) == sum(rows)
    assert bool((solution.status == Status.DONE).all())
    assert bool((solution.accepted >= 1).all())


@every
def test_trees_of_states_and_arguments_of_any_shape(solver: Solver) -> None:
    a, b = torch.randn(4, 2, 3), torch.randn(4)
    rate = torch.rand(4)

    def f(t: Tensor, y: dict, rates: dict) -> dict:
        return {"a": -y["a"], "b": rates["r"] * y["b"]}

    y = solver.solve(f, {"a": a, "b": b}, 0.0, 1.0, args=({"r": rate, "none": None},)).y
    assert torch.allclose(y["a"], a * math.exp(-1), atol=loose(solver))
    assert torch.allclose(y["b"], b * rate.exp(), rtol=loose(solver), atol=loose(solver))


@every
def test_saved_states_are_those_of_shorter_solves(solver: Solver) -> None:
    y0 = torch.randn(3, 2)
    times = [0.0, 0.2, 0.35, 1.0]
    solution = solver.solve(swing, y0, 0.0, 1.0, save_at=times)
    assert solution.y.shape == (4, 3, 2)
    assert torch.equal(solution.y[0], y0)
    for k, t in enumerate(times):
        assert torch.allclose(solution.y[k], exact(y0, 0.0, t), atol=loose(solver))
    falling = solver.solve(swing, y0, 1.0, 0.0, save_at=torch.tensor([0.9, 0.1]))
    assert torch.allclose(falling.y[1], exact(y0, 1.0, 0.1), atol=loose(solver))


@every
def test_gradients_reach_the_start_the_arguments_and_the_end_times(solver: Solver) -> None:
    y0 = torch.randn(3, 1, requires_grad=True)
    rate = torch.rand(3, requires_grad=True)
    t0, t1 = torch.tensor(0.1, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    f = lambda t, y, r: r[:, None] * y
    solver.solve(f, y0, t0, t1, args=(rate,)).y.sum().backward()
    growth = (rate * 0.8).exp()[:, None]
    assert torch.allclose(y0.grad, growth, atol=loose(solver))
    assert torch.allclose(rate.grad[:, None], 0.8 * y0 * growth, atol=loose(solver))
    slope = (rate[:, None] * y0 * growth).sum()
    assert t1.grad.item() == pytest.approx(slope.item(), abs=5 * loose(solver))
    assert t0.grad.item() == pytest.approx(-slope.item(), abs=5 * loose(solver))


@every
def test_times_may_differ_by_sample(solver: Solver) -> None:
    y0, t1 = torch.ones(3, 1), torch.tensor([0.0, 0.5, -1.0])
    y = solver.solve(lambda t, y: -y, y0, torch.zeros(3), t1).y
    assert torch.allclose(y[:, 0], (-t1).exp(), atol=loose(solver))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_low_precision_state_keeps_its_dtype_and_time_stays_float32(
    solver: Solver, dtype: torch.dtype
) -> None:
    if solver.adaptive:
        solver = Dopri5(1e-2, 1e-2)
    seen = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return -y

    y = solver.solve(f, torch.ones(2, 2, dtype=dtype), 0.0, 1.0).y
    assert y.dtype == dtype
    assert seen == {torch.float32}
    assert y[0, 0].item() == pytest.approx(math.exp(-1), abs=0.05)


@every
def test_empty_batch_and_empty_interval(solver: Solver) -> None:
    assert solver.solve(swing, torch.zeros(0, 2), 0.0, 1.0).y.shape == (0, 2)
    y0 = torch.randn(3, 2)
    assert torch.equal(solver.solve(swing, y0, 0.5, 0.5).y, y0)


@every
def test_bad_problems_are_refused_in_words(solver: Solver) -> None:
    y0 = torch.ones(3, 2)
    with pytest.raises(ShapeError, match=r"return the structure and shapes.*\(3, 2\).*\(3, 1\)"):
        solver.solve(lambda t, y: y[:, :1], y0, 0.0, 1.0)
    with pytest.raises(ShapeError, match="share the batch axis of length 3"):
        solver.solve(lambda t, y, a: y, y0, 0.0, 1.0, args=(torch.ones(2),))
    with pytest.raises(ShapeError, match="leading batch axis"):
        solver.solve(lambda t, y: y, torch.tensor(1.0), 0.0, 1.0)
    with pytest.raises(DomainError, match="must be floating"):
        solver.solve(lambda t, y: y, torch.ones(3, dtype=torch.long), 0.0, 1.0)
    with pytest.raises(DomainError, match="t1 must be finite"):
        solver.solve(lambda t, y: y, y0, 0.0, math.nan)
    with pytest.raises(DomainError, match="without turning back"):
        solver.solve(lambda t, y: y, y0, 0.0, 1.0, save_at=[0.5, 0.2])
    with pytest.raises(DomainError, match="without turning back"):
        solver.solve(lambda t, y: y, y0, 0.0, 1.0, save_at=[1.5])


@pytest.mark.parametrize("steps", [0, -3, True])
@pytest.mark.parametrize("solver", [Euler, Midpoint, Heun, RK4])
def test_steps_must_be_whole_and_positive(solver, steps) -> None:
    with pytest.raises(DomainError, match="steps must be a whole number"):
        solver(steps)
