"""The experiments on matching run from start to end in their smoke mode."""

import json
import math
from multiprocessing import context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.unchecked, pytest.mark.usefixtures("forked_workers")]


@pytest.fixture
def forked_workers(monkeypatch, forked: ForkServerContext) -> None:
    """Fork the workers of experiments, which spawn them and so import torch in each."""
    monkeypatch.setitem(context._concrete_contexts, "spawn", forked)


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_lasa(tmp_path: Path, capsys) -> None:
    from cflow.data import find, lasa
    from experiments.lasa import MEASURES, ROWS, Settings, main

    if find(lasa.ARCHIVE) is None:
        pytest.skip("the LASA motions are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    table = report["table"]
    assert set(table) == set(ROWS)
    for row in ROWS:
        assert set(table[row]) == set(MEASURES)
        assert all(0 <= mean < 100 for mean, _ in table[row].values())
    assert max(table[row]["start"][0] for row in ROWS) < 1e-3  # all begin where they have to
    assert table["nearest, rigid"]["goal"][0] > 0.1 > table["flow"]["goal"][0]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["dtw of shapes"].keys() == {"Angle", "Sshape"}
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(ROWS)
    assert (tmp_path / "motions.png").stat().st_size > 10_000
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "demonstration 1 held out" in capsys.readouterr().out


def test_distances_between_motions() -> None:
    from experiments.lasa import swept_area, warped_distance

    x = torch.randn(3, 20, 2)
    assert torch.equal(warped_distance(x, x), torch.zeros(3))
    assert torch.equal(swept_area(x, x), torch.zeros(3))
    slow = x.repeat_interleave(3, dim=1)  # the same way at a third of the speed
    assert torch.equal(warped_distance(x, slow), torch.zeros(3))
    line = torch.stack([torch.linspace(0, 5, 11), torch.zeros(11)], dim=1)
    above = line + torch.tensor([0.0, 2.0])
    assert warped_distance(line, above).item() == pytest.approx(2)
    assert swept_area(line, above).item() == pytest.approx(10)
    p, q = torch.tensor([[0.0, 0], [1, 0], [5, 0]]), torch.tensor([[0.0, 1], [5, 1]])
    # first with first, last with last, the middle one with the nearer: least sum 1 + sqrt 2 + 1
    assert warped_distance(p, q).item() == pytest.approx((2 + math.sqrt(2)) / 3)
    assert warped_distance(q, p).item() == pytest.approx((2 + math.sqrt(2)) / 3)


def test_departures_give_their_curves_back() -> None:
    from experiments.lasa import Departures

    seen = torch.randn(4, 6, 10, 2).cumsum(2)
    seen = seen - seen[:, :, -1:]
    departures = Departures(seen, 20)  # as many as there are: ends are fixed, 8 points are free
    shape = torch.arange(4).repeat_interleave(6)
    back = departures.curves(departures.codes, seen[:, :, 0].flatten(0, 1), shape)
    assert departures.kept > 0.99999
    assert torch.allclose(back, seen.flatten(0, 1), atol=1e-3)
    variance = departures.codes[:, :10].square().mean(0)
    assert torch.allclose(variance, torch.ones(10), atol=1e-3)
    context = departures.context(seen[:, 2, 0], torch.arange(4))
    assert torch.equal(context[:, 2:], torch.eye(4))


def test_single_cell(tmp_path: Path, capsys) -> None:
    from cflow.data import find, single_cell
    from experiments.single_cell import Settings, main

    if find(single_cell._file("gaussian_10d")) is None:
        pytest.skip("the cells are not on disk; name a folder that holds them in CFLOW_DATA")
    settings = Settings(out=tmp_path, smoke=True, seeds=(0,))
    report = main(settings)
    trained = {"independent", "ot", "spline", "sf2m", "sf2m sde", "torchcfm ot"}
    without = {"previous", "interpolation", "halves"}
    found = {(e["set"], e["left"], e["time"], e["method"]) for e in report["table"]}
    name = "simulation_gene_data"
    assert found == {
        *((name, k, k, method) for k in (1, 2, 3) for method in trained | without),
        *((name, None, k, m) for k in (1, 2, 3, 4) for m in trained | {"previous", "halves"}),
        *(("gaussian_10d", None, 1, method) for method in trained | {"previous", "halves"}),
    }
    assert all(0 < entry["w1"] < 10 for entry in report["table"])
    known = {(e["left"], e["method"]): e["w1"] for e in report["table"] if e["set"] == name}
    assert known[2, "halves"] < known[2, "interpolation"] < known[2, "previous"]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["table"] == json.loads(json.dumps(report["table"]))
    assert (tmp_path / "table.md").read_text().count("| interpolation |") == 1
    assert (tmp_path / "cells.png").stat().st_size > 10_000
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "2 left out, sf2m sde seed 0: W1 2:" in capsys.readouterr().out


def test_pairs(tmp_path: Path) -> None:
    from experiments.pairs import Settings, main

    settings = Settings(out=tmp_path, smoke=True)
    report = main(settings)
    found = [(entry["pair"], entry["method"]) for entry in report["table"]]
    assert found == [(settings.pairs[0], m) for m in settings.methods]
    for entry in report["table"]:
        assert all(0 < entry[name][0] < 10 for name in ("w2", "w2_4", "floor", "npe"))
    assert (tmp_path / "table.md").read_text().count("| floor |") == 1
    assert (tmp_path / "paths.png").stat().st_size > 10_000


def test_likelihood(tmp_path: Path) -> None:
    from experiments.likelihood import WANTED, Settings, main

    settings = Settings(out=tmp_path, smoke=True, threads=torch.get_num_threads())
    report = main(settings)
    assert report["results"].keys() == {f"{law}, {m}" for law in WANTED for m in settings.methods}
    for entry in report["results"].values():
        assert 0 < entry["kl"] < 10
        assert entry["solver"] < 1e-3
    assert (tmp_path / "densities.png").stat().st_size > 10_000


def test_classes(tmp_path: Path) -> None:
    from cflow.data import find
    from cflow.data.mnist import SUBSET, TEST_IMAGES, TEST_LABELS
    from experiments.classes import Settings, main

    if any(find(file) is None for file in (SUBSET, TEST_IMAGES, TEST_LABELS)):
        pytest.skip("MNIST is not on disk; name a folder that holds it in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["scales"].keys() == {"1.0", "2.0"}
    assert all(0 <= entry["accuracy"] <= 1 for entry in report["scales"].values())
    assert 0 < report["bits"] < 20
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_matching_benchmark(tmp_path: Path) -> None:
    from experiments.benchmarks.matching import FIGURES, Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    assert report["figures"].keys() == FIGURES.keys()
    rows = [row for rows in report["figures"].values() for row in rows]
    assert all(row["judged"] > 0 for row in rows)
    (distinct,) = report["figures"]["targets"]
    assert distinct["reached"]  # holds at any size
    assert "torchcfm" in {name.split(",")[0] for row in rows for name in row["peers"]}
