"""Kernels stretched along their neighbourhoods: normalised, drawn as they say, fitted held out."""

import math

import pytest
import torch

from cflow.base import ParzenWindows
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Euclidean, PoincareBall, Sphere, Torus


def arc(n: int = 12) -> torch.Tensor:
    """Points along a quarter of the equator."""
    angle = torch.linspace(0, math.pi / 2, n)
    return torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)


def globe(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points of a grid on the sphere and the area of each."""
    z = (torch.arange(n) + 0.5) / n * 2 - 1
    a = (torch.arange(2 * n) + 0.5) / (2 * n) * 2 * math.pi
    z, a = torch.meshgrid(z, a, indexing="ij")
    r = (1 - z * z).sqrt()
    x = torch.stack([r * a.cos(), r * a.sin(), z], -1).reshape(-1, 3)
    return x, torch.full((len(x),), 4 * math.pi / len(x))


def test_it_integrates_to_one_on_the_sphere() -> None:
    law = ParzenWindows(Sphere(), arc(), round=(0.2, 0.4), stretched=(0.3,), uniform=True)
    x, area = globe()
    assert (law.log_prob(x).exp() * area).sum() == pytest.approx(1.0, abs=1e-4)


def test_it_integrates_to_one_on_the_torus() -> None:
    points = torch.tensor([[0.1, 6.2], [0.5, 0.3], [3.0, 3.0]])
    law = ParzenWindows(Torus(), points, round=(0.3,), stretched=(0.4,))
    side = (torch.arange(300) + 0.5) / 300 * 2 * math.pi
    x = torch.cartesian_prod(side, side)
    total = law.log_prob(x).exp().sum() * (2 * math.pi / 300) ** 2
    assert total == pytest.approx(1.0, abs=1e-5)


def test_in_flat_space_round_kernels_are_the_usual_density() -> None:
    points = torch.randn(40, 2)
    law = ParzenWindows(Euclidean(), points, round=(0.3,), stretched=())
    x = torch.randn(50, 2)
    each = torch.distributions.MultivariateNormal(points, 0.09 * torch.eye(2))
    usual = torch.logsumexp(each.log_prob(x[:, None]), -1) - math.log(40)
    assert torch.allclose(law.log_prob(x), usual, atol=1e-10)


def test_stretched_kernels_lie_along_the_curve() -> None:
    law = ParzenWindows(Sphere(), arc(), round=(), stretched=(0.2,), stretches=(1.0,))
    middle = Sphere().projx(arc()[5] + arc()[6])
    beside = Sphere().projx(arc()[5] + torch.tensor([0.0, 0.0, 0.0656]))  # as far off the curve
    assert law.log_prob(middle) > law.log_prob(beside) + 1


def test_draws_follow_the_density() -> None:
    """Heights by Kolmogorov-Smirnov against the density's own grid, false alarm 1e-6."""
    import numpy as np
    from scipy.stats import ks_1samp

    law = ParzenWindows(Sphere(), arc(), round=(0.3,), stretched=(0.2,), uniform=True)
    drawn = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert Sphere().check_point(drawn, atol=1e-9)[0]
    x, area = globe(400)
    mass = (law.log_prob(x).exp() * area).reshape(400, -1).sum(1)
    edges = torch.linspace(-1, 1, 401).numpy()
    below = torch.cat([torch.zeros(1), mass.cumsum(0)]).numpy()
    assert ks_1samp(drawn[:, 2].numpy(), lambda z: np.interp(z, edges, below)).pvalue > 1e-6


def test_weights_are_those_of_held_out_points() -> None:
    torch.manual_seed(0)
    points = Sphere().projx(torch.tensor([0.0, 0.0, 1.0]) + 0.1 * torch.randn(300, 3))
    law = ParzenWindows(Sphere(), points[:200], round=(0.001, 0.05), stretched=(), uniform=True)
    before = law.log_prob(points[200:]).mean()
    law.fit(points[200:])
    assert law.log_prob(points[200:]).mean() > before
    weights = law.log_weights.exp()
    assert weights.sum() == pytest.approx(1.0)
    assert weights[1] > 0.8


def test_a_point_is_no_neighbour_of_itself() -> None:
    """Fitted on the centres themselves, the thinnest kernel would win; groups forbid it."""
    torch.manual_seed(0)
    points = Sphere().projx(torch.tensor([0.0, 0.0, 1.0]) + 0.1 * torch.randn(200, 3))
    law = ParzenWindows(Sphere(), points, round=(0.001, 0.05), stretched=())
    law.fit(points)
    assert law.log_weights[0] > -0.1
    law.fit(points, groups=torch.arange(200))
    assert law.log_weights[1] > -0.1


def test_a_widened_law_is_one_of_wider_kernels() -> None:
    law = ParzenWindows(Sphere(), arc(), round=(0.1, 0.2), stretched=(), uniform=True)
    wide = ParzenWindows(Sphere(), arc(), round=(0.15, 0.3), stretched=(), uniform=True)
    x = globe(20)[0]
    assert torch.allclose(law.widened(1.5).log_prob(x), wide.log_prob(x), atol=1e-10)
    law.log_weights.copy_(torch.tensor([0.9, 0.01, 0.09]).log())
    alone = ParzenWindows(Sphere(), arc(), round=(0.1,), stretched=())
    assert torch.allclose(law.widened(1.0, least=0.5).log_prob(x), alone.log_prob(x), atol=1e-10)
    assert law.widened(1.0, least=0.05).sample((7,)).shape == (7, 3)
    with pytest.raises(DomainError, match="least must lie"):
        law.widened(1.0, least=2.0)


def test_antipodes_are_too_far_to_count() -> None:
    """Places on a lattice of degrees have exact antipodes, to which there is no logarithm."""
    points = torch.cat([arc(), -arc()])
    law = ParzenWindows(Sphere(), points, round=(0.2,), stretched=(0.2,), uniform=True)
    assert torch.isfinite(law.log_prob(points)).all()
    assert torch.allclose(law.log_prob(points), law.log_prob(-points), atol=1e-10)


def test_saved_weights_come_back() -> None:
    law = ParzenWindows(Sphere(), arc(), round=(0.1, 0.2), stretched=())
    law.fit(arc()[:3], groups=torch.arange(3), own=torch.arange(12))
    other = ParzenWindows(Sphere(), arc(), round=(0.1, 0.2), stretched=())
    other.load_state_dict(law.state_dict())
    assert torch.equal(other.log_prob(arc()), law.log_prob(arc()))


def test_what_is_refused() -> None:
    with pytest.raises(ShapeError, match="centres must have shape"):
        ParzenWindows(Sphere(), torch.randn(3))
    with pytest.raises(DomainError, match="lengths differ from 1"):
        ParzenWindows(Sphere(), torch.randn(5, 3))
    with pytest.raises(DomainError, match="give radii"):
        ParzenWindows(Sphere(), arc(), round=(), stretched=())
    with pytest.raises(DomainError, match="radius 0 must be positive"):
        ParzenWindows(Sphere(), arc(), round=(0.0,))
    with pytest.raises(DomainError, match="has no uniform law"):
        ParzenWindows(Euclidean(), torch.randn(5, 2), uniform=True)
    with pytest.raises(DomainError, match="need the metric of the space around"):
        ParzenWindows(PoincareBall(), 0.1 * torch.randn(5, 2))
    law = ParzenWindows(Sphere(), arc())
    with pytest.raises(ShapeError, match="must name one group"):
        law.fit(arc(), groups=torch.arange(3))
    with pytest.raises(DomainError, match="no centre outside its own group"):
        law.fit(arc(), groups=torch.zeros(12))
