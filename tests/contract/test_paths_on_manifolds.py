"""Paths on manifolds: their velocity, their ends, and what is refused."""

import math

import pytest
import torch
from manifolds import CASES, ManifoldCase
from torch import Tensor
from torch.func import jvp

from cflow.errors import DomainError
from cflow.field import CosineSchedule, FunctionField, MLPField
from cflow.manifold import Euclidean, Sphere, Torus
from cflow.matching import (
    GeodesicCost,
    GeodesicPath,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PremetricPath,
    RiemannianError,
    Spans,
    SquaredError,
    matching,
    mean_flow,
)
from cflow.ode import RK4
from cflow.state import State
from cflow.transport import ODE

LOGARITHMS = [case for case in CASES if getattr(case, "logarithm", True)]
every = pytest.mark.parametrize("case", LOGARITHMS, ids=[case.name for case in LOGARITHMS])


@every
@pytest.mark.parametrize("schedule", [None, CosineSchedule()], ids=["linear", "cosine"])
def test_the_target_is_the_velocity_and_the_ends_are_met(case: ManifoldCase, schedule) -> None:
    space, x0, u = case.draw()
    x1 = space.expmap(x0, u)
    path = GeodesicPath(space, schedule)
    t = torch.linspace(0.05, 0.95, len(x0))
    point = path.sample(x0, x1, t)
    along = lambda t: path.sample(x0, x1, t).x
    x, velocity = jvp(along, (t,), (torch.ones_like(t),))
    assert torch.allclose(point.x, x, atol=1e-12)
    assert torch.allclose(point.target, velocity, atol=1e-8)
    assert space.check_point(point.x, atol=1e-8)[0]
    assert torch.allclose(along(torch.zeros(len(x0))), x0, atol=1e-8)
    assert torch.allclose(along(torch.ones(len(x0))), x1, atol=1e-7)


def test_in_flat_space_it_is_the_linear_path() -> None:
    x0, x1, t = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    for ours, linear in zip(
        GeodesicPath(Euclidean()).sample(x0, x1, t), LinearPath().sample(x0, x1, t), strict=True
    ):
        assert torch.allclose(ours, linear, atol=1e-12)


@every
def test_a_premetric_path_leaves_the_share_of_the_distance_that_it_should(
    case: ManifoldCase,
) -> None:
    """For the geodesic distance it is the geodesic itself."""
    space, x0, u = case.draw()
    x1 = space.expmap(x0, 0.5 * u)
    t = torch.linspace(0.0, 0.9, len(x0))
    point = PremetricPath(space, steps=4).sample(x0, x1, t)
    geodesic = GeodesicPath(space).sample(x0, x1, t)
    assert torch.allclose(space.dist(point.x, x1), (1 - t) * space.dist(x0, x1), atol=1e-6)
    assert torch.allclose(point.x, geodesic.x, atol=1e-6)
    assert torch.allclose(point.target, geodesic.target, atol=1e-5)


def test_normal_noise_is_no_source_on_a_manifold() -> None:
    x1 = Sphere().projx(torch.randn(4, 3))
    with pytest.raises(DomainError, match=r"runs on Sphere\(\), .* give sources, x0="):
        matching(MLPField(3), GeodesicPath(Sphere()), IndependentCoupling(), x1)
    with pytest.raises(DomainError, match=r"x0 must lie on Sphere\(\), but lengths differ from 1"):
        matching(
            MLPField(3), GeodesicPath(Sphere()), IndependentCoupling(), x1, x0=torch.randn(4, 3)
        )
    with pytest.raises(DomainError, match=r"x1 must lie on Torus\(\), but coordinates from -"):
        matching(
            MLPField(3), GeodesicPath(Torus()), IndependentCoupling(), x1 - 1, x0=torch.rand(4, 3)
        )


def test_antipodes_are_refused() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    with pytest.raises(DomainError, match="antipode"):
        GeodesicPath(Sphere()).sample(x, -x, torch.rand(2))


def test_geodesic_costs_pair_neighbours() -> None:
    """On a circle of angles the nearest neighbours lie across the seam."""
    x0 = torch.tensor([[0.1], [3.0]])
    x1 = torch.tensor([[3.2], [2 * math.pi - 0.1]])
    pairs = OTCoupling(cost=GeodesicCost(Torus()))(x0, x1)
    assert pairs.j[torch.argsort(pairs.i)].tolist() == [1, 0]


@every
def test_the_riemannian_error_is_the_squared_length(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    error = RiemannianError(space)(torch.zeros(len(x)), x, 3 * u, u)
    assert torch.allclose(error, 4 * space.inner(x, u, u) / space.dim(case.event), atol=1e-9)


def test_with_the_induced_metric_it_is_the_plain_square() -> None:
    x = Sphere().projx(torch.randn(5, 4))
    v, w = (Sphere().proju(x, torch.randn(5, 4)) for _ in range(2))
    plain, ours = SquaredError(), RiemannianError(Sphere())
    t = torch.zeros(5)
    assert torch.allclose(4 * plain(t, x, v, w), 3 * ours(t, x, v, w))


def spin(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """A rotation about the third axis, by 1.2 radians in a unit of time."""
    return 1.2 * torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1)


def test_the_mean_flow_of_a_rotation_has_no_error() -> None:
    """Its average velocity is known: the logarithm of where the rotation takes a point."""
    space = Sphere()

    def flow_map(r: Tensor, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        angle = 1.2 * (t - r)
        c, s = angle.cos(), angle.sin()
        there = torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1], x[:, 2]], -1)
        span = torch.where(t > r, t - r, 1.0)[:, None]
        return torch.where((t > r)[:, None], space.logmap(x, there) / span, spin(r, x, None))

    x0, x1 = (space.projx(torch.randn(64, 3)) for _ in range(2))
    error = mean_flow(
        flow_map,
        GeodesicPath(space),
        IndependentCoupling(),
        x1,
        x0=x0,
        teacher=spin,
        spans=Spans(instant=0.25, whole=0.25),
    )
    assert error.max() < 1e-16


def test_a_wrong_average_velocity_has_an_error() -> None:
    """On a sphere v + (t - r) du/dr is not the target, as it would be in flat space."""
    space = Sphere()
    x0, x1 = (space.projx(torch.randn(64, 3)) for _ in range(2))
    flow_map = lambda r, t, x, c=None: spin(r, x, c)
    error = mean_flow(
        flow_map, GeodesicPath(space), IndependentCoupling(), x1, x0=x0, teacher=spin,
        spans=Spans(instant=0.0, whole=1.0),
    )  # fmt: skip
    assert error.max() > 1e-3


def test_matching_learns_a_law_on_the_circle_of_angles() -> None:
    """The field that carries uniform angles to a shifted law; loss falls to the marginal's."""
    torch.manual_seed(0)
    space = Torus()
    target = space.projx(0.8 * torch.randn(2000, 1))  # about zero, across the seam
    net = MLPField(2, hidden_features=(32, 32), frequencies=2)

    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return net(t, torch.cat([x.sin(), x.cos()], -1))[..., :1]

    field = FunctionField(velocity)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(500):
        x1 = target[torch.randint(2000, (256,))]
        x0 = space.uniform((256,), (1,), like=x1)
        coupling = OTCoupling(cost=GeodesicCost(space))
        loss = matching(field, GeodesicPath(space), coupling, x1, x0=x0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ode = ODE(field, RK4(8), manifold=space)
    drawn = ode.push(State(space.uniform((4000,), (1,), like=target))).x.detach()
    away = space.dist(drawn, torch.zeros(1))
    for share, length in ((0.5, 0.5396), (0.8, 1.0252)):  # of the half-normal law
        assert abs(away.quantile(share) - length) < 0.06
