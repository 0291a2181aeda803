"""Clocks and paths: derivatives, inverses, laws and the rates that move them."""

import math

import pytest
import torch
from small_spaces import FALSE_ALARM, SCHEDULES, Small, bases, generator, kappa, p_value
from torch import Tensor
from torch.func import jvp

from cflow.base import Categorical, EmpiricalTokens, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.field import CosineSchedule, FunctionSchedule, LinearSchedule, PolynomialSchedule
from cflow.jump import (
    JumpPath,
    KineticSchedule,
    MetricPath,
    MixtureClock,
    MixturePath,
    NetworkPosterior,
    NoisingPath,
    PlainClock,
)

DISTANCES = torch.tensor([[0.0, 1.0, 2.5], [1.0, 0.0, 0.7], [2.5, 0.7, 0.0]], dtype=torch.float64)
UNEVEN = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
CLOCKS = [
    PlainClock(),
    *(MixtureClock(schedule) for schedule in SCHEDULES),
    MetricPath(DISTANCES).clock,
    MetricPath(DISTANCES, scale=0.5, power=2.5).clock,
]
PATHS = [
    MixturePath(CosineSchedule()),
    NoisingPath(UNEVEN, PolynomialSchedule(1.5)),
    MetricPath(DISTANCES),
    MetricPath(DISTANCES, scale=2.0, power=0.7),
]
each_clock = pytest.mark.parametrize("clock", CLOCKS, ids=lambda c: repr(c)[:40])
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@each_clock
def test_the_speed_is_the_derivative_and_time_the_inverse(clock) -> None:
    t = torch.linspace(0.01, 0.99, 50)
    s, slope = jvp(clock, (t,), (torch.ones_like(t),))
    assert torch.allclose(clock.speed(t), slope, rtol=1e-9)
    assert bool((slope > 0).all())
    assert torch.allclose(clock.time(s), t, rtol=1e-7)
    step = clock(torch.tensor([0.3, 0.7])).diff().item()
    assert clock.between(0.3, 0.7) == pytest.approx(step)


@each_clock
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clock_starts_at_nought_and_is_right_at_its_end(clock, dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    s = clock(ends)
    assert s.dtype == dtype
    assert s[0].item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(clock.time(s), ends, atol=1e-6)
    if not isinstance(clock, PlainClock):
        assert torch.isinf(s[1])
        assert clock.between(0.99, 1.0) == math.inf
    assert math.isfinite(clock.between(0.0, 0.999))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s)[:20])
def test_the_share_of_data_rises_from_nought_to_one(schedule) -> None:
    clock, t = MixtureClock(schedule), torch.linspace(0, 1, 101)
    share = clock.kappa(t)
    assert share[0] == 0
    assert share[-1] == 1
    assert bool((share.diff() > 0).all())
    assert torch.allclose(share, torch.tensor([kappa(schedule, v) for v in t.tolist()]))
    assert torch.allclose(clock.left(t), 1 - share)


def test_shares_of_the_named_schedules() -> None:
    t = torch.linspace(0, 1, 11)
    assert torch.allclose(MixtureClock(PolynomialSchedule(3.0)).kappa(t), t**3)
    assert torch.allclose(MixtureClock(KineticSchedule()).kappa(t), (math.pi * t / 2).sin() ** 2)
    turn = KineticSchedule(0.25)  # cos(omega) = 1/2
    left = (math.pi / 3 * (1 - t)).sin() ** 2 / 0.75
    assert torch.allclose(MixtureClock(turn).kappa(t), 1 - left)


def test_a_schedule_that_ends_in_noise_by_a_transcendental_function_still_ends() -> None:
    """Its last value may differ by a digit between a batch of times and one: s is infinite yet."""
    own = FunctionSchedule(lambda t: t.exp() - 1 + 0.01, lambda t: (-3.3 * t).exp())
    clock = MixtureClock(own)
    for n in (1, 3, 8, 17, 100):
        t = torch.linspace(0, 1, n + 1)[1:]
        assert torch.isinf(clock(t)[-1]), n
        assert clock.kappa(t)[-1] == 1


def test_the_kinetic_schedule_moves_at_constant_speed_along_its_circle() -> None:
    """The roots of p_t(x1) and of what is left turn by the same angle in the same time."""
    for chance in (0.0, 0.2):
        share = MixtureClock(KineticSchedule(chance)).kappa(torch.linspace(0, 1, 21))
        angle = (share + (1 - share) * chance).clamp(0, 1).sqrt().acos()
        assert torch.allclose(angle.diff(), angle.diff()[0], atol=1e-7)


@each_path
def test_the_rates_of_a_path_move_its_law(path: JumpPath) -> None:
    """dp/ds = p Q for each end, with derivatives in float64."""
    p0 = path.start if isinstance(path, NoisingPath) else torch.full((3,), 1 / 3)
    if isinstance(path, MixturePath):
        p0 = UNEVEN
    for end in range(3):
        for now in (0.1, 0.5, 0.9):
            t, x1 = torch.tensor([now]), torch.tensor([end])
            law = lambda t, x1=x1: path.law(t, x1, p0)[0]
            p, slope = jvp(law, (t,), (torch.ones_like(t),))
            assert torch.allclose(p.sum(), torch.ones(()))
            ends = torch.nn.functional.one_hot(x1, 3).double().expand(3, 3)
            u = path.rates(t.expand(3), torch.arange(3), ends)
            assert bool((u >= 0).all())
            assert bool((u.diagonal() == 0).all())
            moved = p @ u - p * u.sum(1)
            assert torch.allclose(slope / path.clock.speed(t), moved, atol=1e-10), (end, now)


@each_path
def test_rates_are_linear_in_the_posterior(path: JumpPath) -> None:
    """Rates of a posterior are the mean of those of its ends, for tokens in any shape."""
    x = torch.randint(3, (5, 2, 4), generator=generator())
    t = torch.rand(5, generator=generator())
    p = torch.rand(5, 2, 4, 3, generator=generator()).softmax(-1)
    expected = torch.zeros_like(p)
    for end in range(3):
        expected += p[..., end, None] * path.rates(t, x, torch.eye(3)[end].expand(p.shape))
    assert torch.allclose(path.rates(t, x, p), expected)
    each = torch.stack([path.rates(t[i], x[i], p[i]) for i in range(5)])
    assert torch.allclose(path.rates(t, x, p), each)
    flat = path.rates(t[0].expand(8), x[0].flatten(), p[0].flatten(0, 1))
    assert torch.allclose(flat, each[0].flatten(0, 1))


@each_path
def test_samples_have_the_law_of_the_path(path: JumpPath) -> None:
    n, start = (
        30_000,
        UNEVEN if isinstance(path, MixturePath | NoisingPath) else torch.full((3,), 1 / 3),
    )
    base = Categorical(1, start)
    for end, now in ((0, 0.3), (2, 0.6), (1, 0.0), (1, 1.0)):
        t, x1 = torch.full((n,), now), torch.full((n, 1), end)
        x0 = base.sample((n,), generator=generator(1))
        noise = torch.rand(n, 1, generator=generator(2))
        point = path.sample(x0, x1, t, noise=noise)
        assert torch.equal(point.target, x1)
        expected = path.law(t[:1], x1[:1], start)[0, 0]
        assert p_value(point.x, expected, 3) > FALSE_ALARM, (end, now)


def test_a_posterior_comes_back_from_its_rates() -> None:
    """At any time along a mixture, towards the end along other paths."""
    x = torch.randint(3, (7, 2), generator=generator())
    p = torch.randn(7, 2, 3, generator=generator()).mul(3).softmax(-1)
    for path, now, tolerance in (
        (MixturePath(), 0.1, 1e-12),
        (NoisingPath(UNEVEN), 0.9999, 1e-3),
        (MetricPath(DISTANCES), 0.99, 1e-12),
    ):
        u = path.rates(torch.full((7,), now), x, p)
        assert torch.allclose(path.posterior(x, u), p, atol=tolerance), path
    much = MixturePath().posterior(torch.tensor([0]), torch.tensor([[9.0, 1.0, 3.0]]))
    assert much.tolist() == [[0.0, 0.25, 0.75]]


def test_a_noising_turned_back_has_the_rates_of_its_bridge() -> None:
    """u(x -> y | x1) = (1 - kappa) / kappa p_0(x) p_t(y | x1) / p_t(x | x1)."""
    path, t, x = PATHS[1], torch.full((3,), 0.4), torch.arange(3)
    share = 0.4**1.5
    for end in range(3):
        p = share * torch.eye(3)[end] + (1 - share) * UNEVEN
        expected = (1 - share) / share * UNEVEN[:, None] * p / p[:, None]
        u = path.rates(t, x, torch.eye(3)[end].expand(3, 3))
        assert torch.allclose(u, expected.fill_diagonal_(0)), end


def test_a_mixture_and_its_noising_agree_for_masks() -> None:
    small = Small(bases(2)["masks"])
    other = NoisingPath.of(small.base)
    t = torch.full((len(small.x),), 0.3)
    p = small.probabilities(0.3)
    assert torch.allclose(small.path.rates(t, small.x, p), other.rates(t, small.x, p))


def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    return torch.zeros(*x.shape, 3)


def test_paths_refuse_bases_that_they_cannot_start_from() -> None:
    table = EmpiricalTokens(torch.tensor([[0, 1], [1, 1]]), 3)
    with pytest.raises(DomainError, match="tokens of the base must be independent"):
        NoisingPath.of(table)
    metric = MetricPath(DISTANCES)
    for base in (bases(2)["masks"], bases(2)["categorical"], table, UniformTokens(2, 4)):
        with pytest.raises(DomainError, match="starts from uniform tokens of 3 values"):
            NetworkPosterior(network, base, metric)
    with pytest.raises(DomainError, match="other marginals than the base"):
        NetworkPosterior(network, UniformTokens(2, 3), NoisingPath(UNEVEN))
    NetworkPosterior(network, bases(2)["some masks"], NoisingPath.of(bases(2)["some masks"]))
    NetworkPosterior(network, table, MixturePath(LinearSchedule()))


def test_options_of_paths_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"must be \(states, states\), got \(2, 3\)"):
        MetricPath(torch.zeros(2, 3))
    with pytest.raises(DomainError, match="0 from a token to itself"):
        MetricPath(torch.ones(3, 3))
    with pytest.raises(DomainError, match="power must be positive"):
        MetricPath(DISTANCES, power=0.0)
    with pytest.raises(DomainError, match=r"chance must lie in \[0, 1\), got 1"):
        KineticSchedule(1.0)


@each_path
def test_pairs_are_checked(path: JumpPath) -> None:
    x, t, u = torch.zeros(4, 2, dtype=torch.long), torch.rand(4), torch.rand(4, 2)
    with pytest.raises(ShapeError, match=r"one time for each point, got \(4, 2\), \(3, 2\)"):
        path.sample(x, x[:3], t, noise=u)
    with pytest.raises(ShapeError, match="one time for each point"):
        path.sample(x, x, t[:3], noise=u)
    with pytest.raises(DomainError, match=r"x1 must hold integer tokens, got torch\.float64"):
        path.sample(x, x.double(), t, noise=u)
    with pytest.raises(DomainError, match=r"times must lie in \[0, 1\]"):
        path.sample(x, x, t + 1, noise=u)
