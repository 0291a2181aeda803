"""What every manifold owes: projections, geodesics and distances that belong together."""

import math

import pytest
import torch

from cflow.base import SphereUniform
from cflow.errors import DomainError
from cflow.manifold import Euclidean, Manifold, Sphere

MANIFOLDS = [Euclidean(), Euclidean(2), Sphere()]
every = pytest.mark.parametrize("space", MANIFOLDS, ids=["R^3", "R^(3x3)", "S^2"])


def draw(space: Manifold, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (n, 3, 3) if space.ndim == 2 else (n, 3)
    x = space.projx(torch.randn(shape))
    return x, 0.7 * space.proju(x, torch.randn(shape))


@every
def test_projections_are_idempotent_and_points_check(space: Manifold) -> None:
    x, u = draw(space)
    assert torch.allclose(space.projx(x), x)
    assert torch.allclose(space.proju(x, u), u)
    assert space.check_point(x)[0]


@every
def test_log_undoes_exp_and_measures_distance(space: Manifold) -> None:
    x, u = draw(space)
    y = space.expmap(x, u)
    assert space.check_point(y)[0]
    assert torch.allclose(space.logmap(x, y), u, atol=1e-10)
    assert torch.allclose(space.dist(x, y), space.inner(x, u, u).sqrt())


@every
def test_distance_is_zero_exactly_at_zero(space: Manifold) -> None:
    x, _ = draw(space)
    assert torch.equal(space.dist(x, x), torch.zeros(6))
    assert torch.equal(space.logmap(x, x), torch.zeros_like(x))
    assert torch.equal(space.dist(x.float(), x.float()), torch.zeros(6, dtype=torch.float32))


def test_a_point_off_the_sphere_is_reported_with_how_far() -> None:
    ok, reason = Sphere().check_point(torch.tensor([[0.0, 0.0, 1.1]]))
    assert not ok
    assert "0.1" in reason


def test_antipodes_have_no_logarithm() -> None:
    x = torch.tensor([0.0, 0.0, 1.0])
    assert Sphere().dist(x, -x).item() == pytest.approx(math.pi)
    with pytest.raises(DomainError, match="antipode"):
        Sphere().logmap(x, -x)


def test_volumes_of_spheres() -> None:
    for n, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        assert Sphere().log_volume((n,)) == pytest.approx(math.log(area))


def test_uniform_points_have_uniform_heights() -> None:
    """Archimedes: heights on S^2 are uniform. Kolmogorov-Smirnov, false alarm 1e-6."""
    from scipy.stats import kstest

    x = SphereUniform((3,)).sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert Sphere().check_point(x, atol=1e-12)[0]
    assert kstest(x[:, 2].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-6
    with pytest.raises(DomainError, match="event_shape must be"):
        SphereUniform((1,))
