"""Posterior samples against Bayesian linear regression, where the law of the data is normal."""

import pytest
import torch
from torch import Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import (
    CosineSchedule,
    FunctionField,
    GaussianMixture,
    LinearSchedule,
    LinearVPSchedule,
    MixtureField,
    MLPField,
    PathSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.ode import RK4
from cflow.samples import (
    SDE,
    CurvedEuler,
    CurvedHeun,
    IsotropicCovariance,
    PosteriorField,
    sample_posterior,
)
from cflow.transport import ODE

SCHEDULES = [
    LinearSchedule(),
    PolynomialSchedule(2.0),
    CosineSchedule(),
    VPSchedule(),
    LinearVPSchedule(),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)

D = 4


def law() -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of the data, and a matrix that makes two observations of them."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(D, D, generator=g)
    mean, matrix = torch.randn(D, generator=g), torch.randn(2, D, generator=g)
    return mean, root @ root.mT + 0.1 * torch.eye(D), matrix


def regression(y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y, in closed form."""
    m, c, a = law()
    gain = c @ a.mT @ torch.linalg.inv(a @ c @ a.mT + noise**2 * torch.eye(2))
    return m + (y - m @ a.mT) @ gain.mT, c - gain @ a @ c


def between(schedule: PathSchedule, mean: Tensor, covariance: Tensor) -> MixtureField:
    start = GaussianMixture(torch.zeros(1, len(mean)))
    return MixtureField(start, GaussianMixture(mean[None], covariance[None]), schedule)


@each_schedule
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_field_is_the_velocity_of_the_posterior(schedule, noise: float) -> None:
    mean, covariance, matrix = law()
    y = torch.tensor([0.5, -0.5])
    field = PosteriorField(
        between(schedule, mean, covariance), matrix, y=y, noise=noise, schedule=schedule
    )
    m, c = regression(y, noise)
    truth = between(schedule, m, c + 1e-12 * torch.eye(D))
    t = torch.linspace(1e-3, 0.99, 20)[:, None].expand(20, 5)
    x = torch.randn(20, 5, D)
    assert torch.allclose(field(t, x), truth(t, x), rtol=1e-6, atol=1e-6)
    for end in (0.0, 1.0):
        assert bool(torch.isfinite(field(torch.full((5,), end), x[0])).all())


def test_samples_follow_bayesian_linear_regression_and_errors_fall_with_the_steps() -> None:
    """In whitened coordinates the n samples have mean and covariance of a standard normal law.

    Six standard errors, 6 / sqrt(n) and 6 sqrt(2 / n), are exceeded by chance below 1e-7;
    0.03 is what the steps may add. Without noise on the way the flow is affine: no chance there.
    """
    n, noise, y = 1000, 0.3, torch.tensor([0.5, -0.5])
    mean, covariance, matrix = law()
    m, c = regression(y, noise)
    white = torch.linalg.inv(torch.linalg.cholesky(c))
    field = between(LinearSchedule(), mean, covariance)
    x = sample_posterior(
        field, y.expand(n, 2), operator=matrix, noise=noise, event_shape=(D,), sampler=SDE(20)
    )
    z = (x - m) @ white.mT
    assert bool((z.mean(0).abs() < 6 / n**0.5).all())
    assert bool(((z.mT.cov() - torch.eye(D)).abs() < 6 * (2 / n) ** 0.5 + 0.03).all())
    # The flow from x0 to x is affine here: its matrix must be a root of the covariance.
    errors = []
    posterior = PosteriorField(field, matrix, y=y, noise=noise)
    for steps in (8, 16, 24):
        ends = CurvedHeun(steps).sample(posterior, torch.cat([torch.zeros(1, D), torch.eye(D)]))
        root = (ends[1:] - ends[0]).mT
        errors.append(((ends[0] - m).abs().max() + (root @ root.mT - c).abs().max()).item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.7 * errors[1] < 0.1


def test_without_noise_the_observations_are_met_and_each_sample_has_its_own() -> None:
    mean, covariance, matrix = law()
    field, y = between(LinearSchedule(), mean, covariance), torch.randn(20, 2)
    x = sample_posterior(
        field,
        y,
        operator=lambda x: x @ matrix.mT,
        noise=0.0,
        event_shape=(D,),
        sampler=CurvedHeun(10),
    )
    assert torch.allclose(x @ matrix.mT, y, rtol=0, atol=1e-10)
    draw = lambda operator: sample_posterior(
        field,
        y,
        operator=operator,
        noise=0.1,
        event_shape=(D,),
        sampler=CurvedEuler(5),
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.allclose(draw(matrix), draw(lambda x: x @ matrix.mT))


def test_a_posterior_flow_has_the_posterior_density() -> None:
    mean, covariance, matrix = law()
    field = between(LinearSchedule(), mean, covariance)
    flow = Flow(
        Gaussian(D),
        ODE(PosteriorField(field, matrix, y=None, noise=0.5), RK4(12)),
        context_shape=(2,),
    )
    y, x = torch.randn(2, 2), torch.randn(2, D)
    m, c = regression(y, 0.5)
    truth = torch.distributions.MultivariateNormal(m, c)
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x, y), truth.log_prob(x), rtol=0, atol=1e-2)


def test_images_are_restored_from_blocks() -> None:
    """Entries that are independent: averages of blocks have a posterior known entry by entry."""
    variance, noise, n = 0.49, 0.2, 200
    field = FunctionField(
        lambda t, x, c: (
            x * ((t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance))[:, None, None, None]
        )
    )
    pool = lambda x: torch.nn.functional.avg_pool2d(x, 2)
    y = torch.randn(1, 1, 2, 3).expand(n, 1, 2, 3)
    for covariance in (None, IsotropicCovariance(0.7)):
        x = sample_posterior(
            field,
            y,
            operator=pool,
            noise=noise,
            event_shape=(1, 4, 6),
            sampler=CurvedHeun(12),
            iterations=2,
            covariance=covariance,
        )
        gain = variance / 4 / (variance / 4 + noise**2)
        expected = (gain * y[0]).repeat_interleave(2, -1).repeat_interleave(2, -2)
        # 24 means with standard errors below 0.7 / sqrt(n): 6 of them fail by chance below 1e-7.
        assert bool(((x.mean(0) - expected).abs() < 6 * 0.7 / n**0.5).all())
        spread = pool(x).var(0)
        assert spread.mean().item() == pytest.approx(gain * noise**2, rel=0.2)


def test_a_wrong_jacobian_shifts_no_sample_out_of_reach() -> None:
    """Early J has s = 1e-4 at the observed entry and 0.1 beside it: Kalman's update goes 1000 r.

    The expected end of the field below is J x, hence its velocity (J x - x) / (1 - t); the guided
    one moves that end by the difference of the two times sigma.
    """
    wrong = torch.tensor([[1e-4, 0.1], [0.0, 0.5]])
    field = FunctionField(lambda t, x, c: (x @ wrong.mT - x) / (1 - t[..., None]))
    observe, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0.7])
    t, x = torch.linspace(0.002, 0.02, 5), torch.randn(5, 2)

    def shift(reach: float | None, x: Tensor = x) -> Tensor:
        if reach is None:
            guided = PosteriorField(field, observe, y=y, noise=0.0)
        else:
            guided = PosteriorField(field, observe, y=y, noise=0.0, reach=reach)
        return (guided(t, x) - field(t, x)) * (1 - t[:, None])

    missed = (y - x @ wrong[0]).abs()
    free = shift(float("inf"))
    assert bool((free.norm(dim=-1) > 900 * missed).all())
    for reach, expected in ((None, 10.0), (3.0, 3.0)):
        bounded = shift(reach)
        assert torch.allclose(bounded.norm(dim=-1), expected * missed, rtol=1e-9, atol=0)
        cosine = torch.nn.functional.cosine_similarity(bounded, free, dim=-1)
        assert torch.allclose(cosine, torch.ones(5))
    assert torch.allclose(shift(2000.0), free)
    # Gradients stay finite under the bound, and where y is met already.
    met = torch.tensor([0.0, 7.0]).expand(5, 2)
    for points in (x, met):
        slope = torch.func.jacrev(lambda z: shift(None, z))(points)
        assert bool(torch.isfinite(slope).all())


def test_imperfect_fields_and_few_iterations_stay_finite() -> None:
    field, matrix = MLPField(6), torch.randn(5, 6)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    for iterations in (1, 3, 20):
        x = sample_posterior(
            field,
            torch.randn(20, 5),
            operator=matrix,
            noise=0.1,
            event_shape=(6,),
            sampler=CurvedEuler(5),
            iterations=iterations,
        )
        assert bool(torch.isfinite(x).all())
    assert not x.requires_grad


def test_mistakes_are_named() -> None:
    field, y = MLPField(3), torch.zeros(4, 2)
    draw = lambda operator, y=y, noise=0.1: sample_posterior(
        field, y, operator=operator, noise=noise, event_shape=(3,)
    )
    for operator in (lambda x: x[:, :2] + 1, lambda x: x[:, :2].abs(), lambda x: x[:, :2] ** 2):
        with pytest.raises(DomainError, match="the operator must be linear"):
            draw(operator)
    with pytest.raises(ShapeError, match=r"observations \(4, 3\), but y has shape \(4, 2\)"):
        draw(lambda x: x)
    with pytest.raises(ShapeError, match=r"matrix must be \(m, 3\)"):
        draw(torch.zeros(2, 4))
    with pytest.raises(DomainError, match="noise must be 0 or positive"):
        draw(torch.zeros(2, 3), noise=-1.0)
    with pytest.raises(DomainError, match="y must be finite"):
        draw(torch.zeros(2, 3), y * float("nan"))
    with pytest.raises(ShapeError, match="y must have a leading batch axis"):
        draw(torch.zeros(2, 3), torch.tensor(0.0))
    with pytest.raises(DomainError, match="iterations must be"):
        PosteriorField(field, torch.zeros(2, 3), y=y, noise=0.1, iterations=0)
    for reach in (0.0, -1.0, float("nan")):
        with pytest.raises(DomainError, match="reach must be positive"):
            PosteriorField(field, torch.zeros(2, 3), y=y, noise=0.1, reach=reach)
    with pytest.raises(DomainError, match="spread must be positive"):
        IsotropicCovariance(0.0)
    t, x = torch.rand(5), torch.randn(5, 3)
    with pytest.raises(ShapeError, match=r"observations \(5, 2\), to which y \(4, 2\)"):
        PosteriorField(field, torch.zeros(2, 3), y=y, noise=0.1)(t, x)
    with pytest.raises(DomainError, match="the context is the observation"):
        PosteriorField(field, torch.zeros(2, 3), y=None, noise=0.1)(t, x)
