"""Schedules, predictions and retiming against derivatives, closed forms and the oracle."""

import math

import pytest
import torch
from torch.func import jacrev, jvp, vmap

from cflow.errors import DomainError, ShapeError
from cflow.field import (
    CosineSchedule,
    FunctionField,
    FunctionSchedule,
    GaussianMixture,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    MixtureField,
    PolynomialSchedule,
    PredictionField,
    PredictNoise,
    PredictScore,
    PredictVelocity,
    PredictX1,
    RetimedField,
    VPSchedule,
    convert,
)
from cflow.ode import RK4
from cflow.state import State
from cflow.transport import ODE

OWN = FunctionSchedule(lambda t: t * (2 - t), lambda t: (1 - t) ** 2 + 0.01 * (1 - t))
SCHEDULES = [
    LinearSchedule(),
    PolynomialSchedule(3.0),
    CosineSchedule(),
    VPSchedule(),
    LinearVPSchedule(),
    LipmanSchedule(0.1),
    OWN,
]
PREDICTIONS = [PredictVelocity(), PredictX1(), PredictNoise(), PredictScore()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)


def laws(features: int = 2) -> tuple[GaussianMixture, GaussianMixture]:
    """A standard normal source and a lopsided mixture."""
    g = torch.Generator().manual_seed(1)
    root = torch.randn(3, features, features, generator=g)
    spread = 0.2 * root @ root.mT + 0.1 * torch.eye(features)
    means = 1.5 * torch.randn(3, features, generator=g)
    target = GaussianMixture(means, spread, torch.tensor([0.5, 0.3, 0.2]))
    return GaussianMixture(torch.zeros(1, features)), target


@each_schedule
def test_derivatives_are_those_of_the_coefficients(schedule) -> None:
    t = torch.linspace(0.01, 0.99, 50)
    c = schedule(t)
    for value, slope in ((0, c.d_alpha), (1, c.d_sigma)):
        _, expected = jvp(lambda s, k=value: schedule(s)[k], (t,), (torch.ones_like(t),))
        assert torch.allclose(slope, expected, rtol=1e-10)
    assert (c.wronskian > 0).all()


@each_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_are_finite_and_right_at_both_ends(schedule, dtype) -> None:
    c = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    assert all(part.dtype == dtype and torch.isfinite(part).all() for part in c)
    left = 0.1 if isinstance(schedule, LipmanSchedule) else 0.0
    assert c.alpha[1] == pytest.approx(1)
    assert c.sigma[1] == pytest.approx(left, abs=1e-7)
    assert c.sigma[0] == pytest.approx(1, abs=0.02)
    assert c.alpha[0] == pytest.approx(0, abs=0.01)


@each_schedule
def test_time_inverts_the_log_ratio(schedule) -> None:
    t = torch.linspace(0, 1, 101)
    c = schedule(t)
    assert torch.allclose(schedule.time((c.alpha / c.sigma).log()), t, atol=2e-7)
    ends = schedule.time(torch.tensor([-math.inf, math.inf]))
    assert torch.allclose(ends, torch.tensor([0.0, 1.0]), atol=1e-9)


@each_schedule
@each_prediction
@pytest.mark.parametrize("target", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_every_prediction_tells_every_other(schedule, prediction, target) -> None:
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(40, 3, 2, generator=g), torch.randn(40, 3, 2, generator=g)
    t = torch.linspace(0.01, 0.99, 40)
    c = schedule(t).over(x0)
    x = c.alpha * x1 + c.sigma * x0
    known = prediction.value(t, x0, x1, schedule)
    found = convert(known, t, x, schedule, source=prediction, target=target)
    assert torch.allclose(found, target.value(t, x0, x1, schedule), rtol=1e-8, atol=1e-8)


@each_schedule
@each_prediction
def test_the_weight_makes_the_error_that_of_the_velocity(schedule, prediction) -> None:
    g = torch.Generator().manual_seed(0)
    x0, x1, x1_seen = torch.randn(3, 40, 2, generator=g).unbind()
    t = torch.linspace(0.01, 0.99, 40)
    c = schedule(t).over(x0)
    x = c.alpha * x1 + c.sigma * x0
    # Two predictions that differ, both in agreement with x, as those of a network at x are.
    x0_seen = (x - c.alpha * x1_seen) / c.sigma
    error = prediction.value(t, x0, x1, schedule) - prediction.value(t, x0_seen, x1_seen, schedule)
    velocity = PredictVelocity()
    wanted = velocity.value(t, x0, x1, schedule) - velocity.value(t, x0_seen, x1_seen, schedule)
    weight = prediction.weight(t, schedule)
    assert torch.allclose(weight * error.square().sum(1), wanted.square().sum(1), rtol=1e-8)


@each_schedule
@each_prediction
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_conversions_are_finite_at_both_ends(schedule, prediction, end: float) -> None:
    x, t = torch.randn(5, 2), torch.full((5,), end)
    for target in PREDICTIONS:
        found = convert(torch.randn(5, 2), t, x, schedule, source=prediction, target=target)
        assert torch.isfinite(found).all()
    assert torch.isfinite(prediction.weight(t, schedule)).all()


def test_a_value_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="shape of x and t its leading axes"):
        convert(
            torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 2), LinearSchedule(),
            source=PredictX1(), target=PredictNoise(),
        )  # fmt: skip


def test_options_outside_their_range_are_refused() -> None:
    with pytest.raises(DomainError, match="power must be at least 1"):
        PolynomialSchedule(0.5)
    with pytest.raises(DomainError, match=r"sigma_min must be in \[0, 1\)"):
        LipmanSchedule(1.0)
    with pytest.raises(DomainError, match="beta_max must be at least beta_min"):
        VPSchedule(2.0, 1.0)
    with pytest.raises(DomainError, match="must be finite"):
        FunctionSchedule(lambda t: t, lambda t: (1 - t * t).sqrt())
    with pytest.raises(DomainError, match="must rise with time"):
        FunctionSchedule(lambda t: 1 - t, lambda t: t)


@each_schedule
def test_the_oracle_obeys_the_continuity_equation(schedule) -> None:
    """d log p/dt = -div v - v . score, with score and time derivative by autograd."""
    field = MixtureField(*laws(), schedule)
    t = torch.linspace(0.05, 0.95, 30)
    x = field.sample(t, generator=torch.Generator().manual_seed(2))
    v, div = field.with_divergence(t, x)
    one = lambda t, x: field.log_prob(t[None], x[None])[0]
    rate = vmap(jacrev(one, argnums=0))(t, x)
    score = vmap(jacrev(one, argnums=1))(t, x)
    assert torch.allclose(field.score(t, x), score, rtol=1e-8)
    assert torch.allclose(rate, -div - (v * score).sum(-1), rtol=1e-7, atol=1e-8)
    jacobian = vmap(jacrev(lambda x, t: field(t[None], x[None])[0]))(x, t)
    assert torch.allclose(div, jacobian.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-8)
    assert torch.equal(v, field(t, x))


def test_the_oracle_carries_one_law_into_the_other() -> None:
    source, target = laws()
    ode = ODE(MixtureField(source, target), RK4(steps=100))
    x0 = source.sample(100, generator=torch.Generator().manual_seed(0))
    state = ode.push(State(x0, ladj=torch.zeros(100)))
    log_prob = source.log_prob(x0) - state.ladj
    assert torch.allclose(log_prob, target.log_prob(state.x), atol=1e-5)


def test_the_mixture_has_the_moments_of_its_samples() -> None:
    """Each mean within 5 standard errors: false alarm below 3e-6."""
    _, law = laws()
    x = law.sample(100_000, generator=torch.Generator().manual_seed(0))
    deviation = law.covariance.diagonal().sqrt()
    assert ((x.mean(0) - law.mean).abs() < 5 * deviation / 100_000**0.5).all()
    assert torch.allclose(torch.cov(x.T), law.covariance, atol=0.05)
    side = torch.linspace(-8, 8, 400)
    mass = law.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (16 / 399) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_a_mixture_that_is_none_is_refused() -> None:
    with pytest.raises(DomainError, match=r"sum to one, got a sum of 1\.2"):
        GaussianMixture(torch.zeros(2, 1), 1.0, torch.tensor([0.6, 0.6]))
    with pytest.raises(DomainError, match="number 1 is not"):
        GaussianMixture(torch.zeros(2, 1), torch.tensor([[[1.0]], [[-1.0]]]))
    with pytest.raises(ShapeError, match=r"\(components, features\)"):
        GaussianMixture(torch.zeros(2))
    with pytest.raises(ShapeError, match="one number of features"):
        MixtureField(GaussianMixture(torch.zeros(1, 1)), GaussianMixture(torch.zeros(1, 2)))


@each_schedule
@each_prediction
def test_a_network_of_any_prediction_samples_as_the_velocity(schedule, prediction) -> None:
    field = MixtureField(*laws(), schedule)
    net = lambda t, x, context: prediction.value(t, *field.ends(t, x), schedule)
    t = torch.linspace(0.01, 0.99, 30)
    x = field.sample(t, generator=torch.Generator().manual_seed(2))
    found = PredictionField(net, schedule, prediction)(t, x)
    assert torch.allclose(found, field(t, x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("schedule", [VPSchedule(), LinearVPSchedule(), LinearSchedule()])
def test_a_score_gives_the_velocity_up_to_the_data(schedule) -> None:
    """sigma falls to 0 and its slope is held: their product must go on to its limit."""
    field = MixtureField(*laws(), schedule)
    x = field.target.sample(20, generator=torch.Generator().manual_seed(3))
    t = torch.full((20,), 1 - 2e-4)
    near = field(t, x)
    for end in (1 - 1e-4, 1 - 1e-5, 1.0):
        t = torch.full((20,), end)
        found = convert(
            field.score(t, x), t, x, schedule, source=PredictScore(), target=PredictVelocity()
        )
        assert torch.allclose(found, near, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("new", SCHEDULES, ids=lambda s: f"on {type(s).__name__}")
@pytest.mark.parametrize("old", SCHEDULES, ids=lambda s: f"from {type(s).__name__}")
def test_a_retimed_field_is_the_field_of_the_new_schedule(old, new) -> None:
    field = RetimedField(MixtureField(*laws(), old), old, new)
    right = MixtureField(*laws(), new)
    t = torch.linspace(0.2, 0.6, 30)  # where no schedule has ended before the others
    x = right.sample(t, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(field(t, x), right(t, x), rtol=1e-6, atol=1e-7)
    ends = torch.tensor([0.0, 1.0])
    assert field(ends, torch.ones(2, 2)).abs().max() < 1e3  # finite, and no giant step


def test_retiming_changes_no_sample() -> None:
    """From a linear field to the cosine path: the points arrive where they did."""
    old = MixtureField(*laws())
    retimed = ODE(RetimedField(old, LinearSchedule(), CosineSchedule()), RK4(steps=100))
    x0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    there = ODE(old, RK4(steps=100)).push(State(x0)).x
    assert torch.allclose(retimed.push(State(x0)).x, there, atol=1e-5)


def test_retiming_stands_still_before_the_old_schedule_begins() -> None:
    """The variance-preserving path never has pure noise: a share alpha(0) of the data is left."""
    ones = FunctionField(lambda t, x, context: torch.full_like(x, torch.nan))
    field = RetimedField(
        FunctionField(lambda t, x, context: torch.where(t[:, None] > 0, ones(t, x), x)),
        VPSchedule(),
        LinearSchedule(),
    )
    t, x = torch.tensor([0.0, 0.002]), torch.randn(2, 2)
    c = LinearSchedule()(t)
    norm = (c.alpha.square() + c.sigma.square())[:, None]
    growth = ((c.alpha * c.d_alpha + c.sigma * c.d_sigma)[:, None]) / norm
    assert torch.allclose(field(t, x), growth * x)
