"""Every experiment runs from start to end in its smoke mode."""

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_digits(tmp_path: Path, capsys) -> None:
    from experiments.digits import Settings, main

    main(Settings(out=tmp_path / "digits", smoke=True))
    out = tmp_path / "digits"
    report = json.loads((out / "report.json").read_text())
    assert report["bits_per_dim"].keys() == {"realnvp", "matching"}
    assert report["checks"]["exported files differ by at most 1e-4"]
    assert report["likelihood"] == {"realnvp": "bound", "matching": "bound"}
    for name in ("samples", "trajectories", "trajectory_frames", "curves"):
        assert (out / f"{name}.png").stat().st_size > 1000
    for name in ("sampler_1.pt2", "sampler_2.onnx", "matching.safetensors"):
        assert (out / name).exists()
    assert list((out / "wandb").glob("offline-run-*"))
    assert "test bits per dimension" in capsys.readouterr().out


def test_digits_peers(tmp_path: Path) -> None:
    from experiments.benchmarks.digits_peers import Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    assert {name.split()[0] for name in report} == {"cflow", "zuko"}
    assert all(0 < entry["bits_per_dim"] < 5 for entry in report.values())
