"""Figures of merit against closed forms."""

import math

import pytest
import torch

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.matching import exact
from cflow.metrics import (
    bits_per_dim,
    energy_distance,
    normalised_path_energy,
    sliced_wasserstein,
    wasserstein,
)


def test_bits_of_a_uniform_law_on_levels() -> None:
    log_prob = torch.full((4,), -64 * math.log(17.0))
    assert torch.allclose(bits_per_dim(log_prob, (8, 8)), torch.full((4,), math.log2(17)))


def test_sliced_distance_of_a_shift() -> None:
    """The mean square of a projected shift of length 3 in R^5 is 9 / 5."""
    x = torch.randn(200, 5)
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    distance = sliced_wasserstein(x, x + shift, projections=5000, generator=generator)
    assert distance.item() == pytest.approx(math.sqrt(9 / 5), rel=0.03)
    again = torch.Generator().manual_seed(0)
    assert distance == sliced_wasserstein(x, x + shift, projections=5000, generator=again)


def test_energy_distance_of_two_points_and_of_one_law() -> None:
    assert energy_distance(torch.zeros(3, 2), torch.ones(4, 2)).item() == pytest.approx(2 * 2**0.5)
    same = torch.stack(
        [energy_distance(torch.randn(100, 2), torch.randn(100, 2)) for _ in range(200)]
    )
    error = same.std() / 200**0.5
    assert abs(same.mean()) < 6 * error  # unbiased; false alarm below 1e-8


@pytest.mark.parametrize("order", [1, 1.5, 2, 3])
def test_wasserstein_of_a_shift_and_of_a_line(order: float) -> None:
    """A shift moves every point alike; on a line the plan pairs sorted points."""
    x = torch.randn(50, 3, 2)
    shift = torch.randn(3, 2)
    assert wasserstein(x, x + shift, order=order).item() == pytest.approx(shift.norm().item())
    a, b = torch.randn(40, 1), 2 * torch.randn(40, 1) + 1
    closed = (a.sort(0)[0] - b.sort(0)[0]).abs().pow(order).mean() ** (1 / order)
    assert wasserstein(a, b, order=order).item() == pytest.approx(closed.item())
    assert wasserstein(x, x.clone(), order=order) == 0
    near = 1e-7 * torch.randn(40, 2), 1e-7 * torch.randn(40, 2)
    scaled = wasserstein(1e7 * near[0], 1e7 * near[1], order=order).item()
    assert wasserstein(*near, order=order).item() == pytest.approx(1e-7 * scaled)
    small = torch.full((2, 4), 1e4)
    assert wasserstein(small, small + 1e-6, order=order).item() == pytest.approx(2e-6, rel=1e-5)


def test_wasserstein_between_gaussians_approaches_its_closed_form() -> None:
    """W_2^2 = |m|^2 + sum (s0 - s1)^2 for N(0, s0^2) and N(m, s1^2), diagonal."""
    x = torch.randn(800, 2)
    y = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(800, 2)
    closed = math.sqrt(10 + 1 + 0.25)
    assert wasserstein(x, y).item() == pytest.approx(closed, rel=0.08)
    assert wasserstein(x, y) > wasserstein(x, y, order=1)


def test_weights_stand_for_repeated_points() -> None:
    x, y = torch.randn(4, 2), torch.randn(7, 2)
    twice = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    masses = torch.bincount(twice) / 7
    repeated = wasserstein(x[twice], y, order=1)
    assert wasserstein(x, y, order=1, weights=(masses, None)).item() == pytest.approx(
        repeated.item()
    )
    assert wasserstein(y, x, order=1, weights=(None, masses)).item() == pytest.approx(
        repeated.item()
    )
    none = torch.tensor([1.0, 0, 0, 0])
    assert wasserstein(x, x[:1], weights=(none, None)).item() == 0
    low = wasserstein(x.float(), y.float(), weights=(masses.float(), None))
    assert low.dtype == torch.float32


def test_straightness_of_a_shift_and_of_a_detour() -> None:
    distance = torch.tensor([2.0, 2.0, 4.0])
    energy = torch.tensor([4.0, 6.0, 12.0])
    expected = torch.tensor([0.0, 0.5, 0.25])
    assert torch.allclose(normalised_path_energy(energy, distance), expected)


def test_distances_refuse_in_words(monkeypatch) -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match="wasserstein: two samples"):
        wasserstein(x, torch.zeros(3, 3))
    with pytest.raises(DomainError, match=r"order must be at least 1.*got 0.5"):
        wasserstein(x, x, order=0.5)
    with pytest.raises(DomainError, match="order must be at least 1"):
        wasserstein(x, x, order=math.nan)
    with pytest.raises(DomainError, match="y must be finite, got nan"):
        wasserstein(x, x + math.nan)
    with pytest.raises(ShapeError, match=r"points of y must have shape \(3,\), got \(2,\)"):
        wasserstein(x, x, weights=(None, torch.ones(2) / 2))
    with pytest.raises(DomainError, match=r"points of x must .* sum to one.*sum 3;"):
        wasserstein(x, x, weights=(torch.ones(3), None))
    with pytest.raises(DomainError, match=r"must not be negative.*least -1 "):
        wasserstein(x, x, weights=(torch.tensor([-1.0, 1, 1]), None))
    with pytest.raises(DomainError, match="points of x must be finite, got nan"):
        wasserstein(x, x, weights=(torch.tensor([math.nan, 1, 0]), None))
    with pytest.raises(DomainError, match="energies must be finite and not negative"):
        normalised_path_energy(torch.tensor(-1.0), torch.tensor(1.0))
    with pytest.raises(DomainError, match="distances must be positive and finite"):
        normalised_path_energy(torch.tensor(1.0), torch.tensor(0.0))
    monkeypatch.setattr(exact, "MAX_ITERATIONS", 1)
    with (
        pytest.warns(UserWarning, match="numItermax"),
        pytest.raises(SolverError, match="between 50 and 50 points did not converge"),
    ):
        wasserstein(torch.randn(50, 2), torch.randn(50, 2))


def test_samples_must_belong_together() -> None:
    with pytest.raises(ShapeError, match="two samples"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="two points of each"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))
