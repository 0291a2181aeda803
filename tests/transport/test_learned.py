"""Elementwise layers with parameters of their own: shapes, context, errors."""

import pytest
import torch

from cflow import State, tracked
from cflow.errors import DomainError, ShapeError
from cflow.nets import MLP
from cflow.transport import AffineMap, Elementwise, NeuralMap, RationalQuadraticMap


def test_each_entry_has_its_own_map() -> None:
    layer = Elementwise(AffineMap(), (2, 3))
    torch.nn.init.normal_(layer.theta)
    x = torch.randn(4, 2, 3)
    y = layer.push(tracked(x, event_dim=2), None)
    scale = 3 * torch.tanh(layer.theta[..., 0] / 3)
    assert torch.allclose(y.x, x * scale.exp() + layer.theta[..., 1])
    assert y.ladj is not None
    assert torch.allclose(y.ladj, scale.sum().expand(4))


def test_the_context_steers_on_top_of_the_learned_parameters() -> None:
    map = RationalQuadraticMap(bins=4)
    net = MLP(2, 3 * map.parameters, hidden_features=(8,))
    layer = Elementwise(map, (3,), conditioner=net)
    x, context = torch.randn(5, 3), torch.randn(5, 2)
    y = layer.push(State(x), context).x
    assert torch.allclose(layer.pull(State(y), context).x, x, rtol=0, atol=1e-10)
    assert bool((layer.push(State(x), context + 1).x != y).any())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda a, c: layer.push(State(a), c).x))(
        x, context
    )
    assert torch.equal(jacobian, jacobian * torch.eye(3)), "no entry sees another"


def test_it_starts_as_the_identity() -> None:
    layer, x = Elementwise(NeuralMap(), (3,)), torch.randn(5, 3)
    assert torch.allclose(layer.push(State(x)).x, x, rtol=0, atol=1e-13)


def test_wrong_input_is_refused_in_words() -> None:
    layer = Elementwise(AffineMap(), (2,))
    with pytest.raises(ShapeError, match=r"Elementwise.push: x must end in shape \(2,\)"):
        layer.push(State(torch.zeros(4, 3)))
    steered = Elementwise(AffineMap(), (2,), conditioner=MLP(1, 5))
    with pytest.raises(DomainError, match="the conditioner needs a context, got None"):
        steered.push(State(torch.zeros(4, 2)))
    with pytest.raises(ShapeError, match=r"must return 4 numbers for \(2,\) entries, got \(4, 5\)"):
        steered.push(State(torch.zeros(4, 2)), torch.zeros(4, 1))
