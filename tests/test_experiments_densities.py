"""The studies on sphere and torus run in their smoke mode, and take a table of one's own."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from cflow.data import earth, find, ramachandran, torsion

pytestmark = pytest.mark.unchecked
EARTH = Path(__file__).parents[1] / "experiments" / "earth.py"
MODELS = {"ours", "plain", "one width", "windows", "mixed widths"}


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_earth(tmp_path: Path) -> None:
    from experiments.earth import Settings, main

    if any(find(file) is None for file in earth.FILES.values()):
        pytest.skip("the events are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    rows = report["results"]
    assert {(row["set"], row["split"]) for row in rows} == {
        (name, kind) for name in earth.FILES for kind in ("counted", "random rows")
    }
    assert all(row["nll"].keys() == MODELS for row in rows)
    table = (tmp_path / "table.md").read_text()
    assert "-7.93 +- 1.67" in table
    assert (tmp_path / "fire_counted.png").stat().st_size > 5000
    assert (tmp_path / "fire_counted.safetensors").is_file()


def test_torsion(tmp_path: Path) -> None:
    from experiments.torsion import Settings, main

    known = (ramachandran.FILES["proline"], ramachandran.PACKED["proline"])
    if find(torsion.RNA) is None or all(find(file) is None for file in known):
        pytest.skip("the angles are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert [row["split"] for row in report["results"]] == ["counted", "random rows"]
    assert all(row["kl"] > 0 for row in report["ramachandran"])
    assert (tmp_path / "proline.png").stat().st_size > 5000


def run(monkeypatch, *words: str | Path) -> int | str | None:
    """Run the study on the sphere as a script, here, and return the status it ends with."""
    monkeypatch.setattr(sys, "argv", [str(EARTH), *map(str, words)])
    try:
        runpy.run_path(str(EARTH), run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


def test_a_table_of_events_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(300, 2, generator=generator) * torch.tensor([120.0, 300.0]) - 60
    lines = [f"{lat:.2f},{lon:.2f}" for lat, lon in places.tolist()]
    (tmp_path / "whales.csv").write_text("lat,lon\n" + "\n".join(lines))
    words = ("--csv", tmp_path / "whales.csv", "--smoke", "--out", tmp_path / "out")
    assert run(monkeypatch, *words) is None
    assert "whales" in (tmp_path / "out" / "table.md").read_text()


def test_a_bad_table_is_one_clear_sentence(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bad.csv").write_text("48.2,16.4\n148.2,16.4\n")
    words = ("--csv", tmp_path / "bad.csv", "--smoke", "--out", tmp_path)
    ended = run(monkeypatch, *words)
    assert isinstance(ended, str), "a text as status is written to stderr, and the status is 1"
    assert ended.startswith("error: ")
    assert "148.2" in ended


def test_the_benchmark_on_manifolds(tmp_path: Path) -> None:
    from experiments.benchmarks.riemannian import FIGURES, main
    from experiments.benchmarks.settings import Settings

    report = main(Settings(out=tmp_path, smoke=True))
    assert report["figures"].keys() == FIGURES.keys()
    for row in report["figures"]["defects"]:  # times mean nothing here, but these hold at any size
        assert row["reached"], row
        assert row["peers"]["flow_matching"] > 0.1
