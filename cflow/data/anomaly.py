"""Anomaly detection on two UCI tables: which rows are unlike the others?

ionosphere: 351 radar returns, 126 of them bad;    magic: 19,020 showers, 6688 of them of gamma rays

The score of a detector is the area under the ROC curve (AUC): the probability that it ranks an
anomaly above a normal row. Two protocols are in use, and figures of one do not compare with the
other's:

- "normal": half of the normal rows train, the other half and all anomalies are tested (Zong et al.,
  2018); ADBench's data are used so by Livernoche et al. (2024), who call it semi-supervised;
- "mixed": 70 percent of all rows train, anomalies among them and unnamed, the rest is tested, each
  kind in its share (ADBench's unsupervised setting).

Source: Han et al. (2022), ADBench, arXiv 2206.09426; Zong et al. (2018), Deep autoencoding Gaussian
mixture model, ICLR; Livernoche et al. (2024), On diffusion modeling for anomaly detection, arXiv
2305.18593.
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from cflow.data.fetch import fetch
from cflow.data.tables import TABLES
from cflow.errors import DomainError

__all__ = ["NAMES", "AnomalySplit", "Protocol", "load", "split"]

NAMES = ("ionosphere", "magic")
TRAINED = {"normal": 0.5, "mixed": 0.7}  # share of the rows of a kind that train

Protocol: TypeAlias = Literal["normal", "mixed"]


class AnomalySplit(NamedTuple):
    """Hold training rows, test rows, and which of the test rows are anomalies."""

    train: Tensor
    test: Tensor
    anomalous: Tensor


def load(name: str) -> tuple[Tensor, Tensor]:
    """Load a table with its labels.

    Args:
        name: `ionosphere` (351 rows of 32 columns) or `magic` (19020, 10).

    Returns:
        Rows as the file has them, float64, and one flag for each, true for anomalies.

    Raises:
        DomainError: There is no such table.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> NAMES
        ('ionosphere', 'magic')
        >>> x, anomalous = load("magic")  # doctest: +SKIP
    """
    if name not in NAMES:
        raise DomainError(f"anomaly.load: there is no table {name!r}; known are {list(NAMES)}")
    with np.load(fetch(TABLES[name].file), allow_pickle=False) as arrays:
        rows, labels = arrays["X"].astype(np.float64), arrays["y"]
    return torch.from_numpy(rows), torch.from_numpy(labels != 0)


def split(
    x: Tensor, anomalous: Tensor, *, protocol: Protocol = "normal", seed: int = 0
) -> AnomalySplit:
    """Divide rows by a protocol, standardised by the training rows.

    Columns that never vary in the training rows are centred only.

    Args:
        x: Rows, `(rows, features)`.
        anomalous: Flags, `(rows,)`.
        protocol: "normal" trains on normal rows alone, "mixed" on all kinds.
        seed: Decides the rows.

    Raises:
        DomainError: The protocol is unknown, or a kind has fewer than two rows.

    Example:
        >>> x, bad = torch.randn(100, 3), torch.arange(100) < 20
        >>> parts = split(x, bad)
        >>> len(parts.train), len(parts.test), int(parts.anomalous.sum())
        (40, 60, 20)
    """
    if protocol not in TRAINED:
        raise DomainError(f"anomaly.split: protocol must be normal or mixed, got {protocol!r}")
    generator = torch.Generator().manual_seed(seed)
    normal, bad = _shuffled(~anomalous, generator), _shuffled(anomalous, generator)
    if min(len(normal), len(bad)) < 2:
        raise DomainError(
            f"anomaly.split: two rows of each kind are needed, got {len(normal)} normal and "
            f"{len(bad)} anomalous"
        )
    kept = round(TRAINED[protocol] * len(normal))
    seen = round(TRAINED[protocol] * len(bad)) if protocol == "mixed" else 0
    train = x[torch.cat([normal[:kept], bad[:seen]])]
    tested = torch.cat([normal[kept:], bad[seen:]])
    mean, deviation = train.mean(0), train.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    scale = lambda rows: (rows - mean) / deviation
    return AnomalySplit(scale(train), scale(x[tested]), anomalous[tested])


def _shuffled(flags: Tensor, generator: Generator) -> Tensor:
    """Return the positions of the true flags in random order."""
    positions = torch.nonzero(flags).flatten()
    return positions[torch.randperm(len(positions), generator=generator)]
