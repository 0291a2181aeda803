"""The experiments on manifolds run from start to end in their smoke mode."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_particles(tmp_path: Path) -> None:
    from cflow.data import find, particles
    from experiments.particles import SYSTEM, Settings, main

    if any(find(particles.FILES[SYSTEM, part]) is None for part in ("train", "test")):
        pytest.skip("the clouds are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert 5 < report["nll"]["value"] < 30
    assert report["nll"]["error"] > 0
    assert 0 < report["ess"]["value"] <= 1
    assert report["excess"]["value"] > -5 * report["excess"]["error"]
    assert report["changes"]["symmetries, largest"] < 1e-3
    assert report["changes"]["solver, largest"] < 1e-2
    assert (tmp_path / "energies.png").stat().st_size > 5000
    assert (tmp_path / "flow.safetensors").stat().st_size > 1000
    assert (tmp_path / "report.json").is_file()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
