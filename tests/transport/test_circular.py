"""Maps of angles: they go round once, close on themselves, and stand beside maps of lengths."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow
from cflow.base import Gaussian, Joint, ManifoldUniform
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Torus
from cflow.nets import MLP, Embedded, MaskedMLP, PeriodicFeatures, adjacency_of_order
from cflow.transport import (
    AutoregressiveLayer,
    Chain,
    CircularShiftMap,
    CircularSplineMap,
    CouplingLayer,
    Elementwise,
    FeaturewiseMap,
    MoebiusMap,
    RationalQuadraticMap,
    UnivariateMap,
)

TURN = 2 * math.pi
MAPS = (CircularSplineMap(bins=5), CircularSplineMap(period=360.0), MoebiusMap(4), MoebiusMap(1))
every = pytest.mark.parametrize("map", MAPS, ids=str)


def theta(map: UnivariateMap, rows: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(map.parameters).expand(rows, -1)


@every
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_a_map_goes_round_once_and_comes_back(map: UnivariateMap, spread: float) -> None:
    x = map.period * torch.linspace(0, 1, 2001)[:-1]
    raw = theta(map, len(x), spread)
    y, slope = map.push(x, raw)
    assert bool(((y >= 0) & (y < map.period)).all())
    steps = torch.remainder(y.roll(-1) - y, map.period)
    assert bool((steps > 0).all())
    assert steps.sum() == pytest.approx(map.period, abs=1e-9)
    back, other = map.pull(y, raw)
    circle = Torus(map.period)
    assert circle.logmap(x, back).abs().max() < 1e-10 * map.period
    assert (other + slope).abs().max() < 1e-8


@every
def test_slopes_are_those_of_autograd_and_agree_at_the_seam(map: UnivariateMap) -> None:
    x = (map.period * torch.rand(50)).requires_grad_()
    raw = theta(map, 50)
    y, slope = map.push(x, raw)
    (expected,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.exp(), expected, rtol=1e-10)
    z = y.detach().requires_grad_()
    x, slope = map.pull(z, raw)
    (expected,) = torch.autograd.grad(x.sum(), z)
    assert torch.allclose(slope.exp(), expected, rtol=1e-9)
    ends = torch.tensor([0.0, map.period * (1 - 1e-12)])
    slopes = map.push(ends, theta(map, 2))[1]
    assert abs(float(slopes[0] - slopes[1])) < 1e-8


@every
def test_parameters_at_zero_are_the_identity_and_turns_of_the_input_change_nothing(
    map: UnivariateMap,
) -> None:
    x = map.period * torch.rand(20)
    y, slope = map.push(x, torch.zeros(20, map.parameters))
    assert torch.allclose(y, x)
    assert slope.abs().max() < 1e-12
    raw = theta(map, 20)
    assert torch.allclose(map.push(x, raw)[0], map.push(x - 3 * map.period, raw)[0], atol=1e-7)


@every
def test_float32_loses_little(map: UnivariateMap) -> None:
    x, raw = map.period * torch.rand(500), theta(map, 500, 3.0)
    y = map.push(x.float(), raw.float())[0]
    back = map.pull(y, raw.float())[0]
    assert back.dtype == torch.float32
    assert Torus(map.period).logmap(x, back.double()).abs().max() < 1e-4 * map.period


def test_a_shift_is_a_turn_in_radians_whatever_the_units() -> None:
    degrees = CircularShiftMap(360.0)
    x, raw = torch.tensor([350.0, 10.0]), torch.full((2, 1), math.pi / 9)
    y, slope = degrees.push(x, raw)
    assert torch.allclose(y, torch.tensor([10.0, 30.0]))
    assert torch.allclose(degrees.pull(y, raw)[0], x)
    assert torch.equal(slope, torch.zeros(2))
    layer = Elementwise(CircularShiftMap(), (2,), conditioner=torch.nn.Linear(1, 2))
    flow = Flow(ManifoldUniform(Torus(), 2), layer, context_shape=(1,))
    moved = flow.push(torch.ones(3, 2), torch.randn(3, 1))
    assert (moved - 1).abs().min() > 1e-3


def test_networks_see_angles_that_come_round_and_read_only_what_they_may() -> None:
    seen = PeriodicFeatures([True, False, True], frequencies=2)
    assert seen.outputs == 9
    x = torch.tensor([1.0, 5.0, 2.0])
    expected = [f(k * a) for a in (1.0, 2.0) for k in (1, 2) for f in (math.sin, math.cos)]
    expected = torch.tensor([*expected[:4], 5.0, *expected[4:]])
    assert torch.allclose(seen(x), expected)
    assert torch.allclose(seen(x + TURN * torch.tensor([1.0, 0.0, -2.0])), seen(x))
    links = adjacency_of_order([2, 0, 1])
    net = Embedded(seen, MaskedMLP(seen.spread(links), 2, hidden_features=(12, 12)))
    reads = torch.autograd.functional.jacobian(net, x).reshape(3, 2, 3).abs().sum(1) > 0
    assert torch.equal(reads, links)


@pytest.mark.parametrize("map", [CircularSplineMap(bins=4), MoebiusMap(3)], ids=str)
def test_densities_on_a_torus_are_continuous_at_the_seam_and_integrate_to_one(
    map: UnivariateMap,
) -> None:
    seen = PeriodicFeatures(1, frequencies=2)
    nets = [MLP(seen.outputs, map.parameters, hidden_features=(16,)) for _ in range(2)]
    parts = [
        CouplingLayer(flags, Embedded(seen, net), map)
        for flags, net in zip(([True, False], [False, True]), nets, strict=True)
    ]
    links = adjacency_of_order([1, 0])
    both = PeriodicFeatures(2)
    masked = Embedded(both, MaskedMLP(both.spread(links), map.parameters))
    flow = Flow(
        ManifoldUniform(Torus(), 2),
        Chain(*parts, AutoregressiveLayer(masked, map, adjacency=links)),
    )
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    other = TURN * torch.rand(64)
    for place in range(2):
        low, high = (
            torch.stack([torch.full((64,), end), other], -1) for end in (1e-9, TURN - 1e-9)
        )
        low, high = (low, high) if place == 0 else (low.flip(-1), high.flip(-1))
        with torch.no_grad():
            assert (flow.log_prob(low) - flow.log_prob(high)).abs().max() < 1e-6
    n = 180
    line = TURN * (torch.arange(n) + 0.5) / n
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_prob = flow.log_prob(grid)
    assert log_prob.std() > 0.3, "a flat density would hide everything"
    assert float(log_prob.exp().sum()) * (TURN / n) ** 2 == pytest.approx(1, abs=1e-4)


def test_an_angle_and_a_length_share_a_flow() -> None:
    """Torus x line: the density of both integrates to one, and is continuous round the circle."""
    circle, line = CircularSplineMap(bins=4), RationalQuadraticMap(bins=6, bound=4.0)
    map, flags = FeaturewiseMap((circle, line)), [True, False]
    seen = PeriodicFeatures(flags)
    parts = []
    for order in ([0, 1], [1, 0]):
        links = adjacency_of_order(order)
        net = Embedded(seen, MaskedMLP(seen.spread(links), map.parameters))
        parts.append(AutoregressiveLayer(net, map, adjacency=links))
    angle = PeriodicFeatures(1)
    to_line = MLP(angle.outputs, line.parameters)
    parts.append(CouplingLayer([False, True], Embedded(angle, to_line), line))
    parts.append(CouplingLayer([True, False], MLP(1, circle.parameters), circle))
    flow = Flow(Joint(ManifoldUniform(Torus(), 1), Gaussian(1)), Chain(*parts))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob((100,))
        assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-8)
        assert float(x[:, 0].min()) >= 0
        assert float(x[:, 0].max()) < TURN
        lengths = torch.linspace(-6, 6, 7)
        low, high = (
            torch.stack([torch.full((7,), end), lengths], -1) for end in (1e-9, TURN - 1e-9)
        )
        assert torch.allclose(flow.log_prob(low), flow.log_prob(high), atol=1e-6)
        n, m, reach = 180, 400, 7.0
        angles = TURN * (torch.arange(n) + 0.5) / n
        lengths = -reach + 2 * reach * (torch.arange(m) + 0.5) / m
        density = flow.log_prob(torch.cartesian_prod(angles, lengths)).exp()
    assert float(density.sum()) * TURN / n * 2 * reach / m == pytest.approx(1, abs=1e-4)


def test_each_feature_has_the_map_that_it_would_have_alone() -> None:
    spline, line = CircularSplineMap(bins=3), RationalQuadraticMap(bins=3)
    mixed = FeaturewiseMap((spline, line, spline))
    assert mixed.parameters == 10
    x, raw = torch.rand(5, 3), torch.randn(5, 3, 10)
    for direction in ("push", "pull"):
        y, slopes = getattr(mixed, direction)(x, raw)
        for place, map in enumerate(mixed.maps):
            given = raw[:, place, : map.parameters]
            alone, slope = getattr(map, direction)(x[:, place], given)
            assert torch.allclose(y[:, place], alone)
            assert torch.allclose(slopes[:, place], slope)


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="period must be positive"):
        CircularShiftMap(0.0)
    with pytest.raises(DomainError, match="bins must be 2 or more"):
        CircularSplineMap(bins=1)
    with pytest.raises(DomainError, match="must hold a UnivariateMap for each feature"):
        FeaturewiseMap(())
    with pytest.raises(ShapeError, match="maps of 1 features"):
        FeaturewiseMap((CircularSplineMap(),)).push(torch.zeros(2), torch.zeros(2, 25))
    with pytest.raises(DomainError, match="frequencies must be positive"):
        PeriodicFeatures(2, frequencies=0)
    with pytest.raises(ShapeError, match="PeriodicFeatures: x must end in shape"):
        PeriodicFeatures(2)(torch.zeros(4, 3))
    with pytest.raises(DomainError, match="must have 2 columns"):
        PeriodicFeatures(2).spread(torch.ones(2, 3, dtype=torch.bool))
