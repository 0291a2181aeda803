"""Five UCI tables for density estimation, under the protocol of RNADE.

Discrete columns go, and one of every pair with |correlation| > 0.98; then ten folds of 90/10, a
tenth of each training part held out for validation, and every column standardised by the statistics
of the training rows. So a log-likelihood is that of the standardised row, in nats, as in the
published ones; in the table's own units it is smaller by the sum of the log standard deviations.

Two things to know. Values are rounded as they were measured, and rows repeat (240 of the 1599 red
wines are copies of another one), so a test row may also be a training row, here as in the published
rows. And the public copy of parkinsons lacks the column motor_UPDRS that the published selection
has; age, in whole years, stands in its place among the 15, so that table compares models with each
other and not with published figures.

Source: Uria, Murray and Larochelle (2013), RNADE, arXiv 1306.0186, section 4; UCI repository:
Cortez et al. (2009), wine quality; Tsanas and Little (2009), Parkinson's telemonitoring; Sigillito
et al. (1989), ionosphere; Bock (2007), MAGIC gamma telescope.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cflow.data.digits import Split
from cflow.data.fetch import RemoteFile, fetch
from cflow.errors import DomainError, ShapeError

__all__ = ["FOLDS", "TABLES", "Table", "fold", "load", "select"]

FOLDS = 10
DISTINCT = 20  # a column with fewer distinct values is discrete
CORRELATION = 0.98  # above it, one column of the pair is dropped

WINE = (
    "https://raw.githubusercontent.com/daniel-e/machine_learning/"
    "7d1684e309da0866a88c73001d0e3b16179025c4/data/wine/"
)
UCI = (
    "https://raw.githubusercontent.com/treforevans/uci_datasets/"
    "f0737523712fe66a1640e4b980b927e8490b58eb/uci_datasets/"
)
ADBENCH = (
    "https://raw.githubusercontent.com/Minqi824/ADBench/"
    "3dac8221081e190f157d78e93bfa8867f90d0965/adbench/datasets/Classical/"
)


@dataclass(frozen=True)
class Table:
    """Say where a table lies and how it is read.

    Attributes:
        file: The file.
        rows: Rows that it has.
        features: Columns that the selection leaves.
        identifiers: Columns that name a row or a person, and are dropped as discrete.
    """

    file: RemoteFile
    rows: int
    features: int
    identifiers: tuple[int, ...] = ()


TABLES: dict[str, Table] = {
    "red": Table(
        RemoteFile(
            "uci_density/winequality-red.csv",
            WINE + "winequality-red.csv",
            "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
        ),
        rows=1599,
        features=11,
    ),
    "white": Table(
        RemoteFile(
            "uci_density/winequality-white.csv",
            WINE + "winequality-white.csv",
            "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
        ),
        rows=4898,
        features=11,
    ),
    "parkinsons": Table(
        RemoteFile(
            "uci_density/parkinsons.csv.gz",
            UCI + "parkinsons/data.csv.gz",
            "d20ffd9c9e5053a03fff0b770e7b0e076bf856a34538198303c897b6cc6addde",
        ),
        rows=5875,
        features=15,
        identifiers=(0,),  # the number of the patient
    ),
    "ionosphere": Table(
        RemoteFile(
            "uci_density/ionosphere.npz",
            ADBENCH + "18_Ionosphere.npz",
            "bca46cb0cfd1bf9ddef6cde5ad2215d54fb0189508d0d4c4eb98e788cad69001",
        ),
        rows=351,
        features=32,
    ),
    "magic": Table(
        RemoteFile(
            "uci_density/magic_gamma.npz",
            ADBENCH + "22_magic.gamma.npz",
            "0be375984d7af9ea7a63b12206c240840d8b7daa3607021c5fb8756407dd86f1",
        ),
        rows=19020,
        features=10,
    ),
}


def load(name: str) -> Tensor:
    """Load a table by name, discrete and nearly repeated columns dropped.

    Args:
        name: `red` (1599 rows of 11 columns), `white` (4898, 11), `parkinsons` (5875, 15),
            `ionosphere` (351, 32) or `magic` (19020, 10).

    Returns:
        The rows as the file has them, `(rows, features)`, float64.

    Raises:
        DomainError: There is no such table.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> TABLES["magic"].features
        10
        >>> x = load("magic")  # doctest: +SKIP
    """
    if name not in TABLES:
        raise DomainError(f"tables.load: there is no table {name!r}; known are {list(TABLES)}")
    table = TABLES[name]
    x = torch.from_numpy(_read(fetch(table.file)))
    kept = [k for k in range(x.shape[1]) if k not in table.identifiers]
    return select(x[:, kept])


def select(x: Tensor) -> Tensor:
    """Drop discrete columns, and columns until no pair has a |correlation| above 0.98.

    A column is discrete if it has fewer than 20 distinct values. Of the others the one with the
    most partners goes first, of equals the leftmost, so that as few as possible go.

    Args:
        x: Rows, `(rows, columns)`.

    Raises:
        ShapeError: x is no table.

    Example:
        >>> a, b = torch.arange(100.0), torch.arange(100.0).sin()
        >>> select(torch.stack([a, b, -2 * a, a % 2], dim=1)).shape  # one copy, one discrete
        torch.Size([100, 2])
    """
    _expect_table("tables.select", x)
    kept = [k for k in range(x.shape[1]) if len(x[:, k].unique()) >= DISTINCT]
    while kept:
        close = torch.corrcoef(x[:, kept].T).reshape(len(kept), len(kept)).abs() > CORRELATION
        partners = close.sum(0) - 1
        worst = int(partners.argmax())  # the first of equals
        if partners[worst] <= 0:
            break
        del kept[worst]
    return x[:, kept]


def fold(x: Tensor, k: int, *, seed: int = 0) -> Split:
    """Split rows for one of ten folds, standardised by the mean and deviation of its training rows.

    The ten test parts cover every row once. A tenth of the other rows validates.

    Args:
        x: Rows, `(rows, features)`.
        k: Number of the fold, 0 to 9.
        seed: Decides the order of the rows.

    Returns:
        Training, validation and test rows, 81, 9 and 10 percent, in the dtype of x.

    Raises:
        ShapeError: x is no table of at least 20 rows.
        DomainError: There is no fold k, or a column is constant in its training part.

    Example:
        >>> split = fold(torch.randn(200, 3), 0)
        >>> [len(part) for part in split]
        [162, 18, 20]
    """
    _expect_table("tables.fold", x)
    if not 0 <= k < FOLDS:
        raise DomainError(f"tables.fold: k must lie in 0..{FOLDS - 1}, got {k}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = list(order.tensor_split(FOLDS))
    test = parts.pop(k)
    rest = torch.cat(parts)
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed + 1 + k))]
    held = len(rest) // FOLDS
    train = x[rest[held:]]
    mean, deviation = train.mean(0), train.std(0, correction=0)
    if not bool((deviation > 0).all()):
        constant = torch.nonzero(deviation <= 0).flatten().tolist()
        raise DomainError(
            f"tables.fold: columns {constant} are constant in the training part of fold {k}, so "
            "they have no density; drop them"
        )
    scale = lambda rows: (rows - mean) / deviation
    return Split(scale(train), scale(x[rest[:held]]), scale(x[test]))


def _expect_table(where: str, x: Tensor) -> None:
    if x.dim() != 2 or len(x) < 2 * FOLDS:
        raise ShapeError(
            f"{where}: expected a table of {2 * FOLDS} rows or more, `(rows, columns)`, got "
            f"{tuple(x.shape)}"
        )


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["X"].astype(np.float64)
    if path.suffix == ".gz":
        return np.loadtxt(path, delimiter=",")
    return np.loadtxt(path, delimiter=";", skiprows=1)
