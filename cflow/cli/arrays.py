"""Numbers from files, .npy, .npz and .csv: read as data only, refused in one sentence.

Floats keep their width, float32 at least, and integers stay integers. Values are checked here,
where data enters, and nowhere further in.
"""

import ast
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cflow import archive
from cflow.errors import DataError, DomainError, ShapeError, expect_finite, expect_trailing

__all__ = ["one_hot", "read_array", "read_context", "rows_of", "write_array"]


def read_array(path: Path) -> Tensor:
    """Read numbers, one row for each point; a plain list of numbers becomes one column.

    Args:
        path: A .npy file, a .npz file of one array or with one called `data`, or a .csv file, whose
            first line may hold names.

    Raises:
        DataError: The file is missing, damaged, or does not hold numbers.
        DomainError: A value is NaN or infinite; the row is named.
        ShapeError: There is no row.
    """
    readers: dict[str, Callable[[Path], Any]] = {".npy": _npy, ".npz": _npz, ".csv": _csv}
    if path.suffix not in readers:
        raise DataError(f"cannot read {path}: data comes in .npy, .npz or .csv files")
    if not path.is_file():
        raise DataError(f"cannot read {path}: there is no such file")
    try:
        array = np.asarray(readers[path.suffix](path))
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return _tensor(path, array)


def read_context(given: str, shape: tuple[int, ...] | None, classes: int = 0) -> Tensor:
    """Read conditions: a file, or one condition as a literal such as `3` or `(0.5, 1.0)`.

    Args:
        given: What was typed.
        shape: Shape of one condition of the flow, () for class labels; None where the flow takes
            none.
        classes: Number of classes of labels, where it is known.

    Returns:
        Conditions `(rows, *shape)`; whole numbers for a flow on vectors become unit vectors.

    Raises:
        DomainError: The flow takes no context, or a label is none of its classes.
        ShapeError: The conditions have another shape.
    """
    if shape is None:
        raise DomainError("--context: this flow is unconditional; leave the context out")
    values = _context(given)
    whole = not values.is_floating_point()
    if shape == ():
        values = values.squeeze(-1) if values.dim() == 2 and values.shape[1] == 1 else values
        if not whole or values.dim() != 1:
            raise DomainError(
                f"--context: this flow takes class labels, whole numbers (rows,), got "
                f"{values.dtype} of shape {tuple(values.shape)}"
            )
        return _labels(values, classes)
    if whole and len(shape) == 1 and shape[0] > 1 and values.shape[1:] == (1,):
        return one_hot(_labels(values[:, 0], shape[0]), shape[0])
    values = values.to(torch.get_default_dtype())
    values = values[None] if values.shape == shape else values
    if values.dim() != len(shape) + 1:
        raise ShapeError(
            f"--context: needs shape (rows, {', '.join(map(str, shape))}), got "
            f"{tuple(values.shape)}"
        )
    expect_trailing("--context", "context", values, shape)
    return values


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return labels as unit vectors, the context of a flow on vectors.

    Example:
        >>> one_hot(torch.tensor([1, 0]), 2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return torch.eye(classes)[labels]


def rows_of(context: Tensor | None, n: int) -> Tensor | None:
    """Return n conditions, those given taken in turn.

    Example:
        >>> rows_of(torch.tensor([7, 8]), 5).tolist()
        [7, 8, 7, 8, 7]
    """
    return None if context is None else context[torch.arange(n) % len(context)]


def write_array(path: Path, values: Tensor) -> None:
    """Write a .npy file; the old one stands until the new one is whole."""

    def fill(file: Path) -> None:
        with open(file, "wb") as stream:  # np.save would change the name
            np.save(stream, values.detach().cpu().numpy(), allow_pickle=False)

    archive.write_atomically(path, fill)


def _npy(path: Path) -> Any:  # noqa: ANN401
    return np.load(path, allow_pickle=False)


def _npz(path: Path) -> Any:  # noqa: ANN401
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        if len(names) != 1 and "data" not in names:
            raise ValueError(f"it holds {names}; keep one array, or call one `data`")
        return arrays[names[0] if len(names) == 1 else "data"]


def _csv(path: Path) -> Any:  # noqa: ANN401
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    try:
        [float(cell) for cell in first.split(",")]
    except ValueError:
        skip = 1  # names of columns
    else:
        skip = 0
    table = np.loadtxt(path, delimiter=",", skiprows=skip, ndmin=2, encoding="utf-8")
    whole = bool(np.isfinite(table).all()) and bool((table == np.floor(table)).all())
    return table.astype(np.int64) if whole else table  # labels and counts are written so


def _tensor(path: Path, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "iufb":
        raise DataError(f"cannot read {path}: it holds {array.dtype}, not numbers")
    if array.ndim < 1 or 0 in array.shape:
        raise ShapeError(f"cannot use {path}: it has no rows, its shape is {array.shape}")
    if array.dtype.kind == "f":
        values = torch.from_numpy(array.astype(np.float32 if array.dtype.itemsize <= 4 else float))
    else:
        small = array.dtype in (np.bool_, np.uint8)
        values = torch.from_numpy(array.astype(np.uint8 if small else np.int64))
    expect_finite(str(path), "the data", values)
    return values[:, None] if values.dim() == 1 else values


def _context(given: str) -> Tensor:
    path = Path(given)
    if path.suffix in (".npy", ".npz", ".csv") or path.exists():
        return read_array(path)
    try:
        values = torch.tensor(ast.literal_eval(given))
    except (SyntaxError, ValueError, TypeError, RuntimeError) as error:
        raise DomainError(
            f"--context: {given!r} is neither a .npy, .npz or .csv file nor a number or a tuple"
        ) from error
    return values.reshape(1, 1) if values.dim() == 0 else values


def _labels(labels: Tensor, classes: int) -> Tensor:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes and high >= classes):
        raise DomainError(
            f"--context: labels must lie in 0 .. {classes - 1 if classes else '...'}, got "
            f"{low if low < 0 else high}"
        )
    return labels.long()
