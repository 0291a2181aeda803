"""Four sets of cells seen at a few times: snapshots of a population, never the same cell twice.

    snapshots X_0, ..., X_K, each a cloud of cells;  wanted is how the cloud moves between them

| set | coordinates | cells at each time |
|---|---|---|
| mouse_hematopoiesis | 2 (embedding) | 1429, 3781, 5788 |
| emt | 10 (latent space of an autoencoder) | 577, 885, 788, 883 |
| simulation_gene_data | 2 (simulated gene expressions) | 400, 442, 530, 690, 969 |
| gaussian_10d | 10 (simulated mixture) | 500, 1400 |

The numbers of cells grow because cells divide; a balanced transport disregards that. Times are the
numbers of the snapshots, 0, 1, ..., as the files have them.

Source: Zhang, Li and Zhou (2025), Learning stochastic dynamics from snapshots through regularized
unbalanced optimal transport, arXiv 2410.00844, whose files these are; cells by Weinreb et al.
(2020), Science 367, and Cook and Vanderhyden (2020), Nature Communications 11.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch
from cflow.errors import DomainError

__all__ = ["SETS", "CellSet", "Snapshots", "load"]

REPOSITORY = (
    "https://raw.githubusercontent.com/zhenyiizhang/DeepRUOT/"
    "2289c81032010922aadd9f848db9ffb1a10efb48/data/"
)


@dataclass(frozen=True)
class CellSet:
    """Say what a set has.

    Attributes:
        sha256: Checksum of its file.
        coordinates: Coordinates of a cell.
        cells: Cells at each time.
    """

    sha256: str
    coordinates: int
    cells: tuple[int, ...]


SETS: dict[str, CellSet] = {
    "mouse_hematopoiesis": CellSet(
        "be4360cd67e76205501de63124379be5c82506748e018197a3fdb4dbb1c7ca2f", 2, (1429, 3781, 5788)
    ),
    "emt": CellSet(
        "820eca0ca6a9b8c5aba970dda04052b2e2ea4489b712b948559fe5cd185a8294", 10, (577, 885, 788, 883)
    ),
    "simulation_gene_data": CellSet(
        "d41e3bcd94ff55383264461f2eed048780dbea8faffb77011cff9b8dce231d10",
        2,
        (400, 442, 530, 690, 969),
    ),
    "gaussian_10d": CellSet(
        "85f20ad7d9227455dcb9981fd75c293946e28104bb94d77837c793c054f63f8b", 10, (500, 1400)
    ),
}


class Snapshots(NamedTuple):
    """Hold one cloud of cells, `(cells, coordinates)`, for each time, and the times, rising."""

    snapshots: list[Tensor]
    times: list[float]


def load(name: str) -> Snapshots:
    """Load a set by name.

    Args:
        name: `mouse_hematopoiesis`, `emt`, `simulation_gene_data` or `gaussian_10d`.

    Returns:
        The snapshots in the units of the file, float64, and their times 0, 1, ...

    Raises:
        DomainError: There is no such set.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> SETS["emt"].cells
        (577, 885, 788, 883)
        >>> snapshots, times = load("emt")  # doctest: +SKIP
    """
    if name not in SETS:
        raise DomainError(f"single_cell.load: there is no set {name!r}; known are {list(SETS)}")
    table = torch.from_numpy(np.loadtxt(fetch(_file(name)), delimiter=",", skiprows=1))
    times = table[:, 0].unique().tolist()
    return Snapshots([table[table[:, 0] == time, 1:] for time in times], times)


def _file(name: str) -> RemoteFile:
    return RemoteFile(f"single_cell/{name}.csv", f"{REPOSITORY}{name}.csv", SETS[name].sha256)
