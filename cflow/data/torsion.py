"""Torsion angles: points of a torus, one circle for each bond that turns; RNA, and your own tables.

A residue of RNA has seven torsion angles (alpha, beta, gamma, delta, epsilon, zeta, chi), so it is
a point of the seven-dimensional torus. Densities are in nats against the volume in radians: the
uniform law has a negative log-likelihood of 7 log 2 pi = 12.865.

Published figures split these residues at random (`random_split`). But the residues of one structure
resemble each other; `counted` keeps whole structures in one part.

Source: 9473 residues of 113 structures of the Protein Data Bank; copy in
haolsun/Riemannian_MeanFlow. The published set, five residues larger, is that of Huang et al.
(2022), Riemannian diffusion models, arXiv 2208.07949.
"""

import math
import os
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cflow.data.delimited import Row, is_number, number, rows
from cflow.data.digits import Split
from cflow.data.fetch import RemoteFile, fetch
from cflow.data.grouped import distinct, grouped_split, jitter, resolution
from cflow.errors import DataError

__all__ = ["RNA", "Angles", "counted", "load", "read"]

RNA = RemoteFile(
    "rna_torsion/aggregated_angles.tsv",
    "https://raw.githubusercontent.com/haolsun/Riemannian_MeanFlow/"
    "45d96bcd09a271ea3a770b2014865dabbac9eeeb/rmf/data/rna/aggregated_angles.tsv",
    "45aecd3f1289bd22efbaf760fe9e9fb32570e0a4f8d431ea2d00f04515065a9f",
)


class Angles(NamedTuple):
    """Hold angles in radians in [0, 2 pi), `(rows, angles)`, and the group of every row.

    The groups are empty where the table names none.
    """

    angles: Tensor
    groups: tuple[str, ...]


def load() -> Angles:
    """Load the seven torsion angles of 9473 RNA residues, grouped by structure.

    Returns:
        Angles `(9473, 7)`, float64, and for every residue the name of its structure in the Protein
        Data Bank.

    Raises:
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> RNA.path
        'rna_torsion/aggregated_angles.tsv'
        >>> angles, structures = load()  # doctest: +SKIP
        >>> train, validation, test = random_split(angles)  # doctest: +SKIP
    """
    return read(fetch(RNA))


def read(
    path: str | os.PathLike[str], *, degrees: bool = True, text_columns: int | None = None
) -> Angles:
    r"""Read angles from a table of your own.

    The file is text in UTF-8, plain or gzipped (`.gz`); its columns are separated by tabs, commas,
    semicolons or white space. Lines that are blank or start with `#` are passed over. The first
    other line may name the columns: then it holds no number. Columns of text may stand first; the
    first of them names the group of the row, the others are disregarded. All further columns are
    angles.

    Args:
        path: The file.
        degrees: Whether the file has degrees in [-360, 360]; otherwise radians in [-2 pi, 2 pi].
        text_columns: How many columns of text stand first; None takes those in which more than half
            of the values are no numbers. Say it where groups have numbers as names.

    Returns:
        Angles in radians, taken modulo 2 pi, float64, and the groups.

    Raises:
        DataError: The file cannot be read, is empty, has rows of different lengths or no column of
            angles, or holds an angle that is blank, no number, or out of range.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "chains.csv")
        >>> _ = open(path, "w").write("chain,phi,psi\n1abc,-90,45\n1abc,180,0\n2xyz,60,90\n")
        >>> angles, groups = read(path)
        >>> angles[0] / math.pi
        tensor([1.5000, 0.2500], dtype=torch.float64)
        >>> groups
        ('1abc', '1abc', '2xyz')
    """
    values, groups = _table(
        "torsion.read", path, 360.0 if degrees else 2 * math.pi, text_columns=text_columns
    )
    return Angles(_wrapped(torch.deg2rad(values) if degrees else values), groups)


def counted(path: str | os.PathLike[str] | None = None, *, seed: int = 0) -> Split:
    """Make the split on which a figure counts: no residue twice, no structure in two parts.

    Rows that repeat count once; each is spread evenly over the cube of degrees that it was rounded
    to (`resolution`, 1e-6 degree in the RNA file); then whole groups train, validate (about a tenth
    of the rows) or test (a tenth). The two largest RNA structures, 2864 and 1509 residues, always
    train.

    Args:
        path: A table in degrees with a column of groups, as `read` takes it; None is RNA.
        seed: Decides the groups and the spreading.

    Returns:
        Angles in radians in [0, 2 pi), float64.

    Raises:
        DataError: As `read` does; or the table has no column of groups.
        DomainError: The groups are too few for three parts.
        MissingExtraError: The RNA file has to be fetched and pooch is not installed.

    Example:
        >>> train, validation, test = counted()  # doctest: +SKIP
        >>> len(train), len(validation), len(test)  # doctest: +SKIP
        (7580, 947, 946)
    """
    values, groups = _table("torsion.counted", fetch(RNA) if path is None else path, 360.0)
    if not groups:
        raise DataError(
            f"torsion.counted: {path} has no column of groups; let a column of text stand first, "
            "or split the rows by random_split"
        )
    kept = distinct(values)
    step = resolution(values)
    moved = jitter(values[kept], step, generator=Generator().manual_seed(seed))
    members = [groups[k] for k in kept.tolist()]
    return grouped_split(_wrapped(torch.deg2rad(moved)), members, seed=seed)


def _table(
    where: str,
    path: str | os.PathLike[str],
    bound: float,
    *,
    text_columns: int | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Read the angles as the file has them, and the groups."""
    table = rows(where, path, separator=None)
    if len(table) > 1 and not any(is_number(value) for value in table[0].values):
        table.pop(0)  # names of the columns
    width, first = len(table[0].values), text_columns
    if first is None:
        mostly = [2 * sum(is_number(r.values[k]) for r in table) < len(table) for k in range(width)]
        first = mostly.index(False) if False in mostly else width
    if not 0 <= first < width:
        raise DataError(
            f"{where}: {path} has no column of angles behind {first} columns of text, got "
            f"{table[0].values} in line {table[0].line}"
        )
    angles = [[_angle(where, path, row, k, bound) for k in range(first, width)] for row in table]
    groups = tuple(row.values[0] for row in table) if first else ()
    return torch.tensor(angles, dtype=torch.float64), groups


def _angle(where: str, path: str | os.PathLike[str], row: Row, column: int, bound: float) -> float:
    value = number(where, path, row, column, name="an angle")
    if abs(value) <= bound:
        return value
    unit = "degrees" if bound > 7 else "radians; pass degrees=True if these are degrees"
    raise DataError(
        f"{where}: {path}, line {row.line}, column {column + 1}: expected an angle in "
        f"[{-bound:g}, {bound:g}] {unit}, got {row.values[column]}"
    )


def _wrapped(angles: Tensor) -> Tensor:
    """Take angles modulo 2 pi; a tiny negative one would round to 2 pi itself."""
    wrapped = torch.remainder(angles, 2 * math.pi)
    return torch.where(wrapped < 2 * math.pi, wrapped, 0.0)
