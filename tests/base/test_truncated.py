"""Laws cut to a box against SciPy, also far in the tails, and their gradients."""

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn

from cflow.base import DiagonalGaussian, Gaussian, Mixture, StudentT, Truncated, Uniform
from cflow.errors import DomainError

INTERVALS = [(-1.0, 2.0), (-9.0, 9.0), (0.0, torch.inf), (-torch.inf, -3.0), (5.0, 6.0),
             (-31.0, -30.0), (30.0, torch.inf), (60.0, 61.0), (-1e-3, 1e-3)]  # fmt: skip


@pytest.mark.parametrize("ends", INTERVALS, ids=str)
def test_densities_and_draws_are_scipys(ends: tuple[float, float]) -> None:
    """Kolmogorov-Smirnov on 20,000 draws; false alarm 1e-6."""
    base = Truncated(Gaussian(1), low=ends[0], high=ends[1])
    x = base.sample((20_000,)).flatten()
    assert x.isfinite().all()
    assert ends[0] <= x.min()
    assert x.max() <= ends[1]
    assert kstest(x.numpy(), truncnorm(*ends).cdf).pvalue > 1e-6
    some = x[:50]
    expected = torch.from_numpy(truncnorm.logpdf(some.numpy(), *ends))
    assert torch.allclose(base.log_prob(some[:, None]), expected, atol=1e-8)


def test_draws_stay_in_a_box_a_few_roundings_wide() -> None:
    inner, low = DiagonalGaussian(50), 1 / 3
    nn.init.normal_(inner.mean)
    nn.init.normal_(inner.log_scale)
    x = Truncated(inner, low=low, high=low + 1e-15).sample((400,))
    assert x.min() >= low
    assert x.max() <= low + 1e-15


def test_a_whole_line_cuts_nothing() -> None:
    base, x = DiagonalGaussian((2, 3)), 3 * torch.randn(5, 2, 3)
    assert torch.allclose(Truncated(base).log_prob(x), base.log_prob(x))


def test_outside_it_is_minus_infinity_and_gradients_are_finite() -> None:
    base = Truncated(DiagonalGaussian(2), low=0.0)
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    values = base.log_prob(x)
    assert values.isneginf().tolist() == [False, True, False]
    values[values.isfinite()].sum().backward()
    assert x.grad is not None
    grads = [x.grad, *(p.grad for p in base.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


def test_the_gradient_of_the_mean_is_that_of_its_formula() -> None:
    """E[x | x > 0] = m + s phi(m/s) / Phi(m/s); six standard errors, false alarm 1e-7."""
    inner = DiagonalGaussian(())
    with torch.no_grad():
        inner.mean.fill_(-0.7)
        inner.log_scale.fill_(0.3)
    base, s = Truncated(inner, low=0.0), inner.log_scale.exp()
    a = inner.mean / s
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(a)
    exact = inner.mean + s * (log_density - torch.special.log_ndtr(a)).exp()
    expected = torch.stack(torch.autograd.grad(exact, [inner.mean, inner.log_scale]))
    grads = []
    for _ in range(100):
        mean = base.sample((500,)).mean()
        grads.append(torch.stack(torch.autograd.grad(mean, [inner.mean, inner.log_scale])))
    got = torch.stack(grads)
    assert ((got.mean(0) - expected).abs() < 6 * got.std(0) / 10).all()


def test_float32_keeps_its_digits_in_a_tail() -> None:
    base = Truncated(Gaussian(1), low=12.0, high=13.0).to(torch.float32)
    x = base.sample((1000,))
    assert x.dtype == torch.float32
    assert len(x.unique()) > 900
    expected = torch.from_numpy(truncnorm.logpdf(x.double().numpy(), 12.0, 13.0)).sum(1)
    assert torch.allclose(base.log_prob(x).double(), expected, atol=1e-4)


def test_laws_without_quantiles_and_empty_boxes_are_refused() -> None:
    for law in (Mixture(2, 2), StudentT(2)):
        with pytest.raises(DomainError, match=f"known quantiles.*got {type(law).__name__}"):
            Truncated(law, low=0.0)
    with pytest.raises(DomainError, match="high must be above low in every entry"):
        Truncated(Gaussian(2), low=1.0, high=torch.tensor([2.0, 1.0]))
    with pytest.raises(DomainError, match="does not meet the box of its uniform base"):
        Truncated(Uniform(2), low=1.5, high=2.0)
