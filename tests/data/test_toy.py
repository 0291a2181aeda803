"""Toy laws: samples lie where their density says."""

import math

import pytest
import torch

from cflow.data import toy
from cflow.errors import DomainError, ShapeError

EXACT = {
    "eight_gaussians": toy.eight_gaussians_log_prob,
    "checkerboard": toy.checkerboard_log_prob,
}


def drawn(name: str, n: int = 40000) -> torch.Tensor:
    return toy.sample(name, n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", EXACT)
def test_densities_integrate_to_one(name: str) -> None:
    side = torch.linspace(-7, 7, 1401)
    grid = torch.cartesian_prod(side, side)
    step = (side[1] - side[0]).item()
    assert EXACT[name](grid + step / 2).exp().sum().item() * step**2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", EXACT)
def test_samples_fill_cells_as_the_density_says(name: str) -> None:
    """Chi-squared over 14 x 14 cells; false alarm 1e-6 by the normal approximation."""
    n, cells, fine = 40000, 14, 50
    x = drawn(name, n)
    index = ((x + 7) / 14 * cells).long()
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double()
    side = (torch.arange(cells * fine) + 0.5) * (14 / cells / fine) - 7
    p = EXACT[name](torch.cartesian_prod(side, side)).exp() * (14 / cells / fine) ** 2
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


@pytest.mark.parametrize("name", toy.TOYS)
def test_one_seed_decides_and_points_are_of_order_one(name: str) -> None:
    assert torch.equal(drawn(name), drawn(name))
    assert 0.5 < drawn(name).std().item() < 4


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="known are"):
        toy.sample("spirals", 3)
    with pytest.raises(ShapeError, match="must end in shape"):
        toy.checkerboard_log_prob(torch.zeros(3, 3))
