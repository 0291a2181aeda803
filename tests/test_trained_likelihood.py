"""Likelihoods along trained fields: any event shape, with standard errors, in chains, as bits."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import ShapeError
from cflow.field import (
    ClassifierFree,
    CosineSchedule,
    Exact,
    FunctionField,
    GaussianMixture,
    Hutchinson,
    LinearSchedule,
    MixtureField,
    MLPField,
    Prediction,
    PredictionField,
    PredictNoise,
    PredictVelocity,
    PredictX1,
    RetimedField,
    convert,
)
from cflow.manifold import Euclidean
from cflow.matching import IndependentCoupling, LinearPath, matching
from cflow.metrics import bits_per_dim
from cflow.nets import MLP
from cflow.ode import RK4
from cflow.samples import guided
from cflow.transport import ODE, AffineMap, Chain, CouplingLayer, Dequantize, Inverse, Logit

SHAPES = [(), (4,), (1, 4, 4), (4, 4), (5, 5, 5)]


def trained(size: int, steps: int = 60) -> MLPField:
    """A field that has learnt something of a lopsided law, and is not symmetric."""
    field = MLPField(size, hidden_features=(24,))
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(steps):
        x1 = torch.randn(64, size).exp() - 1
        optimizer.zero_grad()
        matching(field, LinearPath(), IndependentCoupling(), x1).mean().backward()
        optimizer.step()
    return field.eval()


def shaped(shape: tuple[int, ...], divergence: Exact | Hutchinson | None = None) -> Flow:
    """A flow of points of a shape along a trained field that sees them flattened."""
    net = trained(max(1, math.prod(shape)))
    field = FunctionField(
        lambda t, x, context: net(t, x.reshape(*t.shape, -1)).reshape(x.shape),
    )
    field.net = net
    manifold = Euclidean(len(shape))
    return Flow(Gaussian(shape), ODE(field, RK4(4), manifold=manifold, divergence=divergence))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_event_shape_has_the_likelihood_of_its_jacobian(shape: tuple[int, ...]) -> None:
    flow = shaped(shape)
    x = torch.randn(3, *shape) * 0.5
    with torch.no_grad():
        values, errors = flow.log_prob_with_error(x)
        assert values.shape == (3,)
        assert torch.equal(errors, torch.zeros(3))
        x0 = flow.pull(x)
    size = max(1, math.prod(shape))
    jacobian = torch.func.jacrev(lambda z: flow.pull(z))(x[0]).reshape(size, size)
    expected = flow.base.log_prob(x0[0]) + torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(values[0], expected, rtol=0, atol=2e-2 + 1e-3 * size)  # four steps
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x[0]), values[0])  # no batch axis
        assert torch.allclose(flow.log_prob(x.reshape(3, 1, *shape))[:, 0], values)  # two
        samples, densities = flow.sample_and_log_prob((2, 1))
        assert samples.shape == (2, 1, *shape)
        assert torch.allclose(densities, flow.log_prob(samples), rtol=0, atol=2e-2 + 1e-2 * size)


def test_the_jacobian_and_the_divergence_agree_as_steps_grow() -> None:
    net, gaps = trained(4), []
    x = torch.randn(4)
    for steps in (4, 16):
        flow = Flow(Gaussian(4), ODE(net, RK4(steps)))
        jacobian = torch.func.jacrev(lambda z, flow=flow: flow.pull(z))(x)
        with torch.no_grad():
            exact = flow.base.log_prob(flow.pull(x)) + torch.linalg.slogdet(jacobian)[1]
            gaps.append((flow.log_prob(x) - exact).abs().item())
    assert gaps[1] < 1e-4
    assert gaps[1] < gaps[0] / 10


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_standard_errors_cover_the_exact_value(noise) -> None:
    """z = (estimate - exact) / standard error follows Student's t law with 15 degrees of freedom.

    Its variance is 15/13. The mean of 400 of them is beyond 6 sqrt(15/13/400) = 0.32, and the share
    beyond 2.131, 0.05 on average, over 0.05 + 6 * 0.011 by chance below 1e-7 (the estimates are
    means of 16 draws, not quite normal).
    """
    net = trained(6)
    flow = Flow(Gaussian(6), ODE(net, RK4(3), divergence=Hutchinson(noise=noise)))
    assert flow.likelihood == "estimate"
    x = torch.randn(400, 6) * 0.5
    with torch.no_grad():
        exact = flow.with_solver(divergence=Exact()).log_prob(x)
        value, error = flow.log_prob_with_error(x, repeats=16)
    z = (value - exact) / error
    assert bool((error > 0).all())
    assert abs(z.mean().item()) < 0.32
    assert 0.7 < z.var().item() < 1.8
    assert (z.abs() > 2.131).double().mean() < 0.05 + 6 * 0.011


def test_estimates_of_images_come_with_errors() -> None:
    flow = shaped((1, 4, 4), Hutchinson(probes=2))
    x = torch.randn(5, 1, 4, 4) * 0.5
    with torch.no_grad():
        value, error = flow.log_prob_with_error(x, repeats=32)
        exact = flow.with_solver(divergence=Exact()).log_prob(x)
    assert bool(((value - exact).abs() < 7 * error).all())
    draw = lambda: flow.log_prob(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(), draw())


def test_layers_and_a_trained_field_form_one_chain() -> None:
    conditioner = MLP(2, 4, hidden_features=(8,))
    for parameter in conditioner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    layer = CouplingLayer(torch.tensor([True, True, False, False]), conditioner, AffineMap())
    flow = Flow(Gaussian(4), Chain(layer, ODE(trained(4), RK4(30))))
    x = torch.randn(4)
    jacobian = torch.func.jacrev(flow.pull)(x)
    with torch.no_grad():
        expected = flow.base.log_prob(flow.pull(x)) + torch.linalg.slogdet(jacobian)[1]
        assert torch.allclose(flow.log_prob(x), expected, rtol=0, atol=1e-4)


def test_dequantised_images_have_bits_per_dimension() -> None:
    """Where the law of the grey levels is known the bits are at least its entropy, and near it."""
    levels, shape = 4, (1, 2, 2)
    standing = FunctionField(lambda t, x, context: torch.zeros_like(x))
    ode = ODE(standing, RK4(2), manifold=Euclidean(3), divergence=Hutchinson())
    flow = Flow(Gaussian(shape), Chain(ode, Inverse(Logit()), Dequantize(levels)))
    assert flow.likelihood == "bound"
    with torch.no_grad():
        x = flow.sample(4000)
        bits = bits_per_dim(flow.log_prob(x), flow.event_shape)
    edges = torch.linspace(0, 1, levels + 1)[1:-1].logit()
    below = torch.distributions.Normal(0.0, 1.0).cdf(edges)
    shares = torch.diff(torch.cat([torch.zeros(1), below, torch.ones(1)]))
    entropy = -(shares * shares.log2()).sum().item()
    scatter = 6 * bits.std().item() / 4000**0.5  # exceeded by chance below 1e-8
    assert entropy - scatter < bits.mean().item() < entropy + 0.3
    assert bool((x == x.round()).all() & (x >= 0).all() & (x < levels).all())


def test_predictions_and_schedules_do_not_change_the_likelihood() -> None:
    g = torch.Generator().manual_seed(0)
    target = GaussianMixture(torch.randn(3, 2, generator=g), 0.5)
    start = GaussianMixture(torch.zeros(1, 2))
    schedule = LinearSchedule()
    velocity = MixtureField(start, target, schedule)

    def net(prediction: Prediction):
        def value(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
            v = velocity(t, x)
            return convert(v, t, x, schedule, source=PredictVelocity(), target=prediction)

        return value

    x = target.sample(3)
    expected = target.log_prob(x)
    for field, tolerance in (
        (velocity, 1e-4),
        (PredictionField(net(PredictX1()), schedule, PredictX1()), 5e-3),
        (PredictionField(net(PredictNoise()), schedule, PredictNoise()), 5e-3),
        (RetimedField(velocity, schedule, CosineSchedule()), 1e-4),
    ):
        with torch.no_grad():
            found = Flow(Gaussian(2), ODE(field, RK4(20))).log_prob(x)
        assert torch.allclose(found, expected, rtol=0, atol=tolerance)


def test_a_retimed_trained_field_has_the_likelihood_of_the_trained_one() -> None:
    """On a schedule that ends without noise and starts from it alone, path and law are the same."""
    net, x = trained(2), torch.randn(5, 2) * 0.5
    retimed = RetimedField(net, LinearSchedule(), CosineSchedule())
    with torch.no_grad():
        old = Flow(Gaussian(2), ODE(net, RK4(30))).log_prob(x)
        new = Flow(Gaussian(2), ODE(retimed, RK4(60))).log_prob(x)
    assert torch.allclose(old, new, rtol=0, atol=1e-4)


def test_guided_flows_have_the_likelihood_of_what_they_sample() -> None:
    net = MLPField(2, 1, hidden_features=(16,))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    flow = Flow(Gaussian(2), ODE(net, RK4(30)), context_shape=(1,))
    strong = guided(flow, lambda field: ClassifierFree(field, 2.0, null=0.0))
    context, x = torch.ones(1), torch.randn(2)
    jacobian = torch.func.jacrev(lambda z: strong.pull(z, context))(x)
    with torch.no_grad():
        expected = strong.base.log_prob(strong.pull(x, context)) + torch.linalg.slogdet(jacobian)[1]
        assert torch.allclose(strong.log_prob(x, context), expected, rtol=0, atol=1e-4)
        assert (strong.log_prob(x, context) - flow.log_prob(x, context)).abs() > 1e-3
        same = guided(flow, lambda field: ClassifierFree(field, 1.0, null=0.0))
        assert torch.equal(same.log_prob(x, context), flow.log_prob(x, context))


@pytest.mark.parametrize("shape", [(), (1, 4, 4), (4, 4)], ids=str)
def test_a_manifold_of_other_axes_is_refused_when_the_flow_is_built(shape) -> None:
    """Otherwise rows of an image would be samples of their own, and nobody would notice."""
    field = FunctionField(lambda t, x, context: -x)
    with pytest.raises(ShapeError, match=rf"pass manifold=Euclidean\({len(shape)}\)"):
        Flow(Gaussian(shape), ODE(field))
    flow = Flow(Gaussian(shape), ODE(field, RK4(8), manifold=Euclidean(len(shape))))
    x = torch.zeros(2, *shape)
    size = max(1, math.prod(shape))
    expected = torch.full((2,), size * (1 - 0.5 * math.log(2 * math.pi)))
    assert torch.allclose(flow.log_prob(x), expected, rtol=0, atol=1e-3 * size)
