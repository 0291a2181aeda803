"""Toy laws: samples lie where their density says."""

import math

import pytest
import torch

from cflow.data import toy
from cflow.errors import DomainError, ShapeError

EXACT = {
    "eight_gaussians": toy.eight_gaussians_log_prob,
    "checkerboard": toy.checkerboard_log_prob,
    "eight_gaussians_wide": toy.eight_gaussians_wide_log_prob,
    "moons_unscaled": toy.moons_unscaled_log_prob,
}


def drawn(name: str, n: int = 40000) -> torch.Tensor:
    return toy.sample(name, n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", EXACT)
def test_densities_integrate_to_one(name: str) -> None:
    side = torch.linspace(-8, 8, 401)[:-1]
    grid = torch.cartesian_prod(side, side)
    step = (side[1] - side[0]).item()
    assert EXACT[name](grid + step / 2).exp().sum().item() * step**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_samples_fill_cells_as_the_density_says(name: str) -> None:
    """Chi-squared over 14 x 14 cells; false alarm 1e-6 by the normal approximation."""
    n, cells, fine = 40000, 14, 40
    half = 2.8 if name == "moons_unscaled" else 7.7
    x = drawn(name, n)
    inside = x[(x.abs() < half).all(1)]
    index = ((inside + half) / (2 * half) * cells).long()
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double()
    width = 2 * half / cells / fine
    side = (torch.arange(cells * fine) + 0.5) * width - half
    p = EXACT[name](torch.cartesian_prod(side, side)).exp() * width**2
    expected = n * p.reshape(cells, fine, cells, fine).sum((1, 3)).reshape(-1)
    kept = expected > 5
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum().item()
    df = int(kept.sum()) - 1
    assert abs(statistic - df) < 5 * math.sqrt(2 * df) + 10


def test_entropies() -> None:
    assert -toy.checkerboard_log_prob(drawn("checkerboard")).mean().item() == pytest.approx(
        math.log(32)
    )
    value = -toy.eight_gaussians_log_prob(drawn("eight_gaussians")).mean().item()
    assert value == pytest.approx(2.833, abs=0.03)


def test_entropy_of_the_half_circles_as_published_and_by_the_grid() -> None:
    step = 0.02
    side = torch.arange(-1.8 + step / 2, 2.8, step)
    log_p = toy.moons_unscaled_log_prob(torch.cartesian_prod(side, side))
    entropy = -(log_p.exp() * log_p).sum().item() * step**2
    assert entropy == pytest.approx(1.0076, abs=1e-4)
    assert entropy == pytest.approx(1.010, abs=5e-3)


def test_half_circles_are_those_of_scikit_learn() -> None:
    """The mean negative log density of its points is the entropy: false alarm below 1e-8."""
    from sklearn.datasets import make_moons

    x = torch.from_numpy(make_moons(40000, noise=0.1, random_state=0)[0])
    surprise = -toy.moons_unscaled_log_prob(x)
    assert abs(surprise.mean() - 1.0076) < 6 * surprise.std() / 200


def test_the_integral_over_the_half_circles_against_scipy_at_chosen_points() -> None:
    from scipy.integrate import quad

    def density(x: float, y: float) -> float:
        def upper(a: float) -> float:
            return math.exp(-((x - math.cos(a)) ** 2 + (y - math.sin(a)) ** 2) / 0.02)

        def lower(a: float) -> float:
            return math.exp(-((x - 1 + math.cos(a)) ** 2 + (y - 0.5 + math.sin(a)) ** 2) / 0.02)

        both = sum(quad(arc, 0, math.pi, epsabs=1e-13, limit=400)[0] for arc in (upper, lower))
        return both / (2 * math.pi) / (2 * math.pi * 0.01)

    points = [(1.0, 0.0), (0.1, 1.1), (0.5, 0.25), (2.05, 0.4), (-1.2, -0.1)]
    expected = torch.tensor([density(*point) for point in points]).log()
    x = torch.tensor(points)
    assert torch.allclose(toy.moons_unscaled_log_prob(x), expected, rtol=0, atol=1e-7)
    many = x.expand(4000, 5, 2)  # more than one block of the sum; batch axes stay
    assert torch.allclose(toy.moons_unscaled_log_prob(many), expected.expand(4000, 5), atol=1e-7)
    low = toy.moons_unscaled_log_prob(x.float())
    assert low.dtype == torch.float32
    assert torch.allclose(low, expected.float(), atol=1e-4)


def test_moments_of_the_transport_problems() -> None:
    """Means and variances in closed form; six standard errors, false alarm below 1e-7."""
    n = 200_000
    root = math.sqrt(0.1)
    s = 1.5**2 * 0.05**2
    laws = {  # mean and variance of each coordinate
        "gaussian": ((0, 1), (0, 1)),
        "eight_gaussians_wide": ((0, 12.5 + root), (0, 12.5 + root)),
        "scurve": ((0, 1.5**2 / 2 + s), (0, 1.5**2 * (1.5 + 4 / (3 * math.pi)) + s)),
        "moons_wide": (
            (3 * 0.6 - 1, 9 * (0.75 + 0.04 / 12)),
            (3 * 0.35 - 1, 9 * (0.5 - (2 / math.pi) ** 2 + (2 / math.pi - 0.25) ** 2 + 0.04 / 12)),
        ),
    }
    for name, moments in laws.items():
        x = drawn(name, n)
        for column, (mean, variance) in zip(x.T, moments, strict=True):
            away = (column - mean).square()
            assert abs(column.mean() - mean) < 6 * math.sqrt(variance / n), name
            assert abs(away.mean() - variance) < 6 * away.std() / math.sqrt(n), name
    x = drawn("moons_wide", n)
    assert (x[:, 1] - x[:, 0]).max() <= 3 * math.sqrt(2) + 1e-9  # noise lies on the diagonal


@pytest.mark.parametrize("name", toy.TOYS)
def test_one_seed_decides_and_points_are_of_order_one(name: str) -> None:
    assert torch.equal(drawn(name), drawn(name))
    assert 0.5 < drawn(name).std().item() < 4


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="known are"):
        toy.sample("spirals", 3)
    for log_prob in EXACT.values():
        with pytest.raises(ShapeError, match="must end in shape"):
            log_prob(torch.zeros(3, 3))
