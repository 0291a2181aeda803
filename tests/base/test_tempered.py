"""Scaled noise against the normal law of that scale, and what cannot be scaled."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from cflow import Flow
from cflow.base import Base, DiagonalGaussian, Gaussian, Mixture, Truncated, Uniform, tempered
from cflow.errors import DomainError
from cflow.transport import Affine


@pytest.mark.parametrize("event", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_standard_deviations_are_multiplied(event: tuple[int, ...], temperature: float) -> None:
    inner = DiagonalGaussian(event)
    nn.init.normal_(inner.mean)
    nn.init.normal_(inner.log_scale)
    base, x = tempered(inner, temperature), torch.randn(5, *event)
    expected = Normal(inner.mean, temperature * inner.log_scale.exp()).log_prob(x)
    assert torch.allclose(base.log_prob(x), expected.flatten(1).sum(1) if event else expected)
    plain = inner.sample((5,), generator=torch.Generator().manual_seed(0))
    cool = base.sample((5,), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cool, inner.mean + temperature * (plain - inner.mean))


def test_a_flow_cools_by_its_base_alone() -> None:
    flow = Flow(tempered(Gaussian(2), 0.5), Affine(scale=3.0))
    expected = Normal(0.0, 1.5).log_prob(torch.ones(4, 2)).sum(1)
    assert torch.allclose(flow.log_prob(torch.ones(4, 2)), expected)


@pytest.mark.parametrize(
    "base", [Mixture(2, 2), Uniform(2), Truncated(Gaussian(2), low=0.0)], ids=lambda b: type(b)
)
def test_other_laws_are_refused(base: Base) -> None:
    with pytest.raises(DomainError, match=f"can be scaled.*got {type(base).__name__}"):
        tempered(base, 0.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_temperatures_must_be_positive(temperature: float) -> None:
    with pytest.raises(DomainError, match="temperature must be positive and finite"):
        tempered(Gaussian(2), temperature)
