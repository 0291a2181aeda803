"""Noise that only training sees: what it does, when, and how much."""

import pytest
import torch
from torch import Tensor

from cflow import Flow, State, nll, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.nets import CausalTransformer
from cflow.transport import Chain, GaussianNoise, Inverse, LabelDropout, TransformerLayer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_added_in_training_only_and_leaves_the_account_alone() -> None:
    layer, x = GaussianNoise(0.5), torch.randn(3, 2)
    opening = torch.arange(3.0)
    pulled = layer.pull(State(x, ladj=opening), generator=seeded())
    assert torch.equal(pulled.x, layer.add(x, generator=seeded()))
    assert bool((pulled.x != x).all())
    assert pulled.ladj is opening
    assert torch.equal(layer.push(State(x)).x, x)
    assert layer.likelihood == "bound"
    layer.eval()
    assert torch.equal(layer.pull(State(x)).x, x)
    assert layer.likelihood == "exact"


def test_noise_has_the_stated_scale() -> None:
    noise = GaussianNoise(0.5).add(torch.zeros(40_000), generator=seeded()) / 0.5
    # Mean and variance are within 5 standard errors: a false alarm in 1e6 seeds.
    assert abs(noise.mean().item()) < 5 / 200
    assert abs(noise.var().item() - 1) < 5 * 2**0.5 / 200


def test_the_training_value_is_the_mean_below_the_smoothed_density() -> None:
    flow = Flow(Gaussian(1), Chain(GaussianNoise(0.7)))
    x = torch.tensor([[0.4]]).expand(100_000, 1)
    mean = -nll(flow, x, generator=seeded()).mean()
    expected = -0.5 * (0.16 + 0.49) - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    assert abs(mean - expected) < 5 * 0.45 / 316  # 5 standard errors
    smoothed = torch.distributions.Normal(0.0, (1 + 0.49) ** 0.5).log_prob(torch.tensor(0.4))
    assert mean < smoothed
    assert torch.allclose(flow.eval().log_prob(x[0]), Gaussian(1).log_prob(x[0]))


def conditional() -> tuple[LabelDropout, TransformerLayer]:
    net = CausalTransformer(3, 2, 4, width=8, layers=1, heads=2, classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    layer = TransformerLayer(net)
    return LabelDropout(Inverse(layer), 0.25), layer


def test_labels_are_hidden_at_the_stated_rate_sample_by_sample() -> None:
    dropout, layer = conditional()
    x, labels = torch.randn(3, 2).expand(4000, 3, 2), torch.full((4000,), 2)
    given = labels.clone()
    got = dropout.pull(tracked(x, event_dim=2), labels, generator=seeded())
    told = layer.push(tracked(x[0], event_dim=2), labels[0])
    null = layer.push(tracked(x[0], event_dim=2), torch.tensor(-1))
    as_null = torch.isclose(got.x, null.x, rtol=0, atol=1e-10).all(-1).all(-1)
    as_told = torch.isclose(got.x, told.x, rtol=0, atol=1e-10).all(-1).all(-1)
    assert bool((as_null ^ as_told).all())
    assert abs(as_null.double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(labels, given)
    again = dropout.pull(State(x), labels, generator=seeded())
    assert torch.equal(again.x, got.x)


@pytest.mark.parametrize("when", ["evaluation", "push", "rate 0", "no context"])
def test_labels_stay_otherwise(when: str) -> None:
    dropout, layer = conditional()
    x, labels = torch.randn(200, 3, 2), torch.randint(0, 3, (200,))
    context: Tensor | None = labels
    if when == "evaluation":
        dropout.eval()
        assert dropout.likelihood == "exact"
    else:
        assert dropout.likelihood == "bound"
    if when == "rate 0":
        dropout.rate = 0.0
        assert dropout.likelihood == "exact"
    if when == "no context":
        context = None
    if when == "push":
        assert torch.equal(dropout.push(State(x), labels).x, layer.pull(State(x), labels).x)
    else:
        assert torch.equal(dropout.pull(State(x), context).x, layer.push(State(x), context).x)


def test_bad_options_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="GaussianNoise: scale must be positive"):
        GaussianNoise(0.0)
    with pytest.raises(DomainError, match=r"LabelDropout: rate must lie in \[0, 1\)"):
        LabelDropout(Chain(), 1.0)
