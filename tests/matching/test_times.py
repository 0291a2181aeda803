"""Time laws: draws follow the stated densities; weights: what they promise."""

import math
from collections.abc import Callable

import pytest
import torch

from cflow.errors import DomainError
from cflow.field import (
    CosineSchedule,
    LinearSchedule,
    LinearVPSchedule,
    PathSchedule,
    PolynomialSchedule,
    PredictNoise,
    PredictX1,
    VPSchedule,
)
from cflow.matching import (
    CosineMapTimes,
    DensityWeight,
    LogitNormalTimes,
    LogNormalSigmaTimes,
    ModeTimes,
    QuantileLaw,
    SigmaWeight,
    SNRWeight,
    Stratified,
    UniformTimes,
)

LAWS = [
    UniformTimes(),
    UniformTimes(0.2, 0.9),
    LogitNormalTimes(),
    LogitNormalTimes(-1.0, 0.5),
    ModeTimes(),
    ModeTimes(-0.7),
    ModeTimes(0.0),
    CosineMapTimes(),
    LogNormalSigmaTimes(),
    LogNormalSigmaTimes(0.5, 0.8, CosineSchedule()),
    LogNormalSigmaTimes(0.0, 0.7, PolynomialSchedule(2.0)),
]
SCHEDULES = [LinearSchedule(), CosineSchedule(), VPSchedule(), LinearVPSchedule()]
laws = pytest.mark.parametrize("law", LAWS, ids=repr)


@laws
def test_density_integrates_to_one(law: QuantileLaw) -> None:
    """By the midpoint rule; bounds of a uniform law lie on the grid."""
    n = 200_000
    t = (torch.arange(n) + 0.5) / n
    assert law.log_density(t).exp().mean().item() == pytest.approx(1, abs=1e-4)


@laws
def test_density_is_the_slope_of_the_quantile(law: QuantileLaw) -> None:
    u = torch.linspace(0.01, 0.99, 50)
    t, slope = torch.func.jvp(law.quantile, (u,), (torch.ones_like(u),))
    assert torch.allclose(law.log_density(t), -slope.log(), atol=1e-6)
    assert bool((t[1:] > t[:-1]).all())
    ends = law.quantile(torch.tensor([0.0, 1.0]))
    assert 0 <= ends[0] < 0.21
    assert 0.89 < ends[1] <= 1


@laws
@pytest.mark.parametrize("stratified", [False, True])
def test_draws_follow_the_density(law: QuantileLaw, stratified: bool) -> None:
    """Chi-square of 40 bins; a right law fails with probability 1e-8 (Stratified: hardly ever)."""
    n, bins = 40_000, 40
    t = (Stratified(law) if stratified else law).sample(n, like=torch.zeros(1))
    fine = (torch.arange(bins * 1000) + 0.5) / (bins * 1000)
    share = law.log_density(fine).exp().reshape(bins, -1).mean(1) / bins
    counts = torch.histc(t, bins, 0, 1)
    wanted = n * share
    kept = wanted > 5
    chi2 = ((counts - wanted).square() / wanted)[kept].sum()
    k = int(kept.sum())
    limit = k * (1 - 2 / (9 * k) + 5.7 * math.sqrt(2 / (9 * k))) ** 3  # Wilson and Hilferty
    assert chi2 < limit
    assert counts[~kept].sum() < wanted[~kept].sum() + 50


def test_the_laws_of_stable_diffusion_3_are_turned_round() -> None:
    """Written as the paper has them, with t = 1 for noise, and turned."""
    u = torch.linspace(0.001, 0.999, 9)
    noisy = {
        ModeTimes(1.29): 1 - u - 1.29 * ((math.pi / 2 * u).cos().square() - 1 + u),
        CosineMapTimes(): 1 - 1 / ((math.pi / 2 * u).tan() + 1),
        LogitNormalTimes(-0.7, 0.5): torch.sigmoid(0.7 + 0.5 * torch.special.ndtri(u)),
    }
    for law, t in noisy.items():
        assert torch.allclose(law.quantile(u), (1 - t).sort()[0])


def test_the_cosine_map_spends_time_as_the_cosine_schedule_does() -> None:
    u = torch.rand(100)
    c, line = CosineSchedule()(u), LinearSchedule()(CosineMapTimes().quantile(u))
    assert torch.allclose(c.alpha / c.sigma, line.alpha / line.sigma)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_noise_levels_are_log_normal(schedule: PathSchedule) -> None:
    """Mean and deviation of 50000 draws within 6 standard errors: false alarms below 1e-8."""
    t = LogNormalSigmaTimes(-1.2, 1.2, schedule).sample(50_000, like=torch.zeros(1))
    c = schedule(t)
    level = (c.sigma / c.alpha).log()
    assert abs(level.mean() + 1.2) < 6 * 1.2 / 50_000**0.5
    assert abs(level.std() - 1.2) < 6 * 1.2 / 100_000**0.5


@laws
def test_no_time_leaves_the_unit_interval(law: QuantileLaw) -> None:
    like = torch.zeros(1, dtype=torch.float32)
    for one in (law, Stratified(law)):
        t = one.sample(20_000, like=like)
        assert t.dtype == torch.float32
        assert t.min() >= 0
        assert t.max() <= 1
    edges = torch.tensor([0.0, 1.0, 0.0 if isinstance(law, UniformTimes) else 0.5])
    assert not law.log_density(edges).isnan().any()


def test_strata_are_hit_once_in_random_order() -> None:
    g = torch.Generator().manual_seed(3)
    t = Stratified(UniformTimes()).sample(1000, like=torch.zeros(1), generator=g)
    assert torch.equal((t.sort()[0] * 1000).floor(), torch.arange(1000.0))
    within = (t * 1000).frac()
    assert abs(within.mean() - 0.5) < 6 * 0.289 / 1000**0.5
    assert abs(within.std() - 0.289) < 0.04
    order = torch.corrcoef(torch.stack([t, torch.arange(1000.0)]))[0, 1]
    assert abs(order) < 6 / 1000**0.5
    again = Stratified(UniformTimes()).sample(1000, like=torch.zeros(1), generator=g)
    assert not torch.equal(t, again)


@pytest.mark.parametrize("law", LAWS[1:], ids=repr)
def test_uniform_times_weighted_by_a_density_are_that_law(law: QuantileLaw) -> None:
    """E_u[w f] = E_law[f]: 6 standard errors of the difference, false alarms below 1e-8."""
    n, f = 100_000, lambda t: (5 * t).sin() + t.square()
    u = UniformTimes().sample(n, like=torch.zeros(1))
    weighted = DensityWeight(law)(u) * f(u)
    plain = f(law.sample(n, like=torch.zeros(1)))
    error = ((weighted.var() + plain.var()) / n).sqrt()
    assert abs(weighted.mean() - plain.mean()) < 6 * error


@pytest.mark.parametrize("schedule", [*SCHEDULES, PolynomialSchedule(3.0)], ids=repr)
def test_snr_weights_are_those_of_the_predictions(schedule: PathSchedule) -> None:
    t = torch.linspace(0.05, 0.95, 19)
    c = schedule(t)
    snr = (c.alpha / c.sigma).square()
    x1, noise = PredictX1().weight(t, schedule), PredictNoise().weight(t, schedule)
    assert torch.allclose(SNRWeight(5.0, schedule)(t), snr.clamp_max(5) / x1)
    assert torch.allclose(SNRWeight(math.inf, schedule)(t), 1 / noise)
    ends = torch.tensor([0.0, 1.0])
    for weight in (SNRWeight(5.0, schedule), SNRWeight(math.inf, schedule), SigmaWeight()):
        assert weight(ends).isfinite().all()
        assert (weight(ends) >= 0).all()


def test_sigma_weights_are_a_bounded_power() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(SigmaWeight()(t), torch.tensor([1.0, 4.0, 1e4]))
    assert torch.allclose(SigmaWeight(-1.0, floor=0.1)(t), torch.tensor([1.0, 2.0, 10.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformTimes(0.5, 0.5), "0 <= low < high <= 1"),
        (lambda: UniformTimes(-0.1, 0.5), "0 <= low < high <= 1"),
        (lambda: LogitNormalTimes(math.nan), "mean must be finite"),
        (lambda: LogitNormalTimes(0.0, 0.0), "std must be positive"),
        (lambda: LogNormalSigmaTimes(std=-1.0), "std must be positive"),
        (lambda: ModeTimes(1.8), "scale must lie in"),
        (lambda: ModeTimes(-1.1), "scale must lie in"),
        (lambda: SigmaWeight(math.inf), "power must be finite"),
        (lambda: SigmaWeight(floor=0.0), "floor must be positive"),
        (lambda: SNRWeight(0.0), "gamma must be positive"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()
