"""Paths down the gradient of a distance: many times from one simulation, and their velocities."""

import pytest
import torch
from torch import Generator, Tensor

from cflow.data import meshes
from cflow.errors import DomainError, ShapeError
from cflow.field import CosineSchedule
from cflow.manifold import Diffusion, Mesh, Sphere
from cflow.matching import GeodesicPath, PremetricPath


def on_sphere(n: int) -> tuple[Tensor, Tensor]:
    x = Sphere().projx(torch.randn(2, n, 3, generator=Generator().manual_seed(0)))
    return x[0], x[1]


def ends(mesh: Mesh, n: int) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    x = mesh.uniform((2, n), (3,), like=torch.zeros(()), generator=generator)
    return x[0], x[1]


@pytest.mark.parametrize("schedule", [None, CosineSchedule()], ids=["linear", "cosine"])
def test_a_trajectory_on_a_sphere_is_the_geodesic_at_all_times(
    schedule: CosineSchedule | None,
) -> None:
    """For the geodesic distance each step is exact, so few of them do."""
    x0, x1 = on_sphere(8)
    ts = torch.rand(5, 8, generator=Generator().manual_seed(1)).sort(0).values
    path = PremetricPath(Sphere(), steps=5, schedule=schedule)
    point = path.trajectory(x0, x1, ts)
    assert torch.equal(point.t, ts)
    for k, t in enumerate(ts):
        exact = GeodesicPath(Sphere(), schedule).sample(x0, x1, t)
        assert torch.allclose(point.x[k], exact.x, atol=1e-6)
        assert torch.allclose(point.target[k], exact.target, atol=1e-5)


def test_a_trajectory_stops_where_single_points_lie() -> None:
    mesh = Mesh(*meshes.icosphere(2), premetric=Diffusion(0.25))
    x0, x1 = ends(mesh, 32)
    ts = torch.tensor([0.2, 0.5, 0.8])[:, None].expand(3, 32)
    many = PremetricPath(mesh, steps=150).trajectory(x0, x1, ts)
    for k, t in enumerate(ts):
        one = PremetricPath(mesh, steps=150).sample(x0, x1, t)
        apart = torch.linalg.vector_norm(one.x - many.x[k], dim=-1)
        assert apart.quantile(0.9) < 5e-3  # as far as steps of another length lead


def test_velocities_near_the_end_are_those_of_the_whole_way() -> None:
    """They are not left over distances by left over times, both of which vanish."""
    mesh = Mesh(*meshes.torus(12, 8), premetric=Diffusion(0.1))
    x0, x1 = ends(mesh, 64)
    ts = torch.tensor([0.5, 0.9, 0.999, 0.999999, 1.0])[:, None].expand(5, 64)
    point = PremetricPath(mesh, steps=100).trajectory(x0, x1, ts)
    speed = torch.linalg.vector_norm(point.target, dim=-1)
    assert torch.isfinite(speed).all()
    assert (speed[2:].amax(1) < 3 * speed[:2].amax()).all()


def test_no_way_has_no_velocity() -> None:
    mesh = Mesh(*meshes.icosphere(1))
    x, _ = ends(mesh, 4)
    point = PremetricPath(mesh, steps=3).trajectory(x, x, torch.tensor([[0.0], [1.0]]).expand(2, 4))
    assert torch.allclose(point.x, x.expand(2, 4, 3), atol=1e-12)
    assert (point.target == 0).all()


def test_batches_have_any_axes() -> None:
    x0, x1 = on_sphere(6)
    path, ts = PremetricPath(Sphere(), steps=4), torch.rand(4, 6).sort(0).values
    flat = path.trajectory(x0, x1, ts)
    deep = path.trajectory(x0.reshape(2, 3, 3), x1.reshape(2, 3, 3), ts.reshape(4, 2, 3))
    assert torch.allclose(deep.x.reshape(4, 6, 3), flat.x, atol=1e-12)
    single = path.trajectory(x0[0], x1[0], ts[:, 0])
    assert torch.allclose(single.target, flat.target[:, 0], atol=1e-12)


def test_times_that_turn_back_or_do_not_fit_are_refused() -> None:
    x0, x1 = on_sphere(2)
    path = PremetricPath(Sphere())
    with pytest.raises(DomainError, match="the times of each path must rise"):
        path.trajectory(x0, x1, torch.tensor([[0.5, 0.1], [0.4, 0.2]]))
    with pytest.raises(DomainError, match=r"times must lie in \[0, 1\]"):
        path.trajectory(x0, x1, torch.tensor([[0.5, 0.1], [1.4, 0.2]]))
    with pytest.raises(ShapeError, match="ts needs an axis of one time or more"):
        path.trajectory(x0, x1, torch.tensor(0.5))
    with pytest.raises(
        ShapeError, match=r"PremetricPath\.trajectory: x0 and x1 must have one shape"
    ):
        path.trajectory(x0, x1, torch.zeros(1, 3))
    with pytest.raises(DomainError, match=r"PremetricPath\.trajectory: x0 must lie on Sphere"):
        path.trajectory(2 * x0, x1, torch.zeros(1, 2))
