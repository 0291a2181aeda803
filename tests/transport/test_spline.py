"""Splines: slopes, knots, edges, circles, bounds by feature, and float32 from any parameters."""

import math

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.transport import RationalQuadraticMap
from cflow.transport.spline_bins import gathered, unrolled

KINDS = ("linear", "circular", "none")


def spline(tails: str = "linear", **options: object) -> RationalQuadraticMap:
    return RationalQuadraticMap(tails=tails, **options)  # type: ignore[arg-type]


def knots(theta: Tensor, map: RationalQuadraticMap) -> Tensor:
    """Return the inner knots of x by the formula of the docstring, not by the code under test."""
    share = theta[..., : map.bins].softmax(-1)
    sizes = (map.min_bin + (1 - map.min_bin) * map.bins * share) / map.bins
    return 10 * sizes.cumsum(-1)[..., :-1] - 5


def same(first: tuple, second: tuple) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        same(a, b) if isinstance(a, tuple) else torch.allclose(a.double(), b.double(), atol=1e-13)
        for a, b in pairs
    )


@pytest.mark.parametrize("tails", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bins", [2, 3, 8])
def test_both_ways_to_find_a_bin_agree(tails: str, axis: int, bins: int) -> None:
    theta = 3 * torch.randn(400, 2, spline(tails, bins=bins).parameters)
    u = 2 * torch.rand(400, 2) - 1
    options = {"bins": bins, "floor": 0.1, "ends": tails, "axis": axis}
    found, walked = gathered(u, theta, **options), unrolled(u, theta, **options)  # type: ignore[arg-type]
    stacked = [torch.stack(pair) for pair in zip(*walked.ends, strict=True)]
    assert same(found._replace(ends=()), walked._replace(ends=()))
    assert same(found.ends[0], stacked)


@pytest.mark.parametrize("tails", KINDS)
def test_a_spline_is_continuous_and_smooth_at_its_knots(tails: str) -> None:
    map = spline(tails)
    theta = 2 * torch.randn(50, 1, map.parameters)
    x = knots(theta[:, 0], map)
    theta = theta.expand(-1, x.shape[1], -1)
    left, right = map.push(x - 1e-11, theta), map.push(x + 1e-11, theta)
    assert torch.allclose(left[0], right[0], rtol=0, atol=1e-6)
    assert torch.allclose(left[1], right[1], rtol=0, atol=1e-5)
    middle = map.push(x - 0.05, theta)[1]
    assert bool(((middle - left[1]).abs() > 1e-3).any(0).all()), "the bound sees no kink"


@pytest.mark.parametrize("tails", KINDS)
def test_the_box_goes_onto_itself_and_what_is_outside_stays(tails: str) -> None:
    map = spline(tails)
    theta = 3 * torch.randn(200, map.parameters)
    for edge in (-5.0, 5.0):
        x = torch.full((200,), edge)
        assert torch.allclose(map.push(x, theta)[0], x, rtol=0, atol=1e-12)
        assert torch.allclose(map.pull(x, theta)[0], x, rtol=0, atol=1e-12)
    x = torch.cat([torch.linspace(5.001, 1e4, 100), -torch.linspace(5.001, 1e4, 100)])
    for move in (map.push, map.pull):
        y, slope = move(x, theta)
        assert torch.equal(y, x)
        assert torch.equal(slope, torch.zeros_like(x))


def test_slopes_are_one_at_the_ends_of_linear_tails_and_equal_on_a_circle() -> None:
    ends = torch.tensor([-5.0, 5.0]) * (1 - 1e-13)
    linear = spline()
    slope = linear.push(ends, 3 * torch.randn(100, 1, linear.parameters).expand(-1, 2, -1))[1]
    assert torch.allclose(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)
    circle = spline("circular")
    slope = circle.push(ends, 3 * torch.randn(100, 1, circle.parameters).expand(-1, 2, -1))[1]
    assert torch.allclose(slope[:, 0], slope[:, 1], rtol=0, atol=1e-6)
    assert slope.std() > 0.1
    free = spline("none")
    slope = free.push(ends, 3 * torch.randn(100, 1, free.parameters).expand(-1, 2, -1))[1]
    assert (slope[:, 0] - slope[:, 1]).abs().min() > 1e-4


def test_a_density_on_the_circle_integrates_to_one() -> None:
    map = RationalQuadraticMap(bound=math.pi, tails="circular")
    theta = 2 * torch.randn(20, 1, map.parameters)
    grid = (torch.arange(20000) + 0.5) * (2 * math.pi / 20000) - math.pi
    for move in (map.push, map.pull):
        slope = move(grid, theta)[1]
        total = slope.exp().mean(-1)  # uniform on the circle, seen through the map
        assert torch.allclose(total, torch.ones(20), rtol=0, atol=2e-3)
        wrong = (slope - math.log(2 / 8)).exp().mean(-1)  # planted: off by a bin's width
        assert bool(((wrong - 1).abs() > 0.1).all())


@pytest.mark.parametrize("tails", KINDS)
def test_zeros_are_the_identity_exactly_up_to_rounding(tails: str) -> None:
    map = spline(tails)
    x = torch.linspace(-6, 6, 1001)
    y, slope = map.push(x, torch.zeros(1001, map.parameters))
    assert torch.allclose(y, x, rtol=0, atol=1e-14)
    assert torch.allclose(slope, torch.zeros_like(x), rtol=0, atol=1e-14)


def test_bounds_and_tails_by_feature() -> None:
    bound = ((-1.0, 3.0), (0.0, 10.0), (-2.0, 2.0))
    mixed = RationalQuadraticMap(bound=bound, tails=("linear", "circular", "linear"))
    theta = 2 * torch.randn(4, 3, mixed.parameters)
    low, high = torch.tensor(bound).unbind(-1)
    for edge in (low, high):
        assert torch.allclose(mixed.push(edge.expand(4, 3), theta)[0], edge.expand(4, 3))
    slopes = [
        mixed.push((edge * 1.0).expand(4, 3), theta)[1] for edge in (low + 1e-11, high - 1e-11)
    ]
    assert torch.allclose(slopes[0], slopes[1], rtol=0, atol=1e-6)
    assert torch.allclose(slopes[0][:, [0, 2]], torch.zeros(4, 2), rtol=0, atol=1e-6)
    assert bool((slopes[0][:, 1].abs() > 1e-4).all())
    inside = low + (high - low) * torch.rand(4, 3)
    one = RationalQuadraticMap(bound=2.0)
    alone = one.push(inside[:, 2], theta[:, 2, :-8].new_zeros(4, one.parameters))[0]
    assert torch.allclose(alone, inside[:, 2])
    back = mixed.pull(mixed.push(inside, theta)[0], theta)[0]
    assert torch.allclose(back, inside, rtol=0, atol=1e-11)
    with pytest.raises(ShapeError, match="bound speaks of 3 features"):
        mixed.push(torch.zeros(4, 2), torch.zeros(4, 2, mixed.parameters))


@pytest.mark.parametrize("tails", KINDS)
@pytest.mark.parametrize("spread", [1, 5, 20])
def test_float32_never_fails(tails: str, spread: int) -> None:
    """Parameters of spread 1, 5 and 20, 200,000 numbers: peers assert, or err by 0.43."""
    map = spline(tails)
    theta = spread * torch.randn(200_000, map.parameters, dtype=torch.float32)
    x = 10 * torch.rand(200_000, dtype=torch.float32) - 5
    y, slope = map.push(x, theta)
    back, opposite = map.pull(y, theta)
    assert bool(torch.isfinite(y + slope + back + opposite).all())
    assert (back - x).abs().max() <= 1e-3
    there = map.push(map.pull(x, theta)[0], theta)[0]
    assert (there - x).abs().max() <= 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_inside(dtype: torch.dtype) -> None:
    map = spline()
    theta = (5 * torch.randn(50_000, map.parameters)).to(dtype)
    x = (10 * torch.rand(50_000) - 5).to(dtype)
    for move in (map.push, map.pull):
        y, slope = move(x, theta)
        exact, exact_slope = move(x.double(), theta.double())
        assert y.dtype == dtype
        assert slope.dtype == torch.float32
        assert torch.allclose(y.double(), exact, rtol=0.01, atol=0.01)
        assert (slope.double() - exact_slope).abs().quantile(0.999) < 1e-2


@pytest.mark.parametrize("tails", KINDS)
def test_slopes_stay_within_the_bounds_of_the_docstring(tails: str) -> None:
    map = spline(tails)
    theta = 60.0 * torch.randint(-1, 2, (100_000, map.parameters))
    slope = map.push(10 * torch.rand(100_000) - 5, theta)[1]
    assert slope.min() > math.log(6.8e-4 if tails == "linear" else 2e-3)
    assert slope.max() < math.log(240)


def test_parameters_of_fewer_axes_are_shared() -> None:
    map = spline()
    theta, x = torch.randn(3, map.parameters), torch.randn(5, 3)
    for move in (map.push, map.pull):
        shared, copied = move(x, theta), move(x, theta.expand(5, 3, -1))
        assert torch.allclose(shared[0], copied[0])
        assert torch.allclose(shared[1], copied[1])


@pytest.mark.unchecked
def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="bins must be 2 or more, got 1"):
        spline(bins=1)
    with pytest.raises(DomainError, match="tails must be among"):
        spline("bent")
    with pytest.raises(DomainError, match="pair low < high"):
        spline(bound=((1.0, 1.0),))
    with pytest.raises(DomainError, match="below 1 and max_slope above"):
        spline(min_bin=1.5)
