"""Adaptive solving by sample: independence of batch mates, failures with their names."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.ode import RK4, BogackiShampine, Dopri5, PIController, Solver, Status, Tsit5

every = pytest.mark.parametrize(
    "solver", [Dopri5, Tsit5, BogackiShampine], ids=lambda s: s.__name__
)


def decay(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """A relaxation towards a moving target; stiff where the rate is large."""
    return -rate[:, None] * (y - torch.cos(t)[:, None])


def test_a_sample_is_bitwise_the_same_alone_and_beside_a_stiff_mate() -> None:
    y0, rate = torch.randn(50, 2), torch.ones(50)
    stiff_y, stiff_rate = torch.cat([y0, y0[:1]]), torch.cat([rate, torch.tensor([2000.0])])
    solver = Dopri5(1e-6, 1e-6, max_steps=10_000)
    plain = solver.solve(decay, y0, 0.0, 1.0, args=(rate,))
    beside = solver.solve(decay, stiff_y, 0.0, 1.0, args=(stiff_rate,))
    alone = solver.solve(decay, y0[7:8], 0.0, 1.0, args=(rate[7:8],))
    assert torch.equal(plain.y, beside.y[:50])
    assert torch.equal(plain.nfe, beside.nfe[:50])
    assert torch.equal(alone.y[0], beside.y[7])
    assert beside.nfe[50] > 20 * beside.nfe[:50].max()


def test_finished_samples_cost_nothing() -> None:
    rows = 0

    def counted(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        nonlocal rows
        rows += len(t)
        return decay(t, y, rate)

    rate = torch.cat([torch.ones(200), torch.tensor([500.0])])
    solution = Dopri5(1e-5, 1e-5).solve(counted, torch.randn(201, 2), 0.0, 1.0, args=(rate,))
    assert rows == int(solution.nfe.sum())
    assert int(solution.nfe[-1]) > 5 * int(solution.nfe[:-1].max())
    assert rows < 0.2 * len(rate) * int(solution.nfe[-1])  # what a shared clock would cost


def test_a_nan_row_gets_its_own_status_and_leaves_its_mates_alone() -> None:
    def f(t: Tensor, y: Tensor, bad: Tensor) -> Tensor:
        return torch.where((bad & (t > 0.5))[:, None], torch.nan, -y)

    y0 = torch.randn(4, 2)
    bad = torch.tensor([False, True, False, False])
    solver = Dopri5(1e-8, 1e-8, throw=False)
    solution = solver.solve(f, y0, 0.0, 1.0, args=(bad,))
    clean = solver.solve(f, y0, 0.0, 1.0, args=(torch.zeros(4, dtype=torch.bool),))
    assert solution.status.tolist() == [Status.DONE, Status.NON_FINITE, Status.DONE, Status.DONE]
    assert torch.equal(solution.y[[0, 2, 3]], clean.y[[0, 2, 3]])
    assert bool(torch.isfinite(solution.y).all())  # the last good state, never a NaN
    with pytest.raises(
        SolverError, match=r"1 of 4 samples failed; sample 1 stopped at t=0\.5.*non"
    ):
        Dopri5(1e-8, 1e-8).solve(f, y0, 0.0, 1.0, args=(bad,))


def test_a_field_that_is_nan_from_the_start_is_named_at_once() -> None:
    solver = Dopri5(throw=False)
    solution = solver.solve(lambda t, y: y * torch.nan, torch.ones(2, 1), 0.0, 1.0)
    assert solution.status.tolist() == [Status.NON_FINITE] * 2
    assert torch.equal(solution.y, torch.ones(2, 1))


def test_steps_run_out_with_the_last_good_state() -> None:
    f = lambda t, y: -50 * y
    solution = Dopri5(1e-8, 1e-8, max_steps=3, throw=False).solve(f, torch.ones(2, 1), 0.0, 1.0)
    assert solution.status.tolist() == [Status.STEPS_EXHAUSTED] * 2
    assert bool(((solution.y > 0) & (solution.y <= 1)).all())
    with pytest.raises(
        SolverError, match=r"2 of 2 samples failed; sample 0.*steps exhausted after 3"
    ):
        Dopri5(1e-8, 1e-8, max_steps=3).solve(f, torch.ones(2, 1), 0.0, 1.0)


def test_a_blow_up_ends_as_underflow_or_non_finite_and_not_in_an_endless_loop() -> None:
    f = lambda t, y: y.square()  # y = 1 / (1 - t): no solution at t = 1
    solution = Dopri5(throw=False).solve(f, torch.ones(1, 1), 0.0, 2.0)
    assert solution.status.item() in (Status.STEP_UNDERFLOW, Status.NON_FINITE)


def test_the_gradient_is_that_of_the_exact_flow() -> None:
    y0 = torch.tensor([[0.3], [1.2]], requires_grad=True)
    y = Dopri5(1e-9, 1e-9).solve(lambda t, y: y * (1 - y), y0, 0.0, 2.0).y
    y.sum().backward()
    growth = torch.e**2
    expected = growth / (1 + y0 * (growth - 1)).square()  # of the logistic map
    assert torch.allclose(y0.grad, expected, atol=1e-7)


def test_a_norm_of_the_users_decides_what_counts() -> None:
    f = lambda t, y: (-y[0], torch.cos(40 * t))
    y0 = (torch.ones(1, 2), torch.zeros(1))
    both = Dopri5(1e-6, 1e-6).solve(f, y0, 0.0, 1.0)
    first = Dopri5(1e-6, 1e-6, norm=lambda r: r[0].square().mean(1).sqrt()).solve(f, y0, 0.0, 1.0)
    assert first.nfe.item() < both.nfe.item()


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 0.0},
        {"atol": -1.0},
        {"atol": float("nan")},
        {"atol": (1e-3, 0.0)},
        {"rtol": torch.tensor([1e-3, 0.0])},
        {"max_steps": 0},
        {"min_step": -1.0},
        {"initial_step": 0.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(DomainError, match=rf"Dopri5: {next(iter(options))} must be"):
        Dopri5(**options)
    with pytest.raises(DomainError, match="0 < shrink < 1 < grow"):
        PIController(shrink=2.0)


def test_max_steps_of_one_is_a_status_and_an_error_that_name_sample_and_time() -> None:
    f = lambda t, y: -50 * y
    y0 = torch.ones(2, 1)
    solution = Dopri5(1e-8, 1e-8, max_steps=1, throw=False).solve(f, y0, 0.0, 1.0)
    assert solution.status.tolist() == [Status.STEPS_EXHAUSTED] * 2
    assert bool((solution.accepted + solution.rejected == 1).all())
    assert bool((solution.reached < 0.1).all())
    with pytest.raises(SolverError, match=r"sample 0 stopped at t=0.* \(steps exhausted after 1"):
        Dopri5(1e-8, 1e-8, max_steps=1).solve(f, y0, 0.0, 1.0)


def test_min_step_gives_up_and_never_accepts_a_bad_step() -> None:
    f = lambda t, y: torch.where(t < 0.5, 0.0, 1e6)[:, None] * torch.ones_like(y)
    options = dict(rtol=1e-9, atol=1e-9, throw=False)
    solution = Dopri5(min_step=1e-3, **options).solve(f, torch.ones(1, 1), 0.0, 1.0)
    assert solution.status.item() == Status.STEP_UNDERFLOW
    assert solution.y.item() == pytest.approx(1.0)
    assert 0.4 < solution.reached.item() <= 0.5
    free = Dopri5(**options).solve(f, torch.ones(1, 1), 0.0, 1.0)
    assert free.y.item() == pytest.approx(5e5, rel=1e-3)


def test_an_initial_step_saves_the_evaluation_that_guesses_it() -> None:
    f = lambda t, y: torch.zeros_like(y)
    guessed = Dopri5().solve(f, torch.ones(1, 1), 0.0, 1.0)
    given = Dopri5(initial_step=10.0).solve(f, torch.ones(1, 1), 0.0, 1.0)
    assert given.nfe.item() == 7  # one slope, one step
    assert guessed.nfe.item() > given.nfe.item()
    backward = Dopri5(initial_step=0.25).solve(lambda t, y: y, torch.ones(1, 1), 1.0, 0.0)
    assert backward.y.item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=1e-4)


def test_tolerances_by_component_decide_what_is_controlled() -> None:
    f = lambda t, y: (-y[0], torch.cos(60 * t))
    y0 = (torch.ones(3, 2), torch.zeros(3))
    solve = lambda **tolerances: Dopri5(**tolerances).solve(f, y0, 0.0, 1.0)
    both = solve(rtol=1e-7, atol=1e-7)
    first = solve(rtol=1e-7, atol=(1e-7, float("inf")))
    assert int(first.nfe.sum()) < 0.5 * int(both.nfe.sum())
    assert torch.allclose(first.y[0], torch.full((3, 2), -1.0).exp(), atol=1e-6)
    assert torch.allclose(both.y[1], torch.sin(torch.tensor(60.0)).expand(3) / 60, atol=1e-6)
    entries = solve(rtol=1e-7, atol=(torch.tensor([1e-7, 1e-2]), float("inf")))
    assert int(entries.nfe.sum()) <= int(first.nfe.sum())
    with pytest.raises(ShapeError, match="lists 1 tolerances for a state of 2 leaves"):
        solve(atol=(1e-5,))
    with pytest.raises(ShapeError, match=r"rtol of shape \(3,\) does not broadcast"):
        solve(rtol=torch.full((3,), 1e-5))


@every
def test_a_trial_that_turns_nan_leaves_the_gradient_of_its_mates_finite(solver) -> None:
    """Row 1 is NaN at every trial that looks past t = 0.6 in steps longer than a hundredth."""
    weight = torch.tensor(1.0, requires_grad=True)

    def f(t: Tensor, y: Tensor, bad: Tensor) -> Tensor:
        inner = weight * y / torch.where(bad, 0.8 - t, 1.0)[:, None].clamp(min=0)
        return -inner * torch.where(bad, 0.8 - t, 1.0)[:, None]  # 0 / 0 from t = 0.8 on

    y0 = torch.ones(4, 2)
    bad = torch.tensor([False, True, False, False])
    quiet = solver(1e-3, 1e-3, throw=False, max_steps=200)
    solution = quiet.solve(f, y0, 0.0, 1.0, args=(bad,))
    assert solution.status[1] != Status.DONE
    assert int(solution.rejected[1]) > 0
    solution.y[[0, 2, 3]].sum().backward()
    clean = torch.tensor(1.0, requires_grad=True)
    solver(1e-3, 1e-3).solve(lambda t, y: -clean * y, y0[:3], 0.0, 1.0).y.sum().backward()
    assert weight.grad.item() == pytest.approx(clean.grad.item(), rel=1e-6)


def test_a_start_that_is_nan_leaves_the_gradient_of_its_mates_finite() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    y0 = torch.tensor([[1.0], [float("nan")], [1.0]])
    y = Dopri5(throw=False).solve(lambda t, y: weight * y, y0, 0.0, 1.0).y
    y[[0, 2]].sum().backward()
    assert weight.grad.item() == pytest.approx(2 * torch.tensor(2.0).exp().item(), rel=1e-3)


def network(dtype: torch.dtype) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_network_takes_the_same_steps_in_any_company(dtype: torch.dtype) -> None:
    """Matrix products round by batch, so values agree to rounding and steps almost always."""
    net = network(dtype)
    f = lambda t, y, rate: (
        4 * net(torch.cat([y, t[:, None]], 1)) - rate[:, None] * (y - torch.cos(t)[:, None])
    )
    y0, rate = torch.randn(200, 2, dtype=dtype), torch.zeros(200, dtype=dtype)
    rate[-1] = 500.0
    solver = Dopri5(1e-5, 1e-5, max_steps=10_000)
    whole = solver.solve(f, y0, 0.0, 1.0, args=(rate,))
    plain = solver.solve(f, y0[:-1], 0.0, 1.0, args=(rate[:-1],))
    alone = [solver.solve(f, y0[k : k + 1], 0.0, 1.0, args=(rate[k : k + 1],)) for k in range(50)]
    lonely, count = torch.cat([s.y for s in alone]), torch.cat([s.nfe for s in alone])
    apart = max((whole.y[:-1] - plain.y).abs().max(), (whole.y[:50] - lonely).abs().max())
    same = min(
        (whole.nfe[:-1] == plain.nfe).double().mean(), (whole.nfe[:50] == count).double().mean()
    )
    if dtype == torch.float64:
        assert same == 1
        assert apart < 1e-10
    else:
        assert same >= 0.9
        assert apart < 1e-4


# Numbers of the host become tensors by these, before they go to the device in its dtype.
HOST = ("aten.lift_fresh.default", "aten._to_copy.default", "aten.detach.default")


@pytest.mark.unchecked
@pytest.mark.parametrize("solver", [Dopri5(1e-3, 1e-3), Tsit5(1e-3, 1e-3), RK4(4)], ids=repr)
def test_a_float32_solve_makes_no_float64_tensor_on_the_device(solver: Solver) -> None:
    """Some devices have none."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if str(func) not in HOST:
                leaves = [out] if isinstance(out, Tensor) else out if isinstance(out, list) else []
                seen.update((x.dtype, str(func)) for x in leaves if isinstance(x, Tensor))
            return out

    y0 = torch.ones(3, 2, dtype=torch.float32)
    f = lambda t, y: -y * t[:, None]
    with Watch():
        solver.solve(f, y0, 0.0, 1.0, save_at=[0.3, 1.0])
    assert seen
    assert not [entry for entry in seen if entry[0] == torch.float64]


def test_dopri5_agrees_with_torchdiffeq() -> None:
    from torchdiffeq import odeint

    y0 = torch.randn(6, 3)
    f = lambda t, y: torch.sin(3 * y) * (1 + t.reshape(-1, 1))
    ours = Dopri5(1e-9, 1e-9).solve(f, y0, 0.0, 1.0).y
    theirs = odeint(f, y0, torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    assert torch.allclose(ours, theirs, atol=1e-7)
