"""Handwritten motions: sizes and units, the original form, and words where there is no file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cflow.data import find, lasa
from cflow.errors import DataError, DomainError


def saved(path: Path, demonstrations: int = 7, *, points: int = 1000) -> np.ndarray:
    """Write a file of the original form and return its positions, `(demonstrations, 2, points)`."""
    from scipy.io import savemat

    generator = np.random.default_rng(0)
    positions = generator.standard_normal((demonstrations, 2, points))
    demos = np.empty((1, demonstrations), dtype=object)
    for k in range(demonstrations):
        t = np.linspace(0, 2 + k, points)[None]
        demos[0, k] = {"pos": positions[k], "t": t, "dt": t[0, 1], "vel": positions[k]}
    savemat(path, {"demos": demos, "dt": 0.1})
    return positions


def test_sizes_and_units() -> None:
    if find(lasa.ARCHIVE) is None:
        pytest.skip("the LASA motions are not on disk; name a folder with them in CFLOW_DATA")
    for shape in lasa.SHAPES:
        positions, times = lasa.load(shape)
        assert positions.shape == (7, 1000, 2)
        assert times.shape == (7, 1000)
        assert positions.dtype == times.dtype == torch.float64
        assert positions[:, -1].abs().max() < 1e-9  # the goal is the origin
        assert 10 < positions.abs().max() < 60  # millimetres
        assert (times[:, 0] == 0).all()
        assert (times.diff(dim=1) > 0).all()
        assert 1 < times[:, -1].min() < times[:, -1].max() < 10  # seconds


def test_the_original_form_is_read(tmp_path: Path) -> None:
    positions = saved(tmp_path / "Line.mat")
    found, times = lasa.convert(tmp_path / "Line.mat")
    assert torch.equal(found, torch.from_numpy(positions).transpose(1, 2))
    assert times.shape == (7, 1000)
    assert times[:, -1].tolist() == [2.0 + k for k in range(7)]


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_text("nothing")
    with pytest.raises(DataError, match="no file of demonstrations"):
        lasa.convert(tmp_path / "a.mat")
    with pytest.raises(DataError, match="no file of demonstrations"):
        lasa.convert(tmp_path / "missing.mat")
    saved(tmp_path / "b.mat", 3)
    with pytest.raises(DataError, match=r"7 demonstrations of 1000 points.*got pos \(3, 1000, 2\)"):
        lasa.convert(tmp_path / "b.mat")


def test_bad_names_and_a_missing_archive_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no shape 'Circle'; known are .*'Angle'"):
        lasa.load("Circle")
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="not on disk, and no address offers it"):
        lasa.load("Line")
    (tmp_path / "lasa").mkdir()
    (tmp_path / "lasa/lasa.npz").write_text("x")
    with pytest.raises(DataError, match="damaged"):
        lasa.load("Line")
