"""Normal laws against torch.distributions, labels, and errors in words."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from cflow import Flow
from cflow.base import ClassConditional, DiagonalGaussian, FullGaussian
from cflow.errors import DomainError, ShapeError
from cflow.nets import MLP
from cflow.transport import Chain


@pytest.mark.parametrize("event", [(), (3,), (2, 4)], ids=str)
def test_the_diagonal_law_is_torchs(event: tuple[int, ...]) -> None:
    base = DiagonalGaussian(event)
    nn.init.normal_(base.mean)
    nn.init.normal_(base.log_scale)
    x = torch.randn(5, *event)
    entries = Normal(base.mean, base.log_scale.exp()).log_prob(x)
    assert torch.allclose(base.log_prob(x), entries.flatten(1).sum(1) if event else entries)
    assert base.sample((2, 0)).shape == (2, 0, *event)


@pytest.mark.parametrize("event", [(), (3,), (2, 4)], ids=str)
def test_the_conditional_law_moves_with_its_context(event: tuple[int, ...]) -> None:
    entries = torch.Size(event).numel()
    net = MLP(2, 2 * entries)
    base, context = DiagonalGaussian(event, net), torch.randn(5, 2)
    shift, log_scale = net(context).unflatten(-1, (2, entries)).unbind(-2)
    x = torch.randn(5, *event)
    expected = Normal(shift, log_scale.exp()).log_prob(x.reshape(5, entries)).sum(1)
    assert torch.allclose(base.log_prob(x, context), expected)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    e = DiagonalGaussian(event).sample((5,), generator=generators[0]).reshape(5, entries)
    draws = base.sample((5,), context, generator=generators[1]).reshape(5, entries)
    assert torch.allclose(draws, shift + log_scale.exp() * e)


def test_a_conditioner_may_be_in_low_precision() -> None:
    base = DiagonalGaussian(3, MLP(2, 6).to(torch.bfloat16))
    context = torch.randn(4, 2)
    assert base.log_prob(torch.randn(4, 3), context).dtype == torch.float64
    assert base.sample((4,), context).dtype == torch.float64


def test_conditions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DomainError, match="its conditioner needs a context, got none"):
        DiagonalGaussian(3, MLP(2, 6)).sample((4,))
    with pytest.raises(ShapeError, match=r"conditioner returns must end in shape \(6,\)"):
        DiagonalGaussian(3, MLP(2, 3)).log_prob(torch.zeros(4, 3), torch.zeros(4, 2))


@pytest.mark.parametrize("features", [1, 2, 5])
def test_the_full_law_is_torchs(features: int) -> None:
    base = FullGaussian(features)
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 4, features)
    factor = base.cholesky()
    assert torch.equal(factor, factor.tril())
    expected = MultivariateNormal(base.mean, scale_tril=factor)
    assert torch.allclose(base.log_prob(x), expected.log_prob(x))
    draws = base.sample((200_000,)).detach()
    covariance = factor @ factor.mT
    error = (covariance.diag().outer(covariance.diag()) + covariance.square()).div(200_000).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 6 * error).all()  # false alarm 2e-9 an entry
    assert ((draws.mean(0) - base.mean).abs() < 6 * (covariance.diag() / 200_000).sqrt()).all()


def test_each_label_has_its_law() -> None:
    base = ClassConditional(3, (2, 2))
    nn.init.normal_(base.log_scale, std=0.3)
    x, label = torch.randn(4, 6, 2, 2), torch.randint(3, (4, 6))
    entries = Normal(base.mean[label], base.log_scale[label].exp()).log_prob(x)
    assert torch.allclose(base.log_prob(x, label), entries.sum((-1, -2)))
    flow = Flow(ClassConditional(3, 2, spread=5.0), Chain(), context_shape=())
    draws = flow.sample((20_000,), torch.tensor([0, 2]))
    assert draws.shape == (20_000, 2, 2)
    mean = flow.base.get_parameter("mean").detach()[[0, 2]]
    assert ((draws.mean(0) - mean).abs() < 6 / 20_000**0.5).all()


@pytest.mark.parametrize(
    "label", [None, torch.zeros(4, dtype=torch.float32)], ids=["none", "floating"]
)
def test_labels_must_be_integers(label: Tensor | None) -> None:
    with pytest.raises(DomainError, match=r"must be integer labels, got (none|torch\.float32)"):
        ClassConditional(3, 2).log_prob(torch.zeros(4, 2), label)


def test_labels_may_be_bytes() -> None:
    base, label = ClassConditional(3, 2), torch.tensor([2, 0], dtype=torch.uint8)
    x = torch.randn(2, 2)
    assert torch.equal(base.log_prob(x, label), base.log_prob(x, label.long()))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(IndexError):
        ClassConditional(3, 2).log_prob(torch.zeros(1, 2), torch.tensor([label]))


def test_sizes_must_be_positive() -> None:
    with pytest.raises(DomainError, match="FullGaussian: features must be positive"):
        FullGaussian(0)
    with pytest.raises(DomainError, match="ClassConditional: classes must be positive"):
        ClassConditional(0, 2)
    with pytest.raises(DomainError, match="ClassConditional: spread must be positive"):
        ClassConditional(2, 2, spread=-1.0)
