"""The table of exports: cells are files that were read back, and no recipe or field is missing."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cflow import field, recipes
from cflow.field import Field, FlowMap
from cflow.ode import Euler
from experiments import exports
from experiments.compatibility_rows import Row
from experiments.exports import COLUMNS, NONE, PACKAGE, Settings, main, read
from experiments.exports_rows import ROWS

pytestmark = pytest.mark.unchecked


def shorter(row: Row) -> Row:
    """Take one step of Euler: what is traced is the same, only less often."""
    return replace(row, build=lambda: row.build().with_solver(Euler(1)))


def test_three_rows_are_measured_kept_and_written(tmp_path: Path, capsys, monkeypatch) -> None:
    torch.set_default_dtype(torch.float32)
    rows = [shorter(row) if row.name == "ffjord, Hutchinson" else row for row in ROWS]
    monkeypatch.setattr(exports, "ROWS", rows)
    path = tmp_path / "page.md"
    found = main(Settings(out=path, smoke=True))
    assert list(found) == ["ffjord, Hutchinson", "realnvp", "TwoLayerField, vectors"]
    words = "the likelihood is an estimate, which draws noise"
    for name, cells in found.items():
        assert cells.pop(PACKAGE) == NONE
        assert set(list(cells.values())[-2:]) == {words} or name != "ffjord, Hutchinson"
        assert all(float(cell) <= 1e-5 for cell in cells.values() if cell != words), (name, cells)
        assert sum(cell == words for cell in cells.values()) == 2 * (name == "ffjord, Hutchinson")
    page = path.read_text()
    assert list(read(page)) == list(found)
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(line.count("|") == len(COLUMNS) + 2 and "|  |" not in line for line in lines)
    capsys.readouterr()
    main(Settings(out=path, smoke=True, resume=True))
    assert not capsys.readouterr().out, "rows that are there are not measured again"


def test_the_page_has_every_row_and_only_those() -> None:
    page = (Path(__file__).parents[1] / "docs" / "exports.md").read_text()
    assert list(read(page)) == [row.name for row in ROWS]


def test_no_recipe_and_no_field_is_missing() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    wanted = set(recipes.__all__) - {"load", "recipe"}
    for name in field.__all__:
        part = getattr(field, name)
        if inspect.isclass(part) and issubclass(part, Field | FlowMap):
            wanted |= set() if inspect.isabstract(part) else {name}
    assert wanted <= {name.split(",")[0] for name in names}
    for kind in ("labels", "vectors", "tokens"):
        assert {f"DiTField, {kind}", f"UNetField, {kind}"} <= set(names)
    assert {"MLPField, vectors", "GatedField, vectors", "TwoLayerField, vectors"} <= set(names)
