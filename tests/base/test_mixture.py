"""Mixtures against torch.distributions, their weights in draws, and their start from data."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from cflow.base import Mixture
from cflow.errors import DomainError, ShapeError


@pytest.mark.parametrize("event", [(), (3,), (2, 3)], ids=str)
def test_the_mixture_is_torchs(event: tuple[int, ...]) -> None:
    base = Mixture(4, event)
    nn.init.normal_(base.logits)
    nn.init.normal_(base.log_scale, std=0.4)
    parts = Independent(Normal(base.mean, base.log_scale.exp()), len(event))
    x = torch.randn(2, 5, *event)
    expected = MixtureSameFamily(Categorical(logits=base.logits), parts).log_prob(x)
    assert torch.allclose(base.log_prob(x), expected)
    assert base.sample((2, 0)).shape == (2, 0, *event)


def test_draws_pick_components_by_weight() -> None:
    """Components far apart; counts within six standard deviations, false alarm 2e-9 each."""
    base = Mixture(3, 1)
    weights = torch.tensor([0.7, 0.3, 1e-9])
    with torch.no_grad():
        base.mean.copy_(torch.tensor([[0.0], [100.0], [200.0]]))
        base.logits.copy_(weights.log() + 5)
        x = base.sample((50_000,)).flatten()
    share = (x < 50).double().mean()
    assert (share - 0.7).abs() < 6 * (0.21 / 50_000) ** 0.5
    assert x.max() < 150


def test_gradients_of_draws_miss_the_weights_alone() -> None:
    base = Mixture(3, 2)
    base.sample((50,)).sum().backward()
    assert base.logits.grad is None
    assert base.mean.grad is not None
    base.log_prob(torch.randn(5, 2)).sum().backward()
    assert base.logits.grad is not None


@pytest.mark.parametrize("event", [(2,), (1, 2)], ids=str)
def test_fit_finds_clusters_that_stand_apart(event: tuple[int, ...]) -> None:
    centres = torch.tensor([[-10.0, 0.0], [10.0, 0.0], [0.0, 20.0]])
    label = torch.randint(3, (3000,))
    label[:1500] = 0
    x = centres[label] + torch.tensor([0.5, 2.0]) * torch.randn(3000, 2)
    base = Mixture(3, event)
    base.fit(x.reshape(3000, *event), generator=torch.Generator().manual_seed(0))
    mean, scale = base.mean.detach().reshape(3, 2), base.log_scale.detach().exp().reshape(3, 2)
    order = torch.cdist(centres, mean).argmin(1)
    assert order.sort().values.tolist() == [0, 1, 2]
    assert torch.allclose(mean[order], centres, atol=0.4)
    assert torch.allclose(scale[order], torch.tensor([0.5, 2.0]).expand(3, 2), rtol=0.1)
    counts = torch.bincount(label) + 1
    assert torch.allclose(base.logits.softmax(0)[order], counts / counts.sum())


def test_fit_raises_the_likelihood_and_one_seed_decides() -> None:
    x = torch.randn(500, 2).sign() * 3 + torch.randn(500, 2)
    base = Mixture(4, 2)
    before = base.log_prob(x).mean()
    state = torch.get_rng_state()
    base.fit(x, generator=torch.Generator().manual_seed(0))
    first = base.mean.detach().clone()
    base.fit(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, base.mean)
    assert base.log_prob(x).mean() > before + 1


def test_fit_survives_equal_points() -> None:
    base = Mixture(3, 2)
    base.fit(torch.ones(5, 2))
    assert all(bool(p.isfinite().all()) for p in base.parameters())


def test_bad_points_are_refused() -> None:
    base = Mixture(3, 2)
    with pytest.raises(DomainError, match="3 components need as many points, got 2"):
        base.fit(torch.zeros(2, 2))
    with pytest.raises(DomainError, match=r"Mixture\.fit: x must be finite"):
        base.fit(torch.full((5, 2), torch.nan))
    with pytest.raises(ShapeError, match=r"Mixture\.fit: x must end in shape \(2,\)"):
        base.fit(torch.zeros(5, 3))
    with pytest.raises(DomainError, match="components must be positive"):
        Mixture(0, 2)
