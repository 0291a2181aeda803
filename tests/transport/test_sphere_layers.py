"""Exponential maps against their potential, cylindrical layers at the poles, chains with ODEs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from cflow import Flow, nll
from cflow.base import ManifoldUniform
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.field import FunctionField
from cflow.manifold import Sphere, Torus
from cflow.nets import MLP, Embedded, PeriodicFeatures
from cflow.ode import RK4
from cflow.state import State, tracked
from cflow.transport import (
    ODE,
    Chain,
    CircularSplineMap,
    CouplingLayer,
    CylindricalLayer,
    ExponentialMapSphere,
    Inverse,
    MoebiusSphere,
    RationalQuadraticMap,
    Transport,
)

NORTH = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)


def exponential(
    features: int, units: int = 5, *, weight: float = 0.0, sharpness: float = 1.0
) -> ExponentialMapSphere:
    """Return a layer whose raw weights lie around one number, and raw sharpness up to another."""
    layer = ExponentialMapSphere(features, units=units)
    raw = layer.theta.data.view(units, features + 2)
    raw[:, 0] = weight + 0.5 * torch.randn(units)
    raw[:, 1] = sharpness * torch.rand(units)
    return layer


def cylindrical(bins: int = 4, context: int = 0) -> CylindricalLayer:
    longitude = CircularSplineMap(bins=bins)
    height = RationalQuadraticMap(bins=bins, bound=1.0, tails="none")
    net = MLP(1, longitude.parameters, context=context, hidden_features=(8,))
    layer = CylindricalLayer(net, height=height, longitude=longitude)
    nn.init.normal_(layer.theta, std=0.5)
    return layer


def shear(features: int = 3) -> FunctionField:
    """A field that turns and squeezes; on a torus it comes round."""

    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return 0.7 * (x.roll(1, -1) - t[..., None]).sin() + 0.3 * x.cos()

    return FunctionField(velocity)


def sphere_integral(flow: Flow, rings: int, around: int) -> float:
    """Integrate a density over S^2: Gauss's rule for the height, even steps of the longitude."""
    height, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(rings))
    angle = 2 * math.pi * torch.arange(around) / around
    h, a = torch.cartesian_prod(height, angle).unbind(-1)
    away = (1 - h * h).sqrt()
    with torch.no_grad():
        log_prob = flow.log_prob(torch.stack([away * a.cos(), away * a.sin(), h], -1))
    assert log_prob.std() > 0.2, "a flat density would hide everything"
    return float(log_prob.exp().reshape(rings, around).mean(1) @ weight) * 2 * math.pi


@pytest.mark.parametrize("features", [2, 3, 5])
def test_an_exponential_map_follows_the_gradient_of_its_potential(features: int) -> None:
    layer = exponential(features, weight=4.0, sharpness=5.0)
    x = Sphere().projx(torch.randn(6, features))
    potential = layer._enter("test", x, None)[1]
    assert 0.5 < float(potential.weight.sum().detach()) < 0.98

    def value(x: Tensor) -> Tensor:
        near = (potential.centre @ x) - 1
        return (potential.weight / potential.sharpness * (potential.sharpness * near).exp()).sum()

    v = Sphere().proju(x, vmap(grad(value))(x))
    assert v.norm(dim=-1).min() > 1e-3
    assert torch.allclose(layer.push(State(x)).x, Sphere().expmap(x, v))


def test_points_of_a_meridian_keep_their_order() -> None:
    """One centre with nearly all the weight that is allowed: the hardest case along a line."""
    layer = exponential(2, units=1, weight=20.0, sharpness=3.0)
    a = 2 * math.pi * torch.arange(4000) / 4000
    y = layer.push(State(torch.stack([a.cos(), a.sin()], -1))).x.detach()
    angle = torch.atan2(y[:, 1], y[:, 0])
    steps = torch.remainder(angle.roll(-1) - angle, 2 * math.pi)
    assert float(steps.min()) > 0.015 * 2 * math.pi / 4000
    assert float(steps.sum()) == pytest.approx(2 * math.pi, abs=1e-9)


@pytest.mark.parametrize("features", [2, 3, 4, 8])
@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1e4])
def test_exponential_maps_come_back_from_anywhere(features: int, sharpness: float) -> None:
    layer = exponential(features, weight=9.0, sharpness=sharpness)
    centres = layer.theta.data.view(5, features + 2)[:, 2:]
    close = centres.repeat(40, 1) + torch.randn(200, features) / sharpness**0.5
    x = Sphere().projx(torch.cat([torch.randn(300, features), close, centres, -centres]))
    there = layer.push(tracked(x))
    back = layer.pull(there)
    assert Sphere().dist(back.x, x).max() < 1e-12
    assert back.ladj.abs().max() < 1e-10
    y = Sphere().projx(torch.randn(50, features))
    assert Sphere().dist(layer.push(layer.pull(State(y))).x, y).max() < 1e-12


def test_float32_comes_back_too() -> None:
    layer = exponential(3, weight=9.0, sharpness=30.0).float()
    x = Sphere().projx(torch.randn(500, 3)).float()
    back = layer.pull(layer.push(tracked(x)))
    assert back.x.dtype == torch.float32
    assert Sphere().dist(back.x, x).max() < 2e-5
    assert back.ladj.abs().max() < 1e-4


def test_gradients_pass_through_a_pull_by_the_implicit_function_theorem() -> None:
    layer = exponential(3, weight=1.0, sharpness=2.0)
    start = layer.theta.detach()
    y = Sphere().projx(torch.randn(4, 3))

    def pulled(theta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.func.functional_call(
            layer, {"theta": theta}, (tracked(Sphere().projx(y)),), tie_weights=False
        )
        return state.x, state.ladj

    layer.forward = layer.pull  # type: ignore[method-assign]
    inputs = (start.clone().requires_grad_(), y.clone().requires_grad_())
    assert torch.autograd.gradcheck(pulled, inputs, eps=1e-6, atol=1e-6)


def test_a_search_that_does_not_arrive_says_so() -> None:
    layer = exponential(3)
    layer.theta.data[0] = float("nan")
    with pytest.raises(SolverError, match="inverse was not reached"):
        layer.pull(State(NORTH))


def test_cylinders_keep_the_poles_and_their_densities_are_continuous_there() -> None:
    flow = Flow(ManifoldUniform(Sphere(), 3), cylindrical())
    a = 2 * math.pi * torch.rand(200)
    for side in (1.0, -1.0):
        for distance, bound in ((1e-3, 1e-4), (1e-6, 1e-9)):
            ring = torch.stack([a.cos(), a.sin(), torch.zeros(200)], -1)
            x = Sphere().projx(distance * ring + side * NORTH)
            with torch.no_grad():
                assert (flow.log_prob(x) - flow.log_prob(side * NORTH)).abs().max() < bound
    assert torch.allclose(flow.push(NORTH), NORTH)
    pole = NORTH.clone().requires_grad_()
    flow.log_prob(pole).sum().backward()
    flow.push(pole).sum().backward()
    assert bool(pole.grad.isfinite().all())


def spread_out(*parts: Transport) -> Flow:
    return Flow(ManifoldUniform(Sphere(), 3), Chain(*parts))


def moebius() -> MoebiusSphere:
    layer = MoebiusSphere(3)
    nn.init.normal_(layer.centre, std=0.3)
    return layer


def on_sphere() -> ODE:
    return ODE(shear(), RK4(16), manifold=Sphere())


FLOWS: dict[str, tuple[Callable[[], Flow], int]] = {
    "Moebius": (lambda: spread_out(moebius()), 60),
    "exponential": (lambda: spread_out(exponential(3, weight=5.0, sharpness=4.0)), 60),
    "inverse exponential": (
        lambda: spread_out(Inverse(exponential(3, weight=5.0, sharpness=4.0))),
        60,
    ),
    "cylindrical": (lambda: spread_out(cylindrical(), moebius()), 400),
    "Moebius and an ODE": (lambda: spread_out(moebius(), on_sphere()), 60),
    "an ODE between layers": (
        lambda: spread_out(exponential(3, weight=5.0, sharpness=4.0), on_sphere(), cylindrical()),
        300,
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_densities_on_the_sphere_integrate_to_one(name: str) -> None:
    build, rings = FLOWS[name]
    assert sphere_integral(build(), rings, rings // 2) == pytest.approx(1, abs=1e-4)


def test_a_chain_with_an_ode_on_the_torus_integrates_to_one() -> None:
    spline, seen = CircularSplineMap(bins=4), PeriodicFeatures(1)
    layers = [
        CouplingLayer(flags, Embedded(seen, MLP(seen.outputs, spline.parameters)), spline)
        for flags in ([True, False], [False, True])
    ]
    ode = ODE(shear(2), RK4(16), manifold=Torus())
    flow = Flow(ManifoldUniform(Torus(), 2), Chain(layers[0], ode, layers[1]))
    n = 100
    line = 2 * math.pi * (torch.arange(n) + 0.5) / n
    with torch.no_grad():
        log_prob = flow.log_prob(torch.cartesian_prod(line, line))
    assert log_prob.std() > 0.2
    assert float(log_prob.exp().mean()) * (2 * math.pi) ** 2 == pytest.approx(1, abs=1e-4)
    x, log_prob = flow.sample_and_log_prob((50,))
    assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-5)


@pytest.mark.parametrize("name", ["layers", "layers and an ODE"])
def test_training_by_likelihood_lowers_the_loss(name: str) -> None:
    """A blob and its mirror image: a loss of log 4 pi = 2.53 at the start, below 1.7 soon."""
    parts: list[Transport] = [MoebiusSphere(3), CylindricalLayer(MLP(1, 25, zero_last=True))]
    if name == "layers and an ODE":
        net = MLP(3, 3, hidden_features=(16,), zero_last=True)
        field = FunctionField(lambda t, x, context: net(x))
        field.net = net
        parts.append(ODE(field, RK4(2), manifold=Sphere()))
    flow = spread_out(*parts)
    blob = torch.tensor([0.6, 0.0, 0.8]) * torch.tensor([1.0, -1.0]).repeat(100)[:, None]
    x = Sphere().projx(blob + 0.2 * torch.randn(200, 3))
    optimiser = torch.optim.Adam(flow.parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = nll(flow, x).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4 * math.pi), abs=0.02)
    assert losses[-1] < 1.7


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="must lie on Sphere"):
        ExponentialMapSphere(3).push(State(torch.ones(2, 3)))
    with pytest.raises(DomainError, match="must lie on Sphere"):
        cylindrical().pull(State(torch.ones(2, 3)))
    with pytest.raises(ShapeError, match="must end in shape"):
        ExponentialMapSphere(3).pull(State(torch.ones(2, 4)))
    with pytest.raises(ShapeError, match="must end in shape"):
        cylindrical().push(State(torch.ones(2, 4)))
    with pytest.raises(DomainError, match="units must be positive"):
        ExponentialMapSphere(3, units=0)
    with pytest.raises(DomainError, match="most lie in"):
        ExponentialMapSphere(3, most=1.0)
    with pytest.raises(DomainError, match="features must be 2"):
        ExponentialMapSphere(1)
    with pytest.raises(ShapeError, match="must return 25 numbers"):
        CylindricalLayer(MLP(1, 7)).push(State(NORTH))
    with pytest.raises(DomainError, match="needs a context"):
        ExponentialMapSphere(3, conditioner=MLP(2, 40)).push(State(NORTH))
