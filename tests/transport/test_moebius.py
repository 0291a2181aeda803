"""Moebius maps against complex numbers, conformality, and the Cauchy law of the sphere."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from cflow import Flow
from cflow.base import ManifoldUniform
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Sphere
from cflow.nets import MLP
from cflow.state import tracked
from cflow.transport import MoebiusMap, MoebiusSphere


def centred(features: int, *, conditioner: torch.nn.Module | None = None) -> MoebiusSphere:
    layer = MoebiusSphere(features, conditioner=conditioner)
    torch.nn.init.normal_(layer.centre)
    return layer


def test_a_single_unit_is_the_complex_moebius_transformation() -> None:
    map = MoebiusMap(1)
    raw = torch.tensor([0.7, 0.8, 2.0, 0.4])
    x = 2 * math.pi * torch.rand(30)
    y = map.push(x, raw.expand(30, -1))[0]
    w = torch.polar(0.99 * torch.tanh(raw[1]), raw[2])
    move = lambda z: (z - w) / (1 - w.conj() * z)
    z = move(torch.polar(torch.ones(30), x)) / move(torch.ones(1))
    turned = z * torch.polar(torch.ones(()), raw[3])
    assert torch.allclose(torch.polar(torch.ones(30), y), turned)


def test_the_slopes_of_a_mixture_stay_within_their_bounds() -> None:
    map = MoebiusMap(6, radius=0.9)
    raw = 20 * torch.randn(map.parameters)
    slopes = map.push(2 * math.pi * torch.rand(4000), raw.expand(4000, -1))[1]
    assert slopes.abs().max() <= math.log(1.9 / 0.1) + 1e-9


def test_units_are_told_apart_from_the_start() -> None:
    raw = torch.zeros(10, requires_grad=True)
    y = MoebiusMap(3).push(torch.tensor(1.0), raw)[0]
    (grad,) = torch.autograd.grad(y, raw)
    assert len(torch.unique(grad[3:6].round(decimals=6))) == 3


def test_on_a_circle_of_vectors_it_is_the_same_map() -> None:
    layer, map = centred(2), MoebiusMap(1)
    w = layer._centre("test", torch.zeros(2), None)
    radius, angle = w.norm(), torch.atan2(w[1], w[0])
    raw = torch.stack([torch.zeros(()), torch.atanh(radius / 0.99), angle, torch.zeros(())])
    x = 2 * math.pi * torch.rand(20)
    vectors = torch.stack([x.cos(), x.sin()], -1)
    state = layer.push(tracked(vectors))
    assert torch.allclose(state.ladj, map.push(x, raw.expand(20, -1))[1])


@pytest.mark.parametrize("features", [2, 3, 6])
def test_it_keeps_angles_and_its_inverse_has_the_opposite_centre(features: int) -> None:
    layer = centred(features)
    x = Sphere().projx(torch.randn(8, features))
    state = layer.push(tracked(x))
    assert torch.allclose(state.x.norm(dim=-1), torch.ones(8))
    jacobian = vmap(jacrev(lambda x: layer.push(tracked(x)).x))(x)
    frame = Sphere().frame(x)[0]
    images = jacobian @ frame.mT
    factor = (state.ladj / (features - 1)).exp()
    expected = factor[:, None, None].square() * torch.eye(features - 1)
    assert torch.allclose(images.mT @ images, expected)
    opposite = MoebiusSphere(features)
    opposite.centre.data.copy_(-layer.centre.data)
    assert torch.allclose(layer.pull(tracked(x)).x, opposite.push(tracked(x)).x)


def test_uniform_points_follow_the_spherical_cauchy_law() -> None:
    """Density, and two moments of 20,000 draws; chance alone fails 1 in 8,000 seeds."""
    layer = centred(3)
    flow = Flow(ManifoldUniform(Sphere(), 3), layer)
    w = layer._centre("test", torch.zeros(3), None).detach()
    y = Sphere().projx(torch.randn(10, 3))
    inside = 1 - (w * w).sum()
    expected = -math.log(4 * math.pi) + 2 * (inside / (y + w).square().sum(-1)).log()
    assert torch.allclose(flow.log_prob(y), expected)
    h = flow.sample((20_000,), generator=torch.Generator().manual_seed(0)) @ (-w / w.norm())
    nodes = torch.linspace(-1, 1, 200_001)
    density = inside**2 / (1 + w.norm() ** 2 - 2 * w.norm() * nodes).square() / 2
    for power in (1, 2):
        mean = torch.trapezoid(density * nodes**power, nodes)
        spread = (torch.trapezoid(density * nodes ** (2 * power), nodes) - mean**2).sqrt()
        assert abs(float((h**power).mean() - mean)) < 4 * float(spread) / 20_000**0.5


def test_the_context_moves_the_centre() -> None:
    layer = centred(3, conditioner=MLP(2, 3, hidden_features=(8,)))
    x = Sphere().projx(torch.randn(5, 3))
    context = torch.randn(5, 2)
    there = layer.push(tracked(x), context)
    assert torch.allclose(layer.pull(there, context).x, x)
    assert (layer.push(tracked(x), context + 1).x - there.x).norm(dim=-1).min() > 1e-3


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="must lie on Sphere"):
        MoebiusSphere(3).push(tracked(torch.ones(2, 3)))
    with pytest.raises(ShapeError, match="must end in shape"):
        MoebiusSphere(3).push(tracked(torch.ones(2, 4)))
    with pytest.raises(DomainError, match="2 features at least"):
        MoebiusSphere(1)
    with pytest.raises(DomainError, match="radius must lie in"):
        MoebiusSphere(3, radius=1.0)
    with pytest.raises(DomainError, match="radius must lie in"):
        MoebiusMap(radius=0.0)
    with pytest.raises(DomainError, match="units and period must be positive"):
        MoebiusMap(0)
    north = torch.tensor([[0.0, 0.0, 1.0]])
    with pytest.raises(DomainError, match="needs a context"):
        MoebiusSphere(3, conditioner=MLP(2, 3)).push(tracked(north))
    with pytest.raises(ShapeError, match="must return 3 numbers"):
        MoebiusSphere(3, conditioner=MLP(2, 4)).push(tracked(north), torch.zeros(1, 2))
