"""The contract of samplers: right moments on every schedule, one seed one result, any shape."""

import pytest
import torch
from sampler_cases import (
    SAMPLERS,
    SCHEDULES,
    every_sampler,
    every_schedule,
    exact_moments,
    normal_field,
    true_moments,
)
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.field import (
    CosineSchedule,
    GaussianMixture,
    LinearSchedule,
    MixtureField,
    PredictionField,
    PredictX1,
    RetimedField,
)
from cflow.ode import CosineGrid, TimeGrid
from cflow.samples import SDE, CurvedEuler, CurvedHeun, NoiseRefresh, PredictorCorrector

FIRST_ORDER = {"curved_euler", "sde_order_1", "corrected"}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@every_schedule
@every_sampler
def test_defaults_reach_mean_and_variance_and_fewer_steps_do_not(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of variance 4, at most 0.3 is lacking at 100 steps of order 1, and 0.1 at 50 of order 2.

    With more steps the error shrinks in proportion, or faster.
    """
    schedule = SCHEDULES[path]
    first = name in FIRST_ORDER
    expected = true_moments(schedule, 1.0)
    mean, variance = exact_moments(SAMPLERS[name](schedule), schedule, monkeypatch)
    assert mean == pytest.approx(expected[0], abs=1e-3)
    assert variance == pytest.approx(expected[1], abs=0.3 if first else 0.1)
    few = SAMPLERS[name](schedule, steps=20 if first else 10)
    coarse = exact_moments(few, schedule, monkeypatch)[1]
    assert abs(variance - expected[1]) < 0.27 * abs(coarse - expected[1])


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["curved_heun", "sde", "noise_refresh", "overshooting"])
def test_order_two_is_of_order_two(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = SCHEDULES[path]
    few, many = (
        abs(exact_moments(SAMPLERS[name](schedule, steps=n), schedule, monkeypatch)[1] - 4.0)
        for n in (40, 80)
    )
    assert many < 0.35 * few  # a quarter in the limit; half for order one


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.35), (0.35, 0.7), (0.5, 1.0), (0.8, 0.4), (1.0, 0.0)]
)
@every_sampler
def test_the_marginals_are_right_on_the_way_from_half_way_and_backwards(
    name: str, start: float, end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("linear", "vp"):
        schedule = SCHEDULES[path]
        sampler = SAMPLERS[name](schedule, steps=40)
        mean, variance = exact_moments(sampler, schedule, monkeypatch, start=start, end=end)
        expected = true_moments(schedule, end)
        assert mean == pytest.approx(expected[0], abs=0.02)
        assert variance == pytest.approx(expected[1], rel=0.1)


LAWS = [("curved_heun", 0.9), ("noise_refresh", 0.9), ("overshooting", 0.9), ("corrected", 0.9)]


@pytest.mark.parametrize(("name", "t"), [*LAWS, ("sde", 0.3), ("sde", 0.6), ("sde", 1.0)])
def test_samples_of_a_mixture_follow_its_law(name: str, t: float) -> None:
    """Kolmogorov's test at 10,000 samples; the bound on chance alone fails below 1e-6.

    P(D > c) = 2 exp(-2 n c^2) gives c = 0.027; the discretisation may add 0.008 to it.
    """
    target = GaussianMixture(torch.tensor([[-2.0], [1.5]]), torch.tensor([0.4, 0.7]))
    field = MixtureField(GaussianMixture(torch.zeros(1, 1)), target, CosineSchedule())
    n = 10_000
    with torch.no_grad():
        sampler = SAMPLERS[name](CosineSchedule(), steps=30)
        x = sampler.sample(field, torch.randn(n, 1), generator=seeded(), end=t)[:, 0]
    c = CosineSchedule()(torch.tensor(t))
    means = c.alpha * target.means[:, 0]
    spreads = (c.alpha.square() * target.covariances[:, 0, 0] + c.sigma.square()).sqrt()
    x = x.sort().values
    law = torch.special.ndtr((x[:, None] - means) / spreads) @ target.weights
    steps = torch.arange(n + 1) / n
    distance = torch.maximum((law - steps[:-1]).abs().max(), (law - steps[1:]).abs().max())
    assert distance < 0.027 + 0.008


@every_sampler
def test_one_generator_gives_one_result_and_the_callers_points_stay(name: str) -> None:
    sampler = SAMPLERS[name](LinearSchedule(), steps=5)
    field, x0 = normal_field(LinearSchedule()), torch.randn(6, 2)
    given = x0.clone()
    draws = [sampler.sample(field, x0, generator=seeded(s)) for s in (0, 0, 1)]
    torch.manual_seed(5)
    alone = sampler.sample(field, x0)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2]) != sampler.random
    assert torch.equal(draws[0], alone) != sampler.random
    assert torch.equal(x0, given)


@every_sampler
def test_images_contexts_and_dtypes(name: str) -> None:
    sampler = SAMPLERS[name](CosineSchedule(), steps=4)
    seen = []

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        seen.append((t.shape, t.dtype, x.shape, context.shape))
        return normal_field(CosineSchedule())(t, x, None) + context.mean(-1)[:, None, None, None]

    x0, context = torch.randn(3, 1, 2, 2), torch.randn(3, 5)
    x = sampler.sample(field, x0, context, generator=seeded())
    assert x.shape == x0.shape
    assert set(seen) == {((3,), torch.float64, (3, 1, 2, 2), (3, 5))}
    other = sampler.sample(field, x0, context + 1, generator=seeded())
    assert bool((other - x > 0.5).all())
    flat = lambda t, x, context: field(t, x.unflatten(1, (1, 2, 2)), context).flatten(1)
    vectors = sampler.sample(flat, x0.flatten(1), context, generator=seeded())
    assert torch.allclose(vectors, x.flatten(1), rtol=0, atol=1e-12)
    single = sampler.sample(field, x0.float(), context.float(), generator=seeded())
    assert single.dtype == torch.float32
    scalars = sampler.sample(normal_field(CosineSchedule()), torch.randn(4), generator=seeded())
    assert scalars.shape == (4,)


@every_sampler
def test_gradients_pass(name: str) -> None:
    x0 = torch.randn(3, 2, requires_grad=True)
    sampler = SAMPLERS[name](LinearSchedule(), steps=3)
    sampler.sample(normal_field(LinearSchedule()), x0, generator=seeded()).sum().backward()
    assert x0.grad is not None
    assert bool(torch.isfinite(x0.grad).all())


@every_sampler
def test_grids_place_the_steps_and_the_field_is_asked_on_them(name: str) -> None:
    asked: set[float] = set()

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        asked.add(round(t[0].item(), 12))
        return normal_field(LinearSchedule())(t, x, context)

    times = [0.25, 0.3, 0.7, 1.0]
    sampler = SAMPLERS[name](LinearSchedule(), grid=TimeGrid(times))
    x0 = torch.randn(2, 1)
    sampler.sample(field, x0, start=0.25)
    assert asked == {0.25, 0.3, 0.7}
    asked.clear()
    sampler.sample(field, x0, start=1.0, end=0.25)
    assert {0.3, 0.7, 1.0} <= asked <= set(times)
    with pytest.raises(DomainError, match="TimeGrid: times must run from 0 to 1"):
        sampler.sample(field, x0)
    cosine = SAMPLERS[name](LinearSchedule(), steps=2, grid=CosineGrid()).plan(0.0, 1.0)
    assert cosine.times == pytest.approx([0.0, 0.5, 1.0])


@every_sampler
def test_bad_calls_are_refused(name: str) -> None:
    sampler, field = SAMPLERS[name](LinearSchedule(), steps=2), normal_field(LinearSchedule())
    x0 = torch.randn(3, 2)
    with pytest.raises(DomainError, match=r"start must lie in \[0, 1\] \(0 = base\), got -0.1"):
        sampler.sample(field, x0, start=-0.1)
    with pytest.raises(DomainError, match=r"end must lie in \[0, 1\] \(0 = base\), got 1.5"):
        sampler.sample(field, x0, end=1.5)
    with pytest.raises(DomainError, match="got nan"):
        sampler.sample(field, x0, end=float("nan"))
    with pytest.raises(ShapeError, match="must share one leading batch axis"):
        sampler.sample(field, x0, torch.randn(4, 2))
    with pytest.raises(ShapeError, match="must share one leading batch axis"):
        sampler.sample(field, torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"shape of the points \(3, 2\), got \(3, 1\)"):
        sampler.sample(lambda t, x, context: x[:, :1], x0)
    with pytest.raises(SolverError, match=r"1 of 3 samples are not finite at t=1, .* number 1;"):
        sampler.sample(field, torch.tensor([[0.0], [float("nan")], [1.0]]))
    assert torch.equal(sampler.sample(field, x0, start=0.5, end=0.5), x0)
    assert sampler.sample(field, x0[:0]).shape == (0, 2)
    for steps in (0, -1, True):
        with pytest.raises(DomainError, match="steps must be a whole number of at least 1"):
            SAMPLERS[name](LinearSchedule(), steps=steps)


def test_a_field_that_knows_its_schedule_is_not_run_on_another() -> None:
    linear, cosine = LinearSchedule(), CosineSchedule()
    law = GaussianMixture(torch.zeros(1, 2))
    x0 = torch.randn(3, 2)
    for field in (
        MixtureField(law, law, cosine),
        PredictionField(lambda t, x, context: x, cosine, PredictX1()),
        RetimedField(MixtureField(law, law, linear), linear, cosine),
    ):
        assert CurvedEuler(2, cosine).sample(field, x0).shape == (3, 2)
        with pytest.raises(DomainError, match=r"belongs to CosineSchedule\(\) and the sampler fol"):
            CurvedEuler(2).sample(field, x0)


@pytest.mark.unchecked
def test_integer_points_are_refused() -> None:
    with pytest.raises(DomainError, match=r"CurvedEuler.sample: points must be floating"):
        CurvedEuler().sample(normal_field(LinearSchedule()), torch.zeros(2, 1, dtype=torch.long))


def test_samplers_are_frozen_and_can_be_compared() -> None:
    assert CurvedEuler(3) == CurvedEuler(3) != CurvedEuler(4)
    assert len({SDE(), SDE(), NoiseRefresh(), PredictorCorrector(CurvedHeun())}) == 3
