"""geoopt's manifolds in our ODE, our maps beside geoopt's, and where ours keep more digits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.field import FunctionField
from cflow.manifold import AffineInvariantSPD, Lorentz, PoincareBall, Simplex, Sphere
from cflow.matching import GeodesicPath
from cflow.ode import RK4
from cflow.state import State, tracked
from cflow.transport import ODE

geoopt: Any = pytest.importorskip("geoopt")

SHAPES = {
    "sphere": ((3,), lambda: geoopt.Sphere()),
    "hyperboloid": ((4,), lambda: geoopt.Lorentz()),
    "ball": ((3,), lambda: geoopt.PoincareBall()),
    "frames": ((4, 2), lambda: geoopt.CanonicalStiefel()),
    "frames, Euclidean": ((4, 2), lambda: geoopt.EuclideanStiefel()),
    "matrices": ((3, 3), lambda: geoopt.SymmetricPositiveDefinite()),
    "sphere and plane": (
        (5,),
        lambda: geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.Euclidean(ndim=1), 2)),
    ),
}


def draw(name: str, n: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
    shape, build = SHAPES[name]
    space = build().to(dtype)
    x = 0.4 * torch.randn(n, *shape, dtype=dtype)
    if name == "matrices":
        x = x @ x.mT + torch.eye(3, dtype=dtype)
    return space, space.projx(x)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_geoopt_samples_and_stays_on_its_manifold(name: str, dtype: torch.dtype) -> None:
    space, x = draw(name, 6, dtype)
    mix = 0.3 * torch.randn(x[0].numel(), x[0].numel(), dtype=dtype)
    velocity = lambda t, x, context: (x.flatten(1) @ mix).sin().reshape(x.shape)
    ode = ODE(FunctionField(velocity), RK4(8), manifold=space)
    there = ode.push(State(x)).x
    assert there.dtype == dtype
    assert (there - x).abs().max() > 0.01
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for point in there:
        assert space.check_point_on_manifold(point, atol=tolerance, rtol=tolerance)
    assert torch.allclose(ode.pull(State(there)).x, x, atol=1e-4)
    with pytest.raises(DomainError, match=r"has no likelihood; use one of cflow\.manifold"):
        ode.push(tracked(x, event_dim=space.ndim))


@pytest.mark.parametrize("name", ["sphere", "hyperboloid", "ball", "matrices"])
def test_geodesic_paths_take_geoopts_maps(name: str) -> None:
    space, x = draw(name, 6, torch.float64)
    _, y = draw(name, 6, torch.float64)
    point = GeodesicPath(space).sample(x, y, torch.full((6,), 0.5))
    assert torch.isfinite(point.target).all()
    ours = {"sphere": Sphere, "hyperboloid": Lorentz, "ball": PoincareBall}
    own = ours.get(name, AffineInvariantSPD)()
    same = GeodesicPath(own).sample(x, y, torch.full((6,), 0.5))
    assert torch.allclose(point.x, same.x, atol=1e-7)
    assert torch.allclose(point.target, same.target, atol=1e-6)


PAIRS = {
    "ball": (lambda: PoincareBall(), lambda: geoopt.PoincareBall()),
    "ball of curvature -2": (lambda: PoincareBall(-2.0), lambda: geoopt.PoincareBall(c=2.0)),
    "hyperboloid": (lambda: Lorentz(), lambda: geoopt.Lorentz()),
    "matrices": (lambda: AffineInvariantSPD(), lambda: geoopt.SymmetricPositiveDefinite()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_our_maps_agree_with_geoopts(name: str) -> None:
    ours, theirs = (build() for build in PAIRS[name])
    theirs = theirs.double()
    kind = name.split(" ")[0]
    (_, x), (_, y) = draw(kind, 20, torch.float64), draw(kind, 20, torch.float64)
    x, y = ours.projx(0.5 * x), ours.projx(0.5 * y)
    assert torch.allclose(ours.dist(x, y), theirs.dist(x, y), atol=1e-7)
    u = ours.logmap(x, y)
    assert torch.allclose(u, theirs.logmap(x, y), atol=1e-7)
    assert torch.allclose(ours.expmap(x, 0.7 * u), theirs.expmap(x, 0.7 * u), atol=1e-8)
    kept = {} if kind == "matrices" else {"keepdim": True}  # the ball's broadcasts amiss without
    same = theirs.inner(x, u, u, **kept).reshape(20)
    w = torch.randn_like(x)
    assert torch.allclose(ours.proju(x, w), theirs.proju(x, w), atol=1e-10)
    assert torch.allclose(ours.inner(x, u, u), same, atol=1e-8)


def test_zero_distance_is_exact_where_geoopts_is_not() -> None:
    """geoopt 0.5.1: float32 distances of a point to itself, and their gradients."""
    x = Lorentz().projx(torch.randn(200, 4).float())
    assert torch.equal(Lorentz().dist(x, x), torch.zeros(200).float())
    assert geoopt.Lorentz().dist(x, x).abs().max() > 1e-4
    y = x.clone().requires_grad_()
    Lorentz().dist(x, y).sum().backward()
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()
    p = torch.eye(3).expand(1, 3, 3).clone().requires_grad_()
    (theirs,) = torch.autograd.grad(
        geoopt.SymmetricPositiveDefinite().dist(2 * torch.eye(3)[None], p).sum(), p
    )
    (ours,) = torch.autograd.grad(AffineInvariantSPD().dist(2 * torch.eye(3)[None], p).sum(), p)
    assert not torch.isfinite(theirs).all()
    assert torch.allclose(ours, -torch.eye(3) / math.sqrt(3))


@pytest.mark.parametrize(("name", "most"), [("ball", 2e-3), ("hyperboloid", 5e-4)])
def test_short_distances_keep_digits_that_geoopt_loses_in_float32(name: str, most: float) -> None:
    """1e-3 apart; entries of either model in float32 hold three digits of that."""
    ours, theirs = (build() for build in PAIRS[name])
    _, x = draw(name, 200, torch.float64)
    x = ours.projx(0.5 * x)
    u = ours.proju(x, torch.randn_like(x))
    near = ours.expmap(x, 1e-3 * u / ours.inner(x, u, u).sqrt()[:, None]).float()
    missed = lambda space: (space.dist(x.float(), near) / 1e-3 - 1).abs().max()
    assert missed(ours) < most
    if name == "hyperboloid":  # from the arcosh of a number near 1
        assert missed(theirs.float()) > 0.1


def test_far_points_keep_digits_that_geoopt_loses_in_float32() -> None:
    """From 8 on one side of the centre of the ball to 2 on the other, and there and back."""
    way = torch.nn.functional.normalize(torch.randn(100, 3), dim=-1)
    x, y = (math.tanh(4.0) * way).float(), (-math.tanh(1.0) * way).float()
    exact = PoincareBall().dist(x.double(), y.double())
    missed, lost = [], []
    for space in (PoincareBall(), geoopt.PoincareBall().float()):
        missed.append((space.dist(x, y).double() - exact).abs().max())
        lost.append((space.expmap(x, space.logmap(x, y)) - y).abs().max())
    assert missed[0] < 1e-4
    assert missed[1] > 1e-3
    assert lost[0] < 2e-3
    assert lost[1] > 0.1


def test_simplex_agrees_with_geoopts_sphere() -> None:
    p, q = torch.softmax(torch.randn(2, 10, 4), -1)
    sphere = geoopt.Sphere()
    assert torch.allclose(Simplex().dist(p, q), 2 * sphere.dist(p.sqrt(), q.sqrt()), atol=1e-9)
