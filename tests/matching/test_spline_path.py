"""Spline paths: against SciPy's natural splines, and the curves that they hold exactly."""

import pytest
import torch
from scipy.interpolate import CubicSpline

from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, MLPField
from cflow.matching import LinearPath, OTCoupling, SplinePath, along, chain, spline_matching


@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 1.0, 3.0], [2.0, 2.5, 4.0, 7.0, 7.5]])
def test_positions_and_velocities_are_those_of_scipy(times: list[float]) -> None:
    n = 40
    points, t = torch.randn(n, len(times), 2, 3), torch.rand(n)
    t[:3] = torch.tensor([0.0, 1.0, 1.0])
    point = SplinePath(times).sample(points, t)
    knots = (torch.tensor(times) - times[0]) / (times[-1] - times[0])
    for i in range(n):
        theirs = CubicSpline(knots.numpy(), points[i].numpy(), bc_type="natural")
        assert torch.allclose(point.x[i], torch.as_tensor(theirs(t[i].item())))
        assert torch.allclose(point.target[i], torch.as_tensor(theirs(t[i].item(), 1)))


def test_the_velocity_is_the_derivative_and_the_knots_are_hit() -> None:
    path, points = SplinePath([0.0, 1.0, 2.0, 5.0]), torch.randn(30, 4, 2)
    t = torch.rand(30)
    one = torch.ones_like(t)
    _, slope = torch.func.jvp(lambda s: path.sample(points, s).x, (t,), (one,))
    assert torch.allclose(path.sample(points, t).target, slope)
    for k, knot in enumerate([0.0, 0.2, 0.4, 1.0]):
        assert torch.allclose(path.sample(points, knot * one).x, points[:, k], atol=1e-12)


def test_natural_cubics_are_exact() -> None:
    """f has f'' = 6 t up to 1/2 and 6 (1 - t) after it: a natural spline with a knot at 1/2."""
    f = lambda t: torch.where(t < 0.5, t**3, 1.5 * t - 0.75 + (1 - t) ** 3)
    knots = torch.tensor([0.0, 0.5, 1.0])
    t = torch.linspace(0, 1, 21)
    points = f(knots).expand(21, 3)
    assert torch.allclose(f(torch.tensor(0.5)), torch.tensor(0.125))
    assert torch.allclose(SplinePath(knots).sample(points, t).x, f(t))


def test_straight_chains_and_two_points_are_the_linear_path() -> None:
    x0, x1, t = torch.randn(9, 2), torch.randn(9, 2), torch.rand(9)
    line = LinearPath().sample(x0, x1, t)
    for knots in ([0.0, 1.0], [0.0, 0.3, 1.0]):
        points = torch.stack([torch.lerp(x0, x1, k) for k in knots], 1)
        point = SplinePath(knots).sample(points, t)
        assert torch.allclose(point.x, line.x)
        assert torch.allclose(point.target, line.target)


def test_the_loss_is_that_of_the_spline() -> None:
    """Chains on moving parabolas; the field's own error is known."""
    days = [torch.randn(30, 1) + k**2 for k in range(3)]
    points = along(days, chain(OTCoupling(), days))
    path, t = SplinePath([0.0, 1.0, 2.0]), torch.rand(30)
    wanted = path.sample(points, t)
    loss = spline_matching(FunctionField(lambda t, x, c: 2 * x + c), path, points, t=t,
                           context=torch.ones(30, 1))  # fmt: skip
    assert torch.allclose(loss, (2 * wanted.x + 1 - wanted.target).square().mean(1))
    seeded = lambda s: spline_matching(
        MLPField(1), path, points, generator=torch.Generator().manual_seed(s)
    )
    torch.manual_seed(0)
    first = seeded(1)
    torch.manual_seed(0)
    assert torch.equal(seeded(1), first)
    assert spline_matching(MLPField(1).float(), path, points.float()).dtype == torch.float32


def test_bad_input_is_refused() -> None:
    path, field = SplinePath([0.0, 1.0, 2.0]), MLPField(2)
    with pytest.raises(DomainError, match="two or more, finite and rising"):
        SplinePath([0.0, 1.0, 1.0])
    with pytest.raises(DomainError, match="two or more, finite and rising"):
        SplinePath([0.0])
    with pytest.raises(ShapeError, match=r"points must be \(n, 3, \*event\)"):
        path.sample(torch.zeros(5, 2, 2), torch.rand(5))
    with pytest.raises(ShapeError, match=r"t \(n,\)"):
        path.sample(torch.zeros(5, 3, 2), torch.rand(4))
    with pytest.raises(DomainError, match=r"must lie in \[0, 1\]"):
        path.sample(torch.zeros(5, 3, 2), torch.rand(5) + 1)
    with pytest.raises(ShapeError, match="one for each time"):
        spline_matching(field, path, torch.zeros(5, 2, 2))
    with pytest.raises(ShapeError, match="one condition for each of the 5"):
        spline_matching(field, path, torch.zeros(5, 3, 2), context=torch.zeros(4, 1))
