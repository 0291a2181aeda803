"""Adaptive solving by sample: independence of batch mates, failures with their names."""

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, SolverError
from cflow.ode import Dopri5, Status


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


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}], ids=str)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(DomainError, match="must be"):
        Dopri5(**options)


def test_dopri5_agrees_with_torchdiffeq() -> None:
    from torchdiffeq import odeint

    y0 = torch.randn(6, 3)
    f = lambda t, y: torch.sin(3 * y) * (1 + t.reshape(-1, 1))
    ours = Dopri5(1e-9, 1e-9).solve(f, y0, 0.0, 1.0).y
    theirs = odeint(f, y0, torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    assert torch.allclose(ours, theirs, atol=1e-7)
