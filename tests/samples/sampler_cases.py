"""Every sampler and every schedule, and the normal law whose velocity and moments are known."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow.field import (
    CosineSchedule,
    FunctionSchedule,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    PathSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.samples import (
    SDE,
    ConstantNoise,
    CurvedEuler,
    CurvedHeun,
    Moment,
    NoiseRefresh,
    Overshooting,
    PathSampler,
    PredictorCorrector,
    Walk,
)

MEAN, VARIANCE = 2.0, 4.0  # of the data; the base is standard normal

SCHEDULES: dict[str, PathSchedule] = {
    "linear": LinearSchedule(),
    "polynomial": PolynomialSchedule(),
    "cosine": CosineSchedule(),
    "vp": VPSchedule(),
    "linear_vp": LinearVPSchedule(),
    "lipman": LipmanSchedule(),
    "function": FunctionSchedule(lambda t: t * (2 - t), lambda t: (1 - t) ** 2),
}

# Made from a schedule, everything else at its default; a sampler joins by one line here.
SAMPLERS: dict[str, Callable[..., PathSampler]] = {
    "curved_euler": lambda s, **o: CurvedEuler(schedule=s, **o),
    "curved_heun": lambda s, **o: CurvedHeun(schedule=s, **o),
    "sde": lambda s, **o: SDE(schedule=s, **o),
    "sde_order_1": lambda s, steps=100, **o: SDE(steps, s, order=1, **o),
    "sde_constant": lambda s, **o: SDE(schedule=s, noise=ConstantNoise(), **o),
    "noise_refresh": lambda s, **o: NoiseRefresh(schedule=s, **o),
    "overshooting": lambda s, **o: Overshooting(schedule=s, **o),
    "corrected": lambda s, **o: PredictorCorrector(CurvedEuler(schedule=s, **o)),
}

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_schedule = pytest.mark.parametrize("path", SCHEDULES)


def normal_field(schedule: PathSchedule) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the exact velocity between N(0, 1) and N(MEAN, VARIANCE) in every entry."""

    @functools.cache
    def at(t: float) -> tuple[float, ...]:
        return tuple(part.item() for part in schedule(torch.tensor(t)))

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        a, b, d_a, d_b = at(t[0].item())  # samplers ask for one time at once
        whitened = (x - a * MEAN) / (a**2 * VARIANCE + b**2)
        return d_a * MEAN + (d_a * a * VARIANCE + d_b * b) * whitened

    return field


def true_moments(schedule: PathSchedule, t: float) -> tuple[float, float]:
    """Return mean and variance of the law at a time."""
    c = schedule(torch.tensor(t))
    variance = c.alpha.square() * VARIANCE + c.sigma.square()
    return c.alpha.item() * MEAN, variance.item()


def exact_moments(
    sampler: PathSampler,
    schedule: PathSchedule,
    monkeypatch: pytest.MonkeyPatch,
    *,
    start: float = 0.0,
    end: float = 1.0,
) -> tuple[float, float]:
    """Return mean and variance of what a sampler makes of the normal law, without chance.

    On this field every step is affine in the point and in the noise. So the deviation of the result
    is a sum of one coefficient for the start and one for each draw of noise, and row k of the batch
    finds the k-th by switching on that source alone, at one standard deviation.
    """
    calls = 0

    def one_source(walk: Walk, like: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        noise = torch.zeros_like(like)
        noise[calls + 1] = 1.0
        return noise

    monkeypatch.setattr(Walk, "noise", one_source)
    mean, variance = true_moments(schedule, start)
    sources = 5 * len(sampler.plan(start, end).times)  # more than any sampler here draws
    x0 = torch.full((sources + 1,), mean)
    x0[1] += variance**0.5
    x = sampler.sample(normal_field(schedule), x0, start=start, end=end)
    assert (calls > 0) == sampler.random
    return x[0].item(), (x[1:] - x[0]).square().sum().item()


def moment(schedule: PathSchedule, t: float) -> Moment:
    """Return a time of a schedule as a sampler sees it."""
    c = schedule(torch.tensor(t))
    return Moment(t, c.alpha.item(), c.sigma.item(), t)
