"""Spheres: areas, antipodes, and points that are uniform."""

import math

import pytest
import torch

from cflow.errors import DomainError, ShapeError
from cflow.manifold import Sphere


def test_a_point_off_the_sphere_is_reported_with_how_far() -> None:
    ok, reason = Sphere().check_point(torch.tensor([[0.0, 0.0, 1.1]]))
    assert not ok
    assert "0.1" in reason


def test_antipodes_have_no_logarithm() -> None:
    x = torch.tensor([0.0, 0.0, 1.0])
    assert Sphere().dist(x, -x).item() == pytest.approx(math.pi)
    assert Sphere().cut_locus(x, -x)
    with pytest.raises(DomainError, match="antipode"):
        Sphere().logmap(x, -x)


def test_volumes_of_spheres() -> None:
    for n, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        assert Sphere().log_volume((n,)) == pytest.approx(math.log(area))
    with pytest.raises(ShapeError, match="a point is a vector"):
        Sphere().log_volume((1,))


def test_uniform_points_have_uniform_heights() -> None:
    """Archimedes: heights on S^2 are uniform. Kolmogorov-Smirnov, false alarm 1e-6."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(0)
    x = Sphere().uniform((20_000,), (3,), like=torch.zeros(()), generator=generator)
    assert kstest(x[:, 2].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-6


def test_frames_hold_at_both_poles() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.6, -0.8]])
    vectors, _ = Sphere().frame(x)
    assert torch.allclose(vectors @ vectors.mT, torch.eye(2).expand(4, 2, 2), atol=1e-12)
    assert torch.allclose((vectors @ x[..., None]).squeeze(-1), torch.zeros(4, 2), atol=1e-12)


def test_frames_have_one_orientation() -> None:
    for size in (2, 3, 4):
        x = Sphere().projx(torch.randn(50, size))
        whole = torch.cat([Sphere().frame(x)[0], x[:, None]], 1)
        assert torch.allclose(torch.linalg.det(whole), torch.ones(50), atol=1e-12)
