"""The resampled base against grid integrals: its Z, its draws, and its training gradient."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.distributions import Normal

from cflow.base import DiagonalGaussian, Gaussian, Resampled, Uniform
from cflow.errors import DomainError, ShapeError


class Acceptance(nn.Module):
    """A logit that grows away from zero: the law gets a hole."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5, -1.0]))

    def forward(self, z: Tensor) -> Tensor:
        return self.weight[0] * z.square() + self.weight[1]


def grid() -> tuple[Tensor, float]:
    x = torch.linspace(-9, 9, 20_001)
    return x[:, None], (x[1] - x[0]).item()


def exact_z(base: Resampled) -> Tensor:
    x, width = grid()
    a = base.acceptance(x).squeeze(-1).sigmoid()
    return (base.proposal.log_prob(x).exp() * a).sum() * width


def exact_log_prob(base: Resampled, x: Tensor) -> Tensor:
    z, a = exact_z(base), base.acceptance(x).squeeze(-1).sigmoid()
    last = (1 - z) ** (base.truncation - 1)
    return base.proposal.log_prob(x) + ((1 - last) * a / z + last).log()


def test_measure_finds_z_within_its_error() -> None:
    """Twenty estimates, each within six of its standard errors; false alarm 4e-8."""
    base = Resampled(Gaussian(1), Acceptance()).eval()
    exact, scores = exact_z(base).item(), []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        z, error = base.measure(5000, chunk=900, generator=generator)
        assert base.log_z.exp().tolist() == pytest.approx([z, 1 - z])
        scores.append((z - exact) / error)
    spread = torch.tensor(scores)
    assert spread.abs().max() < 6
    assert 0.4 < spread.std() < 1.9  # the error is that of the estimate


@pytest.mark.parametrize("truncation", [2, 3, 50])
def test_the_density_is_the_formula_and_draws_follow_it(truncation: int) -> None:
    """Kolmogorov-Smirnov on 20,000 draws; false alarm 1e-6."""
    base = Resampled(Gaussian(1), Acceptance(), truncation=truncation).eval()
    z = exact_z(base).detach()
    base.log_z.copy_(torch.stack([z, 1 - z]).log())
    x, width = grid()
    values = base.log_prob(x).detach()
    assert torch.allclose(values, exact_log_prob(base, x))
    assert values.exp().sum() * width == pytest.approx(1.0, abs=1e-9)
    cumulative = (values.exp() * width).cumsum(0) - 0.5 * values.exp() * width
    draws = base.sample((20_000,)).detach().flatten()
    place = torch.searchsorted(x.flatten(), draws)
    assert kstest(cumulative[place.clamp_max(20_000)].numpy(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_accepting_none_or_all_gives_the_proposal(logit: float) -> None:
    base = Resampled(Gaussian(2), lambda z: torch.full_like(z[..., :1], logit)).eval()
    base.measure(100)
    x = torch.randn(5, 2)
    assert torch.allclose(base.log_prob(x), Normal(0.0, 1.0).log_prob(x).sum(1))
    assert base.train().log_prob(x).isfinite().all()
    assert base.sample((7,)).shape == (7, 2)


def test_the_training_gradient_is_that_of_the_exact_density() -> None:
    """Towards acceptance and proposal; six standard errors and a bias of 1e-3.

    Errors come from 40 batches; Student's tails exceed six of them once in a million.
    """
    base = Resampled(DiagonalGaussian(1), Acceptance(), truncation=5, draws=4000)
    x = torch.linspace(-1, 2, 9)[:, None]
    parameters = list(base.parameters())
    exact = torch.autograd.grad(exact_log_prob(base, x).mean(), parameters)
    expected = torch.cat([g.flatten() for g in exact])
    grads, values = [], []
    for _ in range(40):
        value = base.log_prob(x).mean()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
        values.append(value.detach())
    got, value = torch.stack(grads), torch.stack(values)
    assert expected.abs().min() > 5e-3
    assert ((got.mean(0) - expected).abs() < 6 * got.std(0) / 40**0.5 + 1e-3).all()
    gap = value.mean() - exact_log_prob(base, x).mean()
    assert gap.abs() < 6 * value.std() / 40**0.5 + 1e-3


def test_training_moves_the_stored_z_and_evaluation_does_not() -> None:
    base = Resampled(Gaussian(1), Acceptance(), momentum=0.2)
    x = torch.zeros(3, 1)
    base.log_z.fill_(-2.0)
    first, second = base.log_prob(x), base.log_prob(x)
    assert not torch.equal(first, second)  # fresh proposals each time
    for _ in range(60):
        base.log_prob(x)
    assert base.log_z[0].exp() == pytest.approx(exact_z(base).item(), abs=0.03)
    base.eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    assert torch.equal(base.log_prob(x), base.log_prob(x))
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())


def test_training_goes_on_from_a_state_dict() -> None:
    base, other = (Resampled(Gaussian(1), Acceptance()) for _ in range(2))
    x = torch.zeros(3, 1)
    base.log_prob(x)
    assert not torch.equal(base.log_prob(x), other.log_prob(x))
    other.load_state_dict(base.state_dict())
    assert torch.equal(base.log_prob(x), other.log_prob(x))


def test_learning_digs_a_hole() -> None:
    """A ring-like law of one number, |x| near 2: the learned base beats the best normal one."""
    x = 2 * torch.sign(torch.randn(2000, 1)) + 0.4 * torch.randn(2000, 1)
    base = Resampled(DiagonalGaussian(1), Acceptance(), truncation=20, draws=512)
    optimizer = torch.optim.Adam(base.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-base.log_prob(x).mean()).backward()
        optimizer.step()
    base.eval().measure(50_000)
    normal = Normal(x.mean(), x.std()).log_prob(x).mean()
    assert exact_log_prob(base, x).mean() > normal + 0.3
    gap = base.log_prob(x).mean() - exact_log_prob(base, x).mean()
    assert gap.abs() < 0.03
    inside = (base.sample((4000,)).abs() < 0.5).double().mean()
    assert inside < 0.05


def test_images_and_boxes_can_be_resampled() -> None:
    def dark(z: Tensor) -> Tensor:
        return z.flatten(-3).mean(-1, keepdim=True)

    base = Resampled(Uniform((1, 2, 2)), dark, truncation=3).eval()
    assert base.sample((2, 3)).shape == (2, 3, 1, 2, 2)
    assert base.log_prob(torch.rand(4, 1, 2, 2)).shape == (4,)
    assert base.log_prob(torch.full((1, 2, 2), 2.0)) == -torch.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Resampled(Gaussian(1), Acceptance(), truncation=1), "truncation must be 2 or"),
        (lambda: Resampled(Gaussian(1), Acceptance(), draws=0), "draws must be positive"),
        (lambda: Resampled(Gaussian(1), Acceptance(), momentum=1.5), r"must lie in \(0, 1\]"),
        (lambda: Resampled(Gaussian(1), Acceptance()).measure(1), "draws must be 2 or more"),
        (
            lambda: Resampled(DiagonalGaussian(1, nn.Linear(1, 2)), Acceptance()),
            "its conditioner needs a context",
        ),
    ],
)
def test_bad_options_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        build()


def test_an_acceptance_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"must return shape \(1024, 1\).*got \(1024, 2\)"):
        Resampled(Gaussian(3), nn.Linear(3, 2))
