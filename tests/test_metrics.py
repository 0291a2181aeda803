"""Figures of merit against closed forms."""

import math

import pytest
import torch

from cflow.errors import ShapeError
from cflow.metrics import bits_per_dim, energy_distance, sliced_wasserstein


def test_bits_of_a_uniform_law_on_levels() -> None:
    log_prob = torch.full((4,), -64 * math.log(17.0))
    assert torch.allclose(bits_per_dim(log_prob, (8, 8)), torch.full((4,), math.log2(17)))


def test_sliced_distance_of_a_shift() -> None:
    """The mean square of a projected shift of length 3 in R^5 is 9 / 5."""
    x = torch.randn(200, 5)
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    distance = sliced_wasserstein(x, x + shift, projections=20_000, generator=generator)
    assert distance.item() == pytest.approx(math.sqrt(9 / 5), rel=0.03)
    again = torch.Generator().manual_seed(0)
    assert distance == sliced_wasserstein(x, x + shift, projections=20_000, generator=again)


def test_energy_distance_of_two_points_and_of_one_law() -> None:
    assert energy_distance(torch.zeros(3, 2), torch.ones(4, 2)).item() == pytest.approx(2 * 2**0.5)
    same = torch.stack(
        [energy_distance(torch.randn(100, 2), torch.randn(100, 2)) for _ in range(200)]
    )
    error = same.std() / 200**0.5
    assert abs(same.mean()) < 6 * error  # unbiased; false alarm below 1e-8


def test_samples_must_belong_together() -> None:
    with pytest.raises(ShapeError, match="two samples"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="two points of each"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))
