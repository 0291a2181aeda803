"""What every map of one number owes: its slope, order, tails, inverse, density and gradients."""

import math

import pytest
import torch

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.transport import (
    BernsteinMap,
    Elementwise,
    GaussianisationMap,
    Inverse,
    LogisticMixtureMap,
    NeuralMap,
    RationalQuadraticMap,
    UnconstrainedMonotonicMap,
    UnivariateMap,
)
from cflow.transport.gaussianisation import log_normal_quantile

BOXED = [
    RationalQuadraticMap(tails="none"),
    RationalQuadraticMap(tails="circular"),
    BernsteinMap(8, tails="none"),
]
WHOLE = [
    RationalQuadraticMap(),
    BernsteinMap(8),
    LogisticMixtureMap(4),
    NeuralMap(units=4, layers=2),
    UnconstrainedMonotonicMap(units=3),
    GaussianisationMap(4),
]
every = pytest.mark.parametrize("map", WHOLE + BOXED, ids=repr)
whole = pytest.mark.parametrize("map", WHOLE, ids=repr)


def draw(map: UnivariateMap, count: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = 4.9 * (2 * torch.rand(count) - 1) if map in BOXED else 3 * torch.randn(count)
    return x, spread * torch.randn(count, map.parameters)


@every
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_the_log_slope_is_the_derivative(map: UnivariateMap, spread: float) -> None:
    x, theta = draw(map, 2000, spread)
    x.requires_grad_()
    for move in (map.push, map.pull):
        y, slope = move(x, theta)
        (derivative,) = torch.autograd.grad(y.sum(), x)
        assert bool((derivative > 0).all())
        assert torch.allclose(slope, derivative.log(), rtol=0, atol=1e-8)
        wrong = slope - math.log(2 * 5 / 8)  # planted: off by a bin's width
        assert not torch.allclose(wrong, derivative.log(), rtol=0, atol=1e-8)


@every
def test_maps_are_increasing(map: UnivariateMap) -> None:
    x = torch.linspace(-5, 5, 4001) if map in BOXED else torch.linspace(-30, 30, 4001)
    theta = 2 * torch.randn(20, 1, map.parameters)
    y = map.push(x.expand(20, -1), theta.expand(-1, 4001, -1))[0]
    assert bool((y.diff(dim=-1) > 0).all())


@every
def test_pull_undoes_push(map: UnivariateMap) -> None:
    x, theta = draw(map, 2000)
    y, slope = map.push(x, theta)
    back, opposite = map.pull(y, theta)
    assert torch.allclose(back, x, rtol=0, atol=1e-11)
    assert torch.allclose(slope + opposite, torch.zeros_like(x), rtol=0, atol=1e-10)


@every
def test_zeros_are_the_identity(map: UnivariateMap) -> None:
    x, theta = draw(map, 500, 0.0)
    for move in (map.push, map.pull):
        y, slope = move(x, theta)
        assert torch.allclose(y, x, rtol=0, atol=1e-12)
        assert torch.allclose(slope, torch.zeros_like(x), rtol=0, atol=1e-12)


@every
def test_equal_units_part_in_the_first_step(map: UnivariateMap) -> None:
    x, theta = draw(map, 500, 0.0)
    theta.requires_grad_()
    y, slope = map.push(x + 0.5, theta)
    (grad,) = torch.autograd.grad((0.5 * (y - 1).square() - slope).sum(), theta)
    total = grad.sum(0)
    assert bool((total != 0).any())
    if isinstance(map, LogisticMixtureMap | NeuralMap | GaussianisationMap):
        assert total[map.units : 2 * map.units].std() > 1e-3, "slopes turn about their own centres"
    if isinstance(map, UnconstrainedMonotonicMap):
        assert total[map.units : 2 * map.units].std() > 1e-3, "amplitudes belong to own centres"


@every
@pytest.mark.parametrize("spread", [1, 5, 20])
def test_float32_stays_finite(map: UnivariateMap, spread: int) -> None:
    x, theta = draw(map, 4000, spread)
    x, theta = x.float(), theta.float()
    y, slope = map.push(x, theta)
    back, opposite = map.pull(y, theta)
    assert bool(torch.isfinite(y + slope + back + opposite).all())
    if spread == 1:
        assert (back - x).abs().max() < 1e-3


@whole
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_inputs_are_finite_with_finite_gradients(
    map: UnivariateMap, dtype: torch.dtype
) -> None:
    x = torch.tensor([1e4, -1e4]).repeat(50).to(dtype).requires_grad_()
    theta = torch.randn(100, map.parameters).to(dtype).requires_grad_()
    for move in (map.push, map.pull):
        y, slope = move(x, theta)
        grads = torch.autograd.grad(y.sum() + slope.sum(), (x, theta))
        for value in (y, slope, *grads):
            assert bool(torch.isfinite(value).all())
        assert bool((y.sign() == x.sign()).all())
        assert bool((grads[0] > 0).all()), "no silent zero gradient"


@whole
@pytest.mark.parametrize("inverted", [True, False])
def test_densities_integrate_to_one(map: UnivariateMap, inverted: bool) -> None:
    layer = Elementwise(map, (1,))
    torch.nn.init.normal_(layer.theta)
    flow = Flow(Gaussian(1), Inverse(layer) if inverted else layer)
    low, high = flow.push(torch.tensor([[-9.0], [9.0]])).detach()[:, 0].tolist()
    grid = torch.linspace(low, high, 20_001 if inverted else 4001)
    with torch.no_grad():
        density = flow.log_prob(grid[:, None]).exp()
    assert abs(float(torch.trapezoid(density, grid)) - 1) < 1e-3
    wrong = density * 1.25  # planted: a log-slope that is off by a bin's width
    assert abs(float(torch.trapezoid(wrong, grid)) - 1) > 0.1


@pytest.mark.parametrize("map", BOXED, ids=repr)
def test_densities_in_a_box_integrate_to_one(map: UnivariateMap) -> None:
    grid = (torch.arange(20_000) + 0.5) / 2000 - 5
    slope = map.pull(grid, torch.randn(1, map.parameters).expand(20_000, -1))[1]
    assert abs(float(slope.exp().mean()) - 1) < 1e-5  # uniform in the box, pushed


@every
def test_gradients_of_pull_against_finite_differences(map: UnivariateMap) -> None:
    y, theta = draw(map, 2)
    y, theta = y.requires_grad_(), theta.requires_grad_()
    assert torch.autograd.gradcheck(map.pull, (y, theta), eps=1e-6, atol=1e-6, rtol=1e-5)


@every
def test_maps_pass_vmap_and_jacrev_of_log_prob(map: UnivariateMap) -> None:
    layer = Elementwise(map, (2,))
    torch.nn.init.normal_(layer.theta)
    flow, x = Flow(Gaussian(2), layer), 2 * torch.rand(4, 2)
    batch = flow.log_prob(x)
    assert torch.allclose(torch.func.vmap(flow.log_prob)(x), batch, rtol=0, atol=1e-10)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    score = torch.func.vmap(torch.func.jacrev(flow.log_prob))(x.detach())
    assert torch.allclose(score, expected, rtol=0, atol=1e-9)


def test_a_normal_quantile_of_logarithms() -> None:
    t = -torch.logspace(-2, 4, 200)
    log_p = torch.special.log_ndtr(t).requires_grad_()
    assert torch.allclose(log_normal_quantile(log_p), t, rtol=1e-10, atol=1e-10)
    near = torch.linspace(-300, -0.8, 50).requires_grad_()
    assert torch.autograd.gradcheck(log_normal_quantile, near)
    assert torch.autograd.gradgradcheck(log_normal_quantile, near)


@pytest.mark.parametrize("spread", [1, 20, 1000])
def test_the_quadrature_of_an_integral_meets_its_bound(spread: int) -> None:
    map = UnconstrainedMonotonicMap()
    theta = spread * torch.randn(20_000, map.parameters)
    x = 10 * torch.rand(20_000) - 5
    log_g = map._network(x[:, None], theta)[0][:, 0]
    assert (map.push(x, theta)[1] - log_g).abs().max() < 1e-4


@pytest.mark.unchecked
def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"degree must lie in 2\.\.64, got 1"):
        BernsteinMap(1)
    with pytest.raises(DomainError, match="tails must be 'linear' or 'none'"):
        BernsteinMap(tails="bent")  # type: ignore[arg-type]
    for kind in (LogisticMixtureMap, GaussianisationMap):
        with pytest.raises(DomainError, match="units must be 1 or more, got 0"):
            kind(0)
        with pytest.raises(DomainError, match=r"anchor must lie in \(0, 1\), got 1.5"):
            kind(anchor=1.5)
    with pytest.raises(DomainError, match="units and layers must be 1 or more"):
        NeuralMap(layers=0)
    with pytest.raises(DomainError, match="nodes 2 or more"):
        UnconstrainedMonotonicMap(nodes=1)
