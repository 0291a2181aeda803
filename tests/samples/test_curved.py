"""Steps along the path: Euler's method where it is straight, exact where the ends are known."""

import pytest
import torch
from sampler_cases import MEAN, SCHEDULES, every_schedule, moment, normal_field
from torch import Tensor

from cflow.field import (
    CosineSchedule,
    GaussianMixture,
    LinearSchedule,
    MixtureField,
    PolynomialSchedule,
)
from cflow.ode import CosineGrid, Dopri5, Euler, Grid, UniformGrid
from cflow.samples import CurvedEuler, CurvedHeun


@pytest.mark.parametrize("grid", [UniformGrid(), CosineGrid()], ids=lambda g: type(g).__name__)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.3, 0.9), (1.0, 0.0)])
def test_on_the_linear_path_it_is_eulers_method(grid: Grid, start: float, end: float) -> None:
    field = lambda t, x, context: torch.sin(3 * x + t[:, None]) + context
    x0, context = torch.randn(50, 3), torch.randn(50, 3)
    ours = CurvedEuler(7, grid=grid).sample(field, x0, context, start=start, end=end)
    euler = Euler(7, grid=grid).solve(field, x0, start, end, args=(context,)).y
    assert torch.allclose(ours, euler, rtol=0, atol=1e-13)


def test_on_another_path_it_is_not_eulers_method() -> None:
    field, x0 = normal_field(CosineSchedule()), torch.randn(5, 1)
    ours = CurvedEuler(7, CosineSchedule()).sample(field, x0)
    plain = lambda t, x: field(t, x, None)
    assert (ours - Euler(7).solve(plain, x0, 0.0, 1.0).y).abs().min() > 1e-3


@every_schedule
@pytest.mark.parametrize("kind", [CurvedEuler, CurvedHeun])
def test_known_ends_are_reached_without_error(path: str, kind: type[CurvedEuler]) -> None:
    """All data at one point: from any place both ends are known, and so is the way between them."""
    schedule, data = SCHEDULES[path], 1.5

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        c = schedule(t).over(x)
        return c.d_alpha * data + c.d_sigma * (x - c.alpha * data) / c.sigma

    noise = torch.randn(6, 2)
    early, middle, late = (moment(schedule, t) for t in (0.05, 0.6, 0.95))
    start = early.alpha * data + early.sigma * noise
    for then in (middle, late):
        x = kind(3, schedule).sample(field, start, start=early.t, end=then.t)
        assert torch.allclose(x, then.alpha * data + then.sigma * noise, rtol=0, atol=1e-10)
    back = kind(3, schedule).sample(field, x, start=late.t, end=middle.t)
    assert torch.allclose(back, middle.alpha * data + middle.sigma * noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", ["polynomial", "vp", "linear_vp"])
def test_both_converge_to_the_solution_of_the_ode(path: str) -> None:
    schedule = SCHEDULES[path]
    laws = GaussianMixture(torch.zeros(1, 1)), GaussianMixture(torch.tensor([[-1.0], [2.0]]), 0.5)
    field, x0 = MixtureField(*laws, schedule), torch.linspace(-2, 2, 9)[:, None]
    solved = Dopri5(1e-6, 1e-6).solve(lambda t, x: field(t, x), x0, 0.1, 0.9).y
    away = lambda sampler: (sampler.sample(field, x0, start=0.1, end=0.9) - solved).abs().max()
    euler = [away(CurvedEuler(n, schedule)) for n in (20, 40)]
    heun = [away(CurvedHeun(n, schedule)) for n in (20, 40)]
    assert 0.35 < euler[1] / euler[0] < 0.65
    assert heun[1] / heun[0] < 0.35
    assert heun[1] < 0.02


def test_where_the_path_stands_still_the_field_is_asked_further_in() -> None:
    """At t = 0 of t^2 the velocity is 0 and tells nothing; a margin on, it tells E[x1]."""
    x0, schedule = torch.randn(5, 1), PolynomialSchedule(2.0)
    x = CurvedEuler(1, schedule).sample(normal_field(schedule), x0, end=0.5)
    assert torch.allclose(x, 0.25 * MEAN + 0.75 * x0, rtol=0, atol=1e-3)


def test_two_halves_make_a_whole() -> None:
    field, x0 = normal_field(CosineSchedule()), torch.randn(5, 2)
    half = CurvedEuler(5, CosineSchedule())
    middle = half.sample(field, x0, end=0.5)
    whole = CurvedEuler(10, CosineSchedule()).sample(field, x0)
    assert torch.allclose(half.sample(field, middle, start=0.5), whole, rtol=0, atol=1e-12)


def test_there_and_back_again_finds_the_noise() -> None:
    field, x0 = normal_field(LinearSchedule()), torch.randn(20, 1)
    errors = []
    for steps in (50, 100):
        x1 = CurvedHeun(steps).sample(field, x0, end=0.95)
        errors.append((CurvedHeun(steps).sample(field, x1, start=0.95, end=0.0) - x0).abs().max())
    assert errors[1] < 0.35 * errors[0]
    assert errors[1] < 2e-3


def test_heun_costs_two_evaluations_save_for_the_last_step() -> None:
    calls = 0

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    CurvedHeun(5).sample(field, torch.randn(2, 1))
    assert calls == 9
