"""Normalisation by moving statistics: exact both ways, moved by training pulls and nothing else."""

import pytest
import torch

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.transport import ActNorm, Chain, MovingBatchNorm, initialize


def data(n: int = 4000) -> torch.Tensor:
    return torch.tensor([5.0, -1.0]) + torch.tensor([3.0, 0.5]) * torch.randn(n, 2)


def test_a_training_pull_uses_the_old_statistics_and_then_moves_them() -> None:
    layer, y = MovingBatchNorm((2,), momentum=0.25, eps=1e-12), data()
    assert torch.allclose(layer.pull(State(y)).x, y, atol=1e-9)
    assert torch.allclose(layer.mean, 0.25 * y.mean(0))
    assert torch.allclose(layer.var, 0.75 + 0.25 * y.var(0))
    old = layer.mean.clone(), layer.var.clone()
    x = layer.pull(State(y)).x
    assert torch.allclose(x, (y - old[0]) / old[1].sqrt())
    assert torch.allclose(layer.mean, 0.75 * old[0] + 0.25 * y.mean(0))


def test_only_training_pulls_move_the_statistics() -> None:
    layer, y = MovingBatchNorm((2,)), data()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.push(tracked(y))
    layer.eval()
    layer.pull(tracked(y))
    layer.push(tracked(y))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer.train()
    layer.pull(State(y[:1]))  # a single point has no variance
    layer.pull(State(y[:0]))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_statistics_are_constants_to_autograd() -> None:
    """d log p(y) / dy sees the map alone, though the same pull moves its statistics."""
    flow, y = Flow(Gaussian(2), Chain(MovingBatchNorm((2,)))), data(50)
    flow.initialize(y)
    layer = flow.transport[0]
    mean, var = layer.mean.clone(), layer.var.clone()
    y.requires_grad_()
    value = flow.log_prob(y)
    (grad,) = torch.autograd.grad(value.sum(), y)
    assert torch.allclose(grad, -(y - mean) / (var + layer.eps))
    assert layer.training
    expected = torch.distributions.Normal(mean, (var + layer.eps).sqrt()).log_prob(y).sum(-1)
    assert torch.allclose(value, expected)


def test_it_follows_the_data_to_unit_spread_and_is_saved() -> None:
    layer = MovingBatchNorm((2,), momentum=0.2)
    for _ in range(60):
        layer.pull(State(data(500)))
    other = MovingBatchNorm((2,))
    other.load_state_dict(layer.state_dict())
    x = other.eval().pull(State(data())).x
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=0.1)
    assert torch.allclose(x.std(0), torch.ones(2), atol=0.1)


def test_initialisation_sets_it_once() -> None:
    layer, y = MovingBatchNorm((2,)), data()
    flow = Flow(Gaussian(2), layer).eval()
    flow.initialize(y)
    x = flow.pull(y)
    assert torch.allclose(x.std(0), torch.ones(2), atol=1e-4)
    flow.initialize(100 * y)
    assert torch.equal(flow.pull(y), x)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"momentum": 0.0}, {"momentum": 1.5}, {"eps": 0.0}):
        with pytest.raises(DomainError, match="MovingBatchNorm"):
            MovingBatchNorm((2,), **wrong)


def test_initialising_another_layer_does_not_move_it() -> None:
    moving, y = MovingBatchNorm((2,)), data()
    moving.fit(y)
    before = moving.mean.clone()
    initialize(Chain(ActNorm((2,)), moving.train()), 100 * y)
    assert torch.equal(moving.mean, before)
