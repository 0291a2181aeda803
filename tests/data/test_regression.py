"""The regression sets: their sizes, and splits that are those published."""

import os
from pathlib import Path

import pytest
import torch

from cflow.data import find, regression
from cflow.data.regression import SETS, _checksums, _file
from cflow.errors import DataError, DomainError


def on_disk(name: str) -> None:
    if find(_file(f"uci_regression/{name}/index_target.txt")) is None:
        pytest.skip(f"{name} is not on disk; name a folder that holds it in CFLOW_DATA")


@pytest.mark.parametrize("name", list(SETS))
def test_sizes_are_those_of_the_set(name: str) -> None:
    on_disk(name)
    x, y = regression.load(name)
    assert x.shape == (SETS[name].rows, SETS[name].features)
    assert y.shape == (SETS[name].rows, 1)
    assert x.dtype == y.dtype == torch.float64
    assert torch.isfinite(x).all()
    assert torch.isfinite(y).all()
    assert f"uci_regression/{name}/index_test_{SETS[name].splits - 1}.txt" in _checksums()
    assert f"uci_regression/{name}/index_test_{SETS[name].splits}.txt" not in _checksums()


def test_a_split_has_the_published_rows_and_all_others() -> None:
    on_disk("yacht")
    x, y = regression.load("yacht")
    place = Path(os.environ["CFLOW_DATA"]) / "uci_regression/yacht/index_test_3.txt"
    rows = [int(float(word)) for word in place.read_text().split()]
    train_x, train_y, test_x, test_y = regression.split("yacht", 3)
    assert torch.equal(test_x, x[sorted(rows)])
    assert torch.equal(test_y, y[sorted(rows)])
    assert len(train_x) + len(test_x) == len(x)
    assert sorted([*train_y.flatten().tolist(), *test_y.flatten().tolist()]) == sorted(
        y.flatten().tolist()
    )


def test_bad_names_and_a_damaged_file_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no set 'ship'; known are .*'yacht'"):
        regression.load("ship")
    with pytest.raises(DomainError, match=r"yacht has splits 0\.\.19, got 20"):
        regression.split("yacht", 20)
    folder = tmp_path / "uci_regression/yacht"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("1 2 3\n")
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    with pytest.raises(DataError, match="damaged"):
        regression.load("yacht")
