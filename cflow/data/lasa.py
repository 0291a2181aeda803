"""Handwritten motions of the LASA set: 30 shapes, seven demonstrations each, drawn on a tablet.

A demonstration is a curve of 1000 points in the plane, in millimetres, evenly spaced in time, that
ends at rest at the origin; so every shape asks for a motion from a start to one goal.

The originals are MATLAB files, one for each shape, at the address below. What is read is an archive
of their positions and times, which no address offers: `convert` makes its arrays from one of them.

Source: Khansari-Zadeh and Billard (2011), Learning stable nonlinear dynamical systems with Gaussian
mixture models, IEEE Transactions on Robotics 27; copies in mrana6/euclideanizing_flows, MIT.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch, find
from cflow.errors import DataError, DomainError

__all__ = ["SHAPES", "Motions", "convert", "load"]

DEMONSTRATIONS, POINTS = 7, 1000

ARCHIVE = RemoteFile(
    "lasa/lasa.npz",
    "https://github.com/mrana6/euclideanizing_flows/tree/"
    "cfa7c9414610c5061f1b9f2bf9505bc5e0cb8731/data/lasa_handwriting_dataset",
    "29de814979b0cbfc09c58487e7882b320795b0eacc3a4cf0d75bd76d99cf68c4",
)

SHAPES = (
    "Angle", "BendedLine", "CShape", "DoubleBendedLine", "GShape", "JShape", "JShape_2", "Khamesh",
    "LShape", "Leaf_1", "Leaf_2", "Line", "Multi_Models_1", "Multi_Models_2", "Multi_Models_3",
    "Multi_Models_4", "NShape", "PShape", "RShape", "Saeghe", "Sharpc", "Sine", "Snake", "Spoon",
    "Sshape", "Trapezoid", "WShape", "Worm", "Zshape", "heee",
)  # fmt: skip


class Motions(NamedTuple):
    """Hold positions in millimetres, `(7, 1000, 2)`, and times in seconds, `(7, 1000)`."""

    positions: Tensor
    times: Tensor


def load(shape: str) -> Motions:
    """Load the demonstrations of a shape.

    Args:
        shape: One of `SHAPES`; the four `Multi_Models` hold two or three motions each.

    Returns:
        Positions and times, float64; every demonstration ends at the origin.

    Raises:
        DomainError: There is no such shape.
        DataError: The archive is damaged, or does not lie in the folder named by `CFLOW_DATA`.

    Example:
        >>> len(SHAPES)
        30
        >>> positions, times = load("Sshape")  # doctest: +SKIP
        >>> positions.shape  # doctest: +SKIP
        torch.Size([7, 1000, 2])
    """
    if shape not in SHAPES:
        raise DomainError(f"lasa.load: there is no shape {shape!r}; known are {list(SHAPES)}")
    if find(ARCHIVE) is None:
        raise DataError(
            f"lasa.load: {ARCHIVE.path} is not on disk, and no address offers it; it holds arrays "
            f"<shape>/pos and <shape>/t of the MATLAB files in {ARCHIVE.url}; name the folder that "
            "holds it in CFLOW_DATA, or read those files by lasa.convert"
        )
    with np.load(fetch(ARCHIVE), allow_pickle=False) as arrays:
        positions, times = arrays[f"{shape}/pos"], arrays[f"{shape}/t"]
    return Motions(torch.from_numpy(positions), torch.from_numpy(times))


def convert(path: str | os.PathLike[str]) -> Motions:
    """Read positions and times from one of the original MATLAB files; its checksum is not known.

    Args:
        path: A file that holds a cell array `demos` of structures with fields `pos`, `(2, 1000)`,
            and `t`, `(1, 1000)`.

    Returns:
        What `load` returns for its shape.

    Raises:
        DataError: The file holds something else.

    Example:
        >>> positions, times = convert("Sshape.mat")  # doctest: +SKIP
    """
    from scipy.io import loadmat  # POT brings scipy; it is slow to import
    from scipy.io.matlab import MatReadError

    try:
        demos = loadmat(path, simplify_cells=True)["demos"]
        positions = np.stack([np.asarray(demo["pos"], dtype=np.float64).T for demo in demos])
        times = np.stack([np.asarray(demo["t"], dtype=np.float64) for demo in demos])
    except (OSError, MatReadError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"lasa.convert: {path} is no file of demonstrations ({error!r}); expected a cell array "
            f"demos with fields pos and t, as in {ARCHIVE.url}"
        ) from error
    if positions.shape != (DEMONSTRATIONS, POINTS, 2) or times.shape != positions.shape[:2]:
        raise DataError(
            f"lasa.convert: {path} must hold {DEMONSTRATIONS} demonstrations of {POINTS} points in "
            f"the plane and their times, got pos {positions.shape} and t {times.shape}"
        )
    return Motions(torch.from_numpy(positions), torch.from_numpy(times))
