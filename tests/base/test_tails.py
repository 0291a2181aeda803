"""Laws with other tails against torch, SciPy, and their limits."""

import pytest
import torch
from scipy.stats import gennorm, kstest, t
from torch import nn

from cflow.base import GeneralisedGaussian, StudentT
from cflow.errors import DomainError


def moved(base: StudentT | GeneralisedGaussian) -> StudentT | GeneralisedGaussian:
    nn.init.normal_(base.mean)
    nn.init.normal_(base.log_scale, std=0.5)
    return base


@pytest.mark.parametrize("event", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("degrees", [0.5, 1.0, 4.0, 100.0])
def test_students_law_is_torchs(event: tuple[int, ...], degrees: float) -> None:
    base = moved(StudentT(event, degrees=degrees))
    x = 5 * torch.randn(6, *event)
    law = torch.distributions.StudentT(degrees, base.mean, base.log_scale.exp())
    expected = law.log_prob(x)
    assert torch.allclose(base.log_prob(x), expected.flatten(1).sum(1) if event else expected)


def test_students_law_tends_to_the_normal_one_also_in_float32() -> None:
    base = StudentT(1, degrees=1e7).to(torch.float32)
    x = torch.linspace(-3, 3, 13, dtype=torch.float32)[:, None]
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    assert torch.allclose(base.log_prob(x), normal, atol=2e-4)


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0, 8.0])
def test_the_generalised_law_is_scipys(power: float) -> None:
    base = moved(GeneralisedGaussian(3, shape=power))
    x = torch.randn(6, 3)
    mean, scale = base.mean.detach().numpy(), base.log_scale.exp().detach().numpy()
    expected = torch.from_numpy(gennorm.logpdf(x.numpy(), power, mean, scale)).sum(1)
    assert torch.allclose(base.log_prob(x), expected)


@pytest.mark.parametrize("value", [0.6, 1.0, 3.0])
def test_draws_follow_their_laws(value: float) -> None:
    """Kolmogorov-Smirnov on 20,000 draws each; false alarm 1e-6."""
    with torch.no_grad():
        student = StudentT(1, degrees=value).sample((20_000,)).flatten()
        general = GeneralisedGaussian(1, shape=value).sample((20_000,)).flatten()
    assert kstest(student.numpy(), t(value).cdf).pvalue > 1e-6
    assert kstest(general.numpy(), gennorm(value).cdf).pvalue > 1e-6


def test_the_gradient_of_a_moment_is_that_of_its_formula() -> None:
    """E|z| is gamma(2/b) / gamma(1/b); six standard errors, false alarm 1e-7."""
    base = GeneralisedGaussian((), shape=1.5)
    power = base.log_shape.exp()
    exact = (torch.lgamma(2 / power) - torch.lgamma(1 / power)).exp()
    (expected,) = torch.autograd.grad(exact, base.log_shape)
    grads = []
    for _ in range(100):
        (grad,) = torch.autograd.grad(base.sample((1000,)).abs().mean(), base.log_shape)
        grads.append(grad)
    got = torch.stack(grads)
    assert (got.mean() - expected).abs() < 6 * got.std() / 10


def test_degrees_of_freedom_are_learned_or_fixed_for_each_feature() -> None:
    degrees = torch.tensor([1.0, 5.0])
    free, fixed = StudentT(2, degrees=degrees), StudentT(2, degrees=degrees, learned=False)
    assert torch.allclose(free.log_degrees.exp(), degrees)
    assert "log_degrees" in dict(free.named_parameters())
    assert "log_degrees" not in dict(fixed.named_parameters())
    assert "log_degrees" in fixed.state_dict()
    x = torch.randn(4, 2)
    assert torch.equal(free.log_prob(x), fixed.log_prob(x))
    assert "log_shape" not in dict(GeneralisedGaussian(2, learned=False).named_parameters())


def test_the_density_at_the_centre_has_finite_gradients() -> None:
    for power in (0.5, 1.0, 2.0):
        base = GeneralisedGaussian(2, shape=power)
        base.log_prob(torch.zeros(3, 2)).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in base.parameters() if p.grad is not None)


def test_powers_and_degrees_must_be_positive() -> None:
    with pytest.raises(DomainError, match="StudentT: degrees must be positive"):
        StudentT(2, degrees=0.0)
    with pytest.raises(DomainError, match="GeneralisedGaussian: shape must be positive"):
        GeneralisedGaussian(2, shape=torch.tensor([1.0, -1.0]))
