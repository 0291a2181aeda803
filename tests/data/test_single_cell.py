"""Snapshots of cells: sizes, order of times, and words where there is nothing to read."""

from pathlib import Path

import pytest
import torch

from cflow.data import find, single_cell
from cflow.data.single_cell import SETS, CellSet, _file
from cflow.errors import DataError, DomainError


def on_disk(name: str) -> None:
    if find(_file(name)) is None:
        pytest.skip(f"{name} is not on disk; name a folder that holds it in CFLOW_DATA")


@pytest.mark.parametrize("name", list(SETS))
def test_sizes_are_those_of_the_set(name: str) -> None:
    on_disk(name)
    snapshots, times = single_cell.load(name)
    assert times == [float(k) for k in range(len(SETS[name].cells))]
    assert [x.shape for x in snapshots] == [(n, SETS[name].coordinates) for n in SETS[name].cells]
    assert all(x.dtype == torch.float64 and torch.isfinite(x).all() for x in snapshots)


def test_rows_go_to_their_time_in_the_order_of_the_file(tmp_path: Path, monkeypatch) -> None:
    import hashlib

    text = "samples,x1,x2\n2.0,1,2\n0.0,3,4\n2.0,5,6\n"
    monkeypatch.setitem(SETS, "emt", CellSet(hashlib.sha256(text.encode()).hexdigest(), 2, (1, 2)))
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    (tmp_path / "single_cell").mkdir()
    (tmp_path / "single_cell/emt.csv").write_text(text)
    snapshots, times = single_cell.load("emt")
    assert times == [0.0, 2.0]
    assert snapshots[0].tolist() == [[3, 4]]
    assert snapshots[1].tolist() == [[1, 2], [5, 6]]


def test_bad_names_and_a_damaged_file_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no set 'eb'; known are .*'emt'"):
        single_cell.load("eb")
    (tmp_path / "single_cell").mkdir()
    (tmp_path / "single_cell/emt.csv").write_text("samples,x1\n0,1\n")
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    with pytest.raises(DataError, match="damaged"):
        single_cell.load("emt")
