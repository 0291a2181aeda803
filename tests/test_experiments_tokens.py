"""The experiments on tokens run from start to end in their smoke mode."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from cflow.data import find, promoters, smiles, text

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def expect_file(found: object) -> None:
    if found is None:
        pytest.skip("the file is not on disk; name a folder that holds it in CFLOW_DATA")


def test_text(tmp_path: Path) -> None:
    from experiments.text import Settings, main

    expect_file(find(text.SHAKESPEARE))
    report = main(Settings(out=tmp_path, smoke=True))
    assert abs(report["bound"]["nats"] - math.log(65)) < 1  # hardly trained
    assert report["ngrams"]["3-gram"] < report["ngrams"]["1-gram"] < 4
    rows = {row["steps"]: row for row in report["steps"]}
    assert rows["text"]["words"] > rows["2"]["words"]
    assert {"2", "4", "first hitting"} <= rows.keys()
    assert report["infilling"]["hidden"] == 8
    assert [row["scale"] for row in report["guidance"]] == ["text", 0.0, 1.0, 2.0, 4.0]
    for name in ("curve.png", "samples.txt", "filled.txt", "flow.safetensors"):
        assert (tmp_path / name).stat().st_size > 100
    again = main(Settings(out=tmp_path, smoke=True, weights=tmp_path / "flow.safetensors"))
    assert again["bound"] == pytest.approx(report["bound"] | {"seconds": again["bound"]["seconds"]})


def test_molecules(tmp_path: Path) -> None:
    if find_spec("rdkit") is None:
        pytest.skip("rdkit is not installed; pip install 'cflow[molecules]'")
    from experiments.molecules import Encoded, Settings, judged, main, spelled

    expect_file(find(smiles.PACKED["train"]) or find(smiles.FILES["train"]))
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["data"]["validity"] == 1.0
    assert report["data"]["novelty"] == 1.0  # no test molecule is in the training file
    assert 0 <= report["samples"]["4 steps"]["validity"] <= 1
    assert json.loads((tmp_path / "report.json").read_text())["parameters"] > 100
    found = judged(["CCO", "OCC", "CC(", "c1ccccc1", ""], known={"CCO"})
    assert found["validity"] == pytest.approx(3 / 5)
    assert found["uniqueness"] == pytest.approx(2 / 3)
    assert found["novelty"] == pytest.approx(1 / 2)
    (tmp_path / "rings.smi").write_text("C1CC1C1CC1\nC1C2CC1C2\n")
    data = Encoded.of(smiles.read(tmp_path / "rings.smi", tmp_path / "rings.smi"))
    assert data.states == 4 + 2  # _, 1, 2, C, and what closes rings
    assert data.train[0].tolist() == [3, 1, 3, 3, 4, 3, 1, 3, 3, 4]
    assert data.train[1].tolist() == [3, 1, 3, 2, 3, 3, 4, 3, 5, 0]
    rows = data.test.clone()
    rows[1, 1] = 0  # padding between tokens
    assert spelled(data, rows) == ["C1CC1C1CC1", ""]


def test_dna(tmp_path: Path) -> None:
    from experiments.dna import Settings, main

    expect_file(find(promoters.PROMOTERS))
    report = main(Settings(out=tmp_path, smoke=True))
    assert abs(report["bounds"]["right"] - math.log(4)) < 0.05
    assert report["ngrams"]["order 3"] < report["ngrams"]["order 0"] < math.log(4)
    assert report["judge"] > 0.65
    assert len(report["guided"]) == 4


def test_discrete_checkerboard(tmp_path: Path) -> None:
    from experiments.discrete_checkerboard import FLOOR, METHODS, Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    assert pytest.approx(4.505, abs=1e-3) == FLOOR
    missing = set() if find_spec("flow_matching") else {"uniform, flow_matching's loss"}
    assert report["rows"].keys() == METHODS.keys() - missing | {"uniform, rectified"}
    masks = report["rows"]["masks"]
    assert masks["mixture"]["nats"] == pytest.approx(math.log(128), abs=0.1)
    assert masks["sampled"][0]["on"] == pytest.approx(0.5, abs=0.2)
    assert (tmp_path / "board.png").stat().st_size > 10_000


def test_benchmark(tmp_path: Path) -> None:
    from experiments.benchmarks.jump import FIGURES, main
    from experiments.benchmarks.settings import Settings

    report = main(Settings(out=tmp_path, smoke=True))
    assert report["figures"].keys() == FIGURES.keys()
    rows = [row for rows in report["figures"].values() for row in rows]
    if find_spec("flow_matching"):
        assert all(row["peers"] for row in rows if "vocabulary" not in row["what"])
    [stopped] = report["figures"]["stopped"]
    assert stopped["ours"] == pytest.approx(0.96, abs=0.03)
