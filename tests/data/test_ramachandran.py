"""Densities of backbone angles: the known entropies, exact draws, the torus."""

import math
from pathlib import Path

import pytest
import torch

from cflow.data import find, ramachandran
from cflow.data.ramachandran import Density
from cflow.errors import DataError, DomainError, ShapeError

# Bins without anything, and the entropy in nats.
KNOWN = {"general": (10420, 1.62884), "preproline": (21312, 1.14561), "proline": (24802, 0.54829)}


def loaded(name: str) -> Density:
    if not (find(ramachandran.PACKED[name]) or find(ramachandran.FILES[name])):
        pytest.skip(f"{name} is not on disk; name a folder that holds it in CFLOW_DATA")
    return ramachandran.load(name)


@pytest.mark.parametrize("name", list(KNOWN))
def test_entropy_and_mass(name: str) -> None:
    density = loaded(name)
    empty, entropy = KNOWN[name]
    assert int(torch.isinf(density.grid).sum()) == empty
    assert density.entropy == pytest.approx(entropy, abs=1e-5)
    middles = (torch.arange(180) + 0.5) * math.radians(2)
    mass = density.log_prob(torch.cartesian_prod(middles, middles)).exp().sum()
    assert mass * math.radians(2) ** 2 == pytest.approx(1, abs=1e-12)


def test_angles_lie_where_the_file_has_them() -> None:
    """The helix at (-63, -43) degrees is the peak, and left-handed twists at phi = 90 are rare."""
    density = loaded("general")
    peak = density.log_prob(torch.deg2rad(torch.tensor([-63.0, -43.0])))
    assert peak == density.grid.max()
    assert density.log_prob(torch.deg2rad(torch.tensor([90.0, -120.0]))) == -math.inf


@pytest.mark.parametrize("name", list(KNOWN))
def test_draws_follow_the_density(name: str) -> None:
    """Fixed seed; false-alarm rate below 1e-5 for each of the two checks."""
    density = loaded(name)
    n = 20_000
    angles = density.sample(n, generator=torch.Generator().manual_seed(1))
    assert angles.dtype == torch.float64
    assert (angles >= 0).all()
    assert (angles < 2 * math.pi).all()
    surprise = -density.log_prob(angles)
    error = surprise.std() / math.sqrt(n)
    assert abs(surprise.mean() - density.entropy) < 4.5 * error
    # Pearson's statistic over blocks of 12 degrees that expect 20 draws or more.
    mass = density.grid.exp().mul(math.radians(2) ** 2).reshape(30, 6, 30, 6).sum((1, 3)).flatten()
    block = (angles / math.radians(12)).long()
    drawn = torch.bincount(block[:, 0] * 30 + block[:, 1], minlength=900).double()
    kept = mass * n >= 20
    statistic = ((drawn - mass * n) ** 2 / (mass * n))[kept].sum()
    freedom = int(kept.sum())
    assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)
    # Within a bin draws are even.
    within = angles / math.radians(2) % 1
    assert (within.mean(0) - 0.5).abs().max() < 4.5 * math.sqrt(1 / 12 / n)


def test_angles_are_taken_modulo_two_pi() -> None:
    density = loaded("proline")
    angles = density.sample(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(density.log_prob(angles), density.log_prob(angles - 2 * math.pi))
    assert density.log_prob(angles.float().reshape(5, 10, 2)).shape == (5, 10)
    assert density.log_prob(angles.float()).dtype == torch.float32
    assert density.log_prob(torch.tensor([math.nan, 1.0])).isnan()
    zero = density.log_prob(torch.tensor([0.0, -1e-300]))  # rounds to 2 pi
    assert zero == density.grid[0, 179]


def test_bad_arguments_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no class 'glycine'; known are .*'proline'"):
        ramachandran.load("glycine")
    with pytest.raises(ShapeError, match=r"\(180, 180\), got \(2, 2\)"):
        Density(torch.zeros(2, 2))
    with pytest.raises(DomainError, match="integrates to 1, got 39"):
        Density(torch.zeros(180, 180))
    density = Density(torch.full((180, 180), -2 * math.log(2 * math.pi)))
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        density.log_prob(torch.zeros(3))
    with pytest.raises(DomainError, match="floating"):
        density.log_prob(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DomainError, match="one or more, got 0"):
        density.sample(0)
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    (tmp_path / "rama_top500").mkdir()
    (tmp_path / "rama_top500/pref_general.data.gz").write_text("x")
    with pytest.raises(DataError, match="damaged"):
        ramachandran.load("general")
