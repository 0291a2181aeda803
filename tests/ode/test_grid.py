"""Time grids: shares that rise from 0 to 1, the same times in both directions, orders kept."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.ode import (
    RK4,
    AdamsBashforth2,
    AdamsBashforth3,
    CosineGrid,
    EDMGrid,
    Euler,
    Grid,
    Heun,
    TimeGrid,
    UniformGrid,
)

TIMES = (0.0, 0.03, 0.1, 0.35, 0.6, 1.0)
GRIDS = [UniformGrid(), CosineGrid(), EDMGrid(), TimeGrid(TIMES)]
every = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: type(g).__name__)


@every
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_shares_rise_from_0_to_1(grid: Grid, steps: int) -> None:
    shares = grid.shares(steps, 0.0, 1.0)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert all(b > a for a, b in pairwise(shares))
    if not isinstance(grid, TimeGrid):
        assert len(shares) == steps + 1


@every
def test_a_backward_run_visits_the_same_times(grid: Grid) -> None:
    seen: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t[0].item())
        return -y

    ends = (0.0, 1.0) if isinstance(grid, TimeGrid) else (0.2, 0.9)
    Euler(5, grid=grid).solve(f, torch.ones(1, 1), *ends)
    forward = [*seen, ends[1]]
    seen.clear()
    Euler(5, grid=grid).solve(f, torch.ones(1, 1), *reversed(ends))
    assert [*seen, ends[0]] == pytest.approx(forward[::-1], abs=1e-12)


@every
@pytest.mark.parametrize("solver", [Heun, RK4, AdamsBashforth2, AdamsBashforth3])
def test_tensors_of_times_take_the_same_grid(grid: Grid, solver) -> None:
    f = lambda t, y: y * torch.cos(5 * t)[:, None]
    y0 = torch.randn(3, 2)
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        plain = solver(5, grid=grid).solve(f, y0, t0, t1).y
        tensors = torch.full((3,), t0), torch.full((3,), t1)
        assert torch.allclose(solver(5, grid=grid).solve(f, y0, *tensors).y, plain, atol=1e-13)


@pytest.mark.parametrize(("solver", "order"), [(AdamsBashforth2, 2), (AdamsBashforth3, 3)])
def test_multistep_methods_keep_their_order_on_uneven_grids(solver, order: int) -> None:
    f = lambda t, y: y * torch.cos(t)[:, None]
    y0, errors = torch.tensor([[1.0]]), []
    for n in (160, 320, 640):
        y = solver(n, grid=CosineGrid()).solve(f, y0, 0.0, 2.0).y
        errors.append(abs(y.item() - math.exp(math.sin(2.0))))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.25)


def test_times_of_the_users_are_taken_as_they_are() -> None:
    grid = TimeGrid(torch.tensor(TIMES))
    assert grid == TimeGrid(list(TIMES))
    solution = Euler(grid=grid).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
    assert solution.nfe.item() == len(TIMES) - 1
    with pytest.raises(DomainError, match="times must rise"):
        TimeGrid([0.0, 0.5, 0.5, 1.0])
    with pytest.raises(DomainError, match="must run from 0 to 2, the ends of the solve"):
        Euler(grid=grid).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 2.0)
    with pytest.raises(DomainError, match="sigma_max must be"):
        EDMGrid(sigma_min=1.0, sigma_max=0.5)


def test_a_grid_with_short_steps_where_the_field_is_quick_errs_less() -> None:
    f = lambda t, y: 1 / (1.02 - t)[:, None].expand_as(y)  # quick near t = 1
    true = math.log(1.02 / 0.02)
    error = lambda grid: abs(
        Heun(16, grid=grid).solve(f, torch.zeros(1, 1), 0.0, 1.0).y.item() - true
    )
    assert error(EDMGrid()) < 0.5 * error(UniformGrid())
