"""Clouds of particles: sizes, energies and what belongs to them, and words where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cflow.data import find, particles
from cflow.errors import DataError, DomainError, ShapeError


@pytest.mark.parametrize(
    ("key", "rows", "mean"),
    [
        (("dw4", "train"), 100_000, -22.48),
        (("dw4", "test"), 10_000, -22.45),
        (("lj13", "test"), 10_000, -43.13),
    ],
)
def test_clouds_are_centred_and_of_known_energy(key, rows: int, mean: float) -> None:
    if find(particles.FILES[key]) is None:
        pytest.skip("the clouds are not on disk; name a folder with them in CFLOW_DATA")
    x = particles.load(*key)
    assert x.shape == (rows, *particles.SYSTEMS[key[0]].shape)
    assert x.dtype == torch.float32
    assert x.mean(1).abs().max() < 1e-5
    assert abs(particles.energy(key[0], x.double()).mean() - mean) < 0.02


def test_the_virial_of_samples_is_that_of_the_law() -> None:
    """E[x . grad E] is the dimension; 6 standard errors of independent samples, doubled."""
    if find(particles.FILES["lj13", "test"]) is None:
        pytest.skip("the clouds are not on disk; name a folder with them in CFLOW_DATA")
    x = particles.load("lj13", "test").double().requires_grad_()
    (force,) = torch.autograd.grad(particles.energy("lj13", x).sum(), x)
    virial = (x * force).sum((1, 2))
    assert (virial.mean() - 36).abs() < 12 * virial.std() / len(virial) ** 0.5


@pytest.mark.parametrize("system", particles.SYSTEMS)
def test_rigid_motions_and_exchanges_leave_the_energy(system: str) -> None:
    shape = particles.SYSTEMS[system].shape
    x = 3 * torch.rand(4, 5, *shape)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1])).Q
    moved = x[..., torch.randperm(shape[0]), :] @ turn.mT + 2.0
    assert particles.energy(system, x).shape == (4, 5)
    assert torch.allclose(particles.energy(system, moved), particles.energy(system, x), rtol=1e-8)


def test_the_wells_lie_where_they_should() -> None:
    """Two particles of four far away: pairs at d = 4 +- sqrt(20)/3 rest, by the derivative."""
    pair = particles.SYSTEMS["dw4"].pair
    d = torch.tensor([4.0, 4 + 20**0.5 / 3, 4 - 20**0.5 / 3], requires_grad=True)
    (slope,) = torch.autograd.grad(pair(d).sum(), d)
    assert slope.abs().max() < 1e-10
    assert torch.allclose(pair(d.detach()), torch.tensor([0.0, -40 / 9, -40 / 9]))
    assert particles.SYSTEMS["lj13"].pair(torch.tensor(1.0)) == -2.0


def test_bad_input_is_refused_in_words(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no part 'train' of 'lj13'; known are .*'dw4'"):
        particles.load("lj13", "train")
    with pytest.raises(DomainError, match="no system 'lj55'"):
        particles.energy("lj55", torch.zeros(55, 3))
    with pytest.raises(ShapeError, match=r"x must end in shape \(4, 2\), got \(3, 8\)"):
        particles.energy("dw4", torch.zeros(3, 8))
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    (tmp_path / "boltzmann").mkdir()
    np.save(tmp_path / "boltzmann/test_split_DW4.npy", np.zeros((3, 7), dtype=np.float32))
    with pytest.raises(DataError, match="damaged"):
        particles.load("dw4", "test")
