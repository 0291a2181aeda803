"""Paths and the loss: seeds obeyed, the regression target right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow import Flow
from cflow.base import Gaussian
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
    MLPField,
    PathSchedule,
    PolynomialSchedule,
    Prediction,
    PredictionField,
    PredictNoise,
    PredictScore,
    PredictVelocity,
    PredictX1,
    VPSchedule,
)
from cflow.matching import (
    AffinePath,
    BridgePath,
    DensityWeight,
    IndependentCoupling,
    LinearPath,
    LogitNormalTimes,
    OTCoupling,
    PairedCoupling,
    Path,
    SNRWeight,
    UniformTimes,
    matching,
    regression,
)
from cflow.ode import RK4, Euler
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE

Law = Callable[[Tensor, Tensor], Tensor]

SCHEDULES: list[PathSchedule] = [
    LinearSchedule(),
    PolynomialSchedule(2.0),
    CosineSchedule(),
    VPSchedule(),
    LinearVPSchedule(),
    LipmanSchedule(0.1),
    FunctionSchedule(lambda t: t * (2 - t), lambda t: (1 - t) ** 2),
]
PREDICTIONS = [PredictVelocity(), PredictX1(), PredictNoise(), PredictScore()]
PROBES: dict[str, Law] = {
    "one": lambda t, x: torch.ones_like(x),
    "late": lambda t, x: t[:, None].expand_as(x),
    "linear": lambda t, x: x,
    "across": lambda t, x: (x.flip(-1) - t[:, None]).tanh(),
    "waves": lambda t, x: (2 * x + 3 * t[:, None]).sin(),
}


def test_linear_path_is_a_line_and_its_target_the_derivative() -> None:
    x0, x1, t = torch.randn(5, 2, 2), torch.randn(5, 2, 2), torch.rand(5)
    point = LinearPath().sample(x0, x1, t)
    assert torch.equal(LinearPath().sample(x0, x1, torch.zeros(5)).x, x0)
    assert torch.equal(LinearPath().sample(x0, x1, torch.ones(5)).x, x1)
    _, slope = torch.func.jvp(
        lambda s: LinearPath().sample(x0, x1, s).x, (t,), (torch.ones_like(t),)
    )
    assert torch.allclose(point.target, slope)
    with pytest.raises(DomainError, match=r"must lie in \[0, 1\]"):
        LinearPath().sample(x0, x1, t + 1)
    with pytest.raises(ShapeError, match="one shape"):
        LinearPath().sample(x0, x1[:4], t)


def test_the_conditional_mean_of_the_target_is_the_marginal_velocity() -> None:
    """Between N(0, 1) and N(m, s^2) the velocity is known; regression must find it.

    v(t, x) = m + (t s^2 - (1 - t)) (x - t m) / ((1 - t)^2 + t^2 s^2). A straight line fitted to
    n targets has standard errors of about 2 / sqrt(n); 6 of them fail by chance below 1e-8.
    """
    n, m, s = 200_000, 2.0, 0.5
    x0, x1 = torch.randn(n, 1), m + s * torch.randn(n, 1)
    for t in (0.0, 0.3, 0.9):
        point = LinearPath().sample(x0, x1, torch.full((n,), t))
        variance = (1 - t) ** 2 + t**2 * s**2
        design = torch.cat([torch.ones(n, 1), (point.x - t * m) / variance**0.5], dim=1)
        fit = torch.linalg.lstsq(design, point.target).solution[:, 0]
        expected = torch.tensor([m, (t * s**2 - (1 - t)) / variance**0.5])
        assert torch.allclose(fit, expected, atol=6 * 2 / n**0.5)


def test_matching_is_the_mean_square_error_and_the_context_follows_its_target() -> None:
    x1 = torch.arange(6.0)[:, None]
    context = x1.clone()
    seen = {}

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.update(t=t, x=x, c=c)
        return torch.zeros_like(x)

    x0 = torch.randn(6, 1)
    t = torch.ones(6)
    losses = matching(field, LinearPath(), OTCoupling(), x1, x0=x0, context=context, t=t)
    assert losses.shape == (6,)
    assert torch.equal(seen["x"], seen["c"])  # at t = 1 the point is its target
    assert torch.allclose(losses.sum(), (x1.sort(0)[0] - x0.sort(0)[0]).square().sum())
    with pytest.raises(ShapeError, match="must return the shape of x"):
        matching(lambda t, x, c: x[:, :0], LinearPath(), OTCoupling(), x1)


def test_one_generator_reproduces_the_loss() -> None:
    field, x1 = MLPField(2), torch.randn(32, 2)
    draw = lambda seed: matching(
        field, LinearPath(), OTCoupling(), x1, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def mixture() -> GaussianMixture:
    spread = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]]])
    return GaussianMixture(
        torch.tensor([[-1.5, 0.5], [1.0, 1.0]]), spread, torch.tensor([0.3, 0.7])
    )


def oracle(law: MixtureField, prediction: Prediction) -> Law:
    """What a network of a prediction ought to give: the exact conditional mean."""
    if isinstance(prediction, PredictVelocity):
        return lambda t, x: law(t, x)
    if isinstance(prediction, PredictScore):
        return law.score
    return lambda t, x: law.ends(t, x).x1 if prediction == PredictX1() else law.ends(t, x).x0


def expect_mean(path: Path, wanted: Law, prediction: Prediction, n: int = 20_000) -> None:
    """Hold E[w (target - wanted) g] = 0 for every probe g, through the loss itself.

    L(f + g) - L(f - g) = 4 w (f - target) g / event. A z-value above 6 has probability 2e-9.
    """
    x1, asked = mixture().sample(n), []

    def truth(t: Tensor, x: Tensor) -> Tensor:
        if not asked:  # one seed, so all calls see the same points
            asked.append((x, wanted(t, x)))
        assert torch.equal(x, asked[0][0])
        return asked[0][1]

    for name, g in PROBES.items():
        up, down = (
            matching(
                lambda t, x, c, sign=sign, g=g: truth(t, x) + sign * g(t, x),
                path,
                IndependentCoupling(),
                x1,
                times=UniformTimes(0.02, 0.98),
                prediction=prediction,
                generator=torch.Generator().manual_seed(7),
            )
            for sign in (1, -1)
        )
        gap = up - down
        assert gap.std() > 1e-3, name
        assert abs(gap.mean()) < 6 * gap.std() / n**0.5, name


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_conditional_means_are_exact_for_every_schedule_and_prediction(
    schedule: PathSchedule, prediction: Prediction
) -> None:
    """140 z-values in all: false alarms below 1e-6; a mean wrong by a tenth has z above 6."""
    law = MixtureField(GaussianMixture(torch.zeros(1, 2)), mixture(), schedule)
    n = 80_000 if isinstance(prediction, PredictVelocity) else 20_000  # the noisiest targets
    expect_mean(AffinePath(schedule), oracle(law, prediction), prediction, n)


def test_linear_paths_have_the_exact_conditional_mean() -> None:
    law = MixtureField(GaussianMixture(torch.zeros(1, 2)), mixture())
    expect_mean(LinearPath(), oracle(law, PredictVelocity()), PredictVelocity())


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda s: type(s).__name__)
def test_blurred_paths_have_the_velocity_of_an_inflated_covariance(schedule: PathSchedule) -> None:
    """The blur adds noise^2 I at all times: sigma becomes s = sqrt(sigma^2 + noise^2).

    Given x1, E[x0 | x] = sigma / s^2 (x - alpha x1), so sigma' E[x0 | x] = s' (x - alpha x1) / s,
    which is the velocity of the schedule (alpha, s).
    """
    noise = 0.4
    inner = lambda t: schedule(t.clamp(1e-3, 1 - 1e-3))  # sigma' of VP diverges at the end
    inflated = FunctionSchedule(
        lambda t: inner(t).alpha, lambda t: (inner(t).sigma.square() + noise**2).sqrt()
    )
    law = MixtureField(GaussianMixture(torch.zeros(1, 2)), mixture(), inflated)
    expect_mean(AffinePath(schedule, noise=noise), lambda t, x: law(t, x), PredictVelocity())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_prediction_has_the_loss_of_the_velocity_that_it_makes(
    schedule: PathSchedule,
) -> None:
    """Any network f read as a prediction: its loss is that of PredictionField(f)."""
    net = FunctionField(lambda t, x, c: (2 * x + t[:, None]).sin())
    x1 = mixture().sample(500)
    for prediction in PREDICTIONS:
        loss = lambda field, kind: matching(
            field,
            AffinePath(schedule),
            IndependentCoupling(),
            x1,
            times=UniformTimes(0.02, 0.98),
            prediction=kind,
            generator=torch.Generator().manual_seed(1),
        )
        as_velocity = PredictionField(net, schedule, prediction)
        assert torch.allclose(loss(net, prediction), loss(as_velocity, PredictVelocity()))


def test_time_laws_and_weights_reach_the_loss() -> None:
    x1, law = torch.randn(50_000, 1), LogitNormalTimes(1.0, 0.7)
    zero = lambda t, x, c: torch.zeros_like(x)
    run = lambda **options: matching(zero, LinearPath(), IndependentCoupling(), x1, **options)
    times = regression(LinearPath(), IndependentCoupling(), x1, times=law).t
    assert abs(torch.logit(times).mean() - 1) < 6 * 0.7 / 50_000**0.5
    schedule = SNRWeight(1.0)
    t = torch.rand(50_000)
    draw = lambda **options: run(t=t, generator=torch.Generator().manual_seed(0), **options)
    assert torch.allclose(draw(weight=schedule), schedule(t) * draw())
    sine = lambda t, x, c: (4 * t[:, None]).sin() - x
    both = [
        matching(sine, LinearPath(), IndependentCoupling(), x1, times=law),
        matching(sine, LinearPath(), IndependentCoupling(), x1, weight=DensityWeight(law)),
    ]
    error = sum(loss.var() / len(loss) for loss in both) ** 0.5
    assert abs(both[0].mean() - both[1].mean()) < 6 * error


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_event_and_dtype(event: tuple[int, ...], dtype: torch.dtype) -> None:
    x1 = torch.randn(6, *event, dtype=dtype)
    before = x1.clone()
    for path in (LinearPath(), AffinePath(CosineSchedule(), noise=0.1), BridgePath(1.0)):
        loss = matching(lambda t, x, c: x, path, IndependentCoupling(), x1)
        assert loss.shape == (6,)
        assert loss.dtype == dtype
    for prediction in PREDICTIONS:
        loss = matching(
            lambda t, x, c: x,
            AffinePath(VPSchedule()),
            IndependentCoupling(),
            x1,
            prediction=prediction,
            marginal=True,
        )
        assert loss.shape == (6,)
        assert loss.isfinite().all()
    assert torch.equal(x1, before)


def test_noise_drawn_by_the_loss_needs_no_pairing_and_follows_the_generator() -> None:
    """Sources are the generator's own normal numbers; a context stays with its target."""
    x1, context = torch.randn(8, 2), torch.arange(8.0)[:, None]
    draw = lambda: torch.Generator().manual_seed(5)
    asked = regression(LinearPath(), IndependentCoupling(), x1, context=context, generator=draw())
    x0 = torch.randn(8, 2, generator=draw())
    assert torch.allclose(asked.target, x1 - x0)
    assert torch.equal(asked.context, context)
    assert asked.weight is None


def zero(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"t": torch.rand(3).double()}, ShapeError, "one time for each of the 4 pairs"),
        ({"t": torch.full((4,), 1.5).double()}, DomainError, r"must lie in \[0, 1\]"),
        ({"t": torch.full((4,), torch.nan).double()}, DomainError, r"must lie in \[0, 1\]"),
        ({"context": torch.zeros(3, 1)}, ShapeError, "one condition for each of the 4 targets"),
        ({"context": torch.tensor(1.0)}, ShapeError, "one condition for each of the 4 targets"),
        ({"source_context": torch.zeros(3, 1)}, ShapeError, "for each of the 4 sources"),
        ({"x0": torch.zeros(4, 3).double()}, ShapeError, "one event shape"),
        ({"weight": lambda t: t[:1]}, ShapeError, r"weight\(t\) must have the shape of t"),
        ({"path": BridgePath(1.0), "prediction": PredictX1()}, DomainError, "path with a schedule"),
        (
            {"path": AffinePath(LinearSchedule(), noise=0.1), "prediction": PredictX1()},
            DomainError,
            "on a path with noise PredictX1 does not give the velocity",
        ),
        (
            {"coupling": PairedCoupling(), "x0": torch.zeros(3, 2).double()},
            ShapeError,
            "as many sources as targets",
        ),
    ],
)
def test_bad_input_is_refused(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    path = options.pop("path", LinearPath())
    coupling = options.pop("coupling", IndependentCoupling())
    with pytest.raises(error, match=message):
        matching(zero, path, coupling, torch.zeros(4, 2), **options)


def test_empty_and_whole_numbered_targets_are_refused() -> None:
    with pytest.raises(ShapeError, match="none may be empty"):
        matching(zero, LinearPath(), IndependentCoupling(), torch.zeros(0, 2))
    with pytest.raises(ShapeError, match="one batch axis"):
        matching(zero, LinearPath(), IndependentCoupling(), torch.tensor(1.0))


def test_trained_on_a_gaussian_pair_under_optimal_transport_the_flow_is_the_affine_map() -> None:
    """Samples and log-likelihoods of N(m, S) from N(0, I), by a small field and few steps."""
    torch.manual_seed(1)
    mean, factor = torch.tensor([1.0, -0.5]), torch.tensor([[0.8, 0.0], [0.5, 0.6]])
    truth = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    field = MLPField(2, hidden_features=(48, 48), frequencies=3).double()
    draw = lambda n, generator: mean + torch.randn(n, 2, generator=generator) @ factor.T
    Trainer(
        field,
        lambda model, row, *, generator: matching(
            model, LinearPath(), OTCoupling(), draw(64, generator), generator=generator
        ),
        steps=500,
        batch=64,
        lr=5e-3,
        schedule=CosineDecay(warmup=20),
        ema=0.98,
        progress=False,
    ).fit(torch.zeros(64, 1))
    flow = Flow(Gaussian(2).double(), ODE(field, RK4(8)))
    x = truth.sample((1000,))
    with torch.no_grad():
        gap = flow.log_prob(x) - truth.log_prob(x)
        samples = flow.sample(4000)
        coarse = Flow(flow.base, ODE(field, Euler(2))).sample(4000)
    assert abs(gap.mean()) < 0.01  # nats
    assert gap.abs().mean() < 0.06
    for points in (samples, coarse):
        assert torch.allclose(points.mean(0), mean, atol=0.08)
        assert torch.allclose(points.T.cov(), truth.covariance_matrix, atol=0.1)
