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


def test_ode_benchmark(tmp_path: Path, capsys) -> None:
    from experiments.benchmarks.ode.__main__ import FIGURES, Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    assert report["figures"].keys() == FIGURES.keys()
    rows = [row for rows in report["figures"].values() for row in rows]
    exact = ("bitwise equal", "a row turns to NaN", "against the scheme", "is reported")
    for row in rows:  # times mean nothing here, but these hold at any size
        if any(words in row["what"] for words in exact):
            assert row["reached"], row
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["versions"]["torchode"]
    assert "figures are not as wanted" in capsys.readouterr().out


def test_layers_benchmark(tmp_path: Path, monkeypatch) -> None:
    from experiments.benchmarks.layers import training
    from experiments.benchmarks.layers.__main__ import FIGURES, Settings, main

    monkeypatch.setattr(training, "TRANSFORMS", 2)  # each is a part of the graph that is compiled
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["figures"].keys() == FIGURES.keys()
    rows = [row for rows in report["figures"].values() for row in rows]
    assert all(row["judged"] > 0 for row in rows)
    peers = {name.split(",")[0] for row in rows for name in row["peers"]}
    assert peers >= {"floor", "zuko", "nflows", "normflows"}


def test_toys(tmp_path: Path, capsys) -> None:
    from experiments.toys import Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    results = report["results"]
    assert results.keys() == {
        f"{flow}, {law}"
        for flow in ("nsf", "nsf_coupling")
        for law in ("eight_gaussians", "checkerboard")
    }
    assert all(0 < entry["kl"] < 10 for entry in results.values())
    assert (tmp_path / "densities.png").stat().st_size > 10_000
    assert "wanted below 0.05" in capsys.readouterr().out


def test_images(tmp_path: Path) -> None:
    from cflow.data import mnist
    from cflow.errors import DataError
    from experiments.images import Settings, main

    try:
        mnist()
    except DataError:
        pytest.skip("MNIST is not on disk; name a folder that holds it in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["results"].keys() == {"glow", "normflows", "tarflow"}
    for entry in report["results"].values():
        assert 0 < entry["bits"] < 20
        assert entry["bits_tight"] <= entry["bits_same"] + 1e-6
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_choosing(tmp_path: Path) -> None:
    from cflow.data import find, tables
    from experiments.choosing import RECIPES, Settings, main

    if find(tables.TABLES["red"].file) is None:
        pytest.skip("red wine is not on disk; name a folder that holds it in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["results"].keys() == RECIPES.keys()
    for entry in report["results"].values():
        assert entry["memory"] > 0
        assert entry["sample_seconds"] > 0
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(RECIPES)


def test_tabular(tmp_path: Path, capsys) -> None:
    from cflow.data import find, tables
    from experiments.tabular.__main__ import Settings, main

    if find(tables.TABLES["red"].file) is None:
        pytest.skip("red wine is not on disk; name a folder that holds it in CFLOW_DATA")
    settings = Settings(out=tmp_path, smoke=True)
    report = main(settings)
    results = report["results"]["red"]
    peers, ours = {"gaussian", "mixture", "zuko_cnf", "zuko_cnf_loose"}, {"ffjord", "exact_cnf"}
    assert results.keys() == peers | ours | {"realnvp"}
    assert all(-30 < entry["log_prob"]["mean"] < 0 for entry in results.values())
    sizes = [results[name]["parameters"] for name in ("ffjord", "exact_cnf", "zuko_cnf")]
    assert max(sizes) < 1.05 * min(sizes)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "lead over zuko_cnf" in capsys.readouterr().out

    again = main(settings)  # nothing is left to do
    assert again["jobs"] == json.loads(json.dumps(report["jobs"]))
    assert "validation" not in capsys.readouterr().out
