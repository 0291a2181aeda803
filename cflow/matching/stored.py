"""Pairs on disk: one memory-mapped `.npy` file for each tensor, and a note of how far they are.

    folder/x0.npy, x1.npy, context.npy         all rows, reserved before the first is written
    folder/pairs.json                          what was asked for, and how many chunks are done

A chunk counts once its rows are flushed to the files and the note has been replaced, so a kill
costs the chunk under way. NumPy reads the files by itself: `numpy.load("x1.npy", mmap_mode="r")`.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cflow.errors import CheckpointError, DomainError, expect_positive
from cflow.matching.manifest import agree, read_note, write_note
from cflow.matching.shuffle import Shuffle

__all__ = ["PairWriter", "StoredPairs"]

Tensors: TypeAlias = tuple[Tensor, ...]

NOTE = "pairs.json"
NAMES = ("x0", "x1", "context")


class StoredPairs:
    """Give batches of pairs from the files of a folder, which are never read as a whole.

    `Trainer.fit` takes it in place of data, or as validation data. Every pair is used once an
    epoch, in a fresh order; batch number k follows from its size, the seed and k alone.

    Args:
        folder: Where `reflow_pairs` has stored pairs, all of them.

    Attributes:
        arrays: The memory maps by name, `x0`, `x1` and, for flows with a context, `context`.
        asked: What they were made from: numbers, seed, solver, and digests of teacher and data.

    Raises:
        CheckpointError: Files are missing, truncated, of another shape than the note says, or not
            all pairs are there.

    Example:
        >>> import tempfile
        >>> from cflow import recipes
        >>> from cflow.matching import reflow_pairs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pairs = reflow_pairs(recipes.cnf(2), 100, folder=folder)
        ...     x0, x1 = next(StoredPairs(folder).batches(20, seed=0))
        >>> len(pairs), x1.shape
        (100, torch.Size([20, 2]))
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        note = _note("StoredPairs", self.folder)
        if note is None:
            raise CheckpointError(
                f"StoredPairs: there is no {NOTE} in {self.folder}; make pairs with "
                "reflow_pairs(flow, n, folder=...)"
            )
        self.asked: dict[str, Any] = note["asked"]
        chunks = -(-self.asked["n"] // self.asked["chunk"])
        if note["done"] < chunks:
            raise CheckpointError(
                f"StoredPairs: {self.folder} holds {note['done']} of {chunks} chunks of pairs; "
                "call reflow_pairs as before, and it will make the rest"
            )
        self.arrays = _open("StoredPairs", self.folder, note, writable=False)

    def __len__(self) -> int:
        return self.asked["n"]

    def tensors(self, rows: slice | Tensor) -> Tensors:
        """Read some pairs, in order: starts, ends, and conditions where there are any."""
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        return tuple(torch.from_numpy(np.array(array[index])) for array in self.arrays.values())

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[Tensors]:
        """Give batches `(x0, x1)` or `(x0, x1, context)` without end, from number `start` on.

        Raises:
            DomainError: The batch is empty, or the start negative.
        """
        expect_positive("StoredPairs.batches", batch=batch)
        if start < 0:
            raise DomainError(f"StoredPairs.batches: start must be 0 or more, got {start}")
        shuffle = Shuffle(len(self), f"{seed} stored")
        first = start * batch
        while True:
            yield self.tensors(shuffle.rows(first, batch))
            first += batch


class PairWriter:
    """Write pairs chunk by chunk into a folder, going on where an earlier writer was stopped.

    Args:
        where: Name of the caller, for errors.
        folder: Where the files go; it is made when missing.
        asked: What the pairs are made from; has `n` and `chunk`.

    Attributes:
        done: Number of chunks that are in the files.

    Raises:
        CheckpointError: The folder holds other pairs, other files of the same names, or damaged
            ones.
    """

    def __init__(
        self, where: str, folder: str | os.PathLike[str], asked: Mapping[str, Any]
    ) -> None:
        self.where, self.folder, self.asked = where, Path(folder), dict(asked)
        note = _note(where, self.folder)
        self.done: int = 0 if note is None else note["done"]
        if note is not None:
            agree(where, self.folder / NOTE, note["asked"], self.asked)
        self._note = note or {"asked": self.asked, "arrays": {}, "done": 0}
        self._arrays: dict[str, np.ndarray] = {}
        if self.done:
            self._arrays = _open(where, self.folder, self._note, writable=True)
        elif note is None and (old := [f"{n}.npy" for n in NAMES if self._file(n).exists()]):
            raise CheckpointError(
                f"{where}: {self.folder} holds {old[0]} without {NOTE}, which is not ours to "
                "overwrite; choose another folder"
            )

    def write(self, tensors: Tensors) -> None:
        """Write the next chunk, then count it.

        Raises:
            CheckpointError: The folder cannot be written, or the disk is full.
            DomainError: NumPy has no such dtype.
        """
        rows = [_as_array(self.where, tensor) for tensor in tensors]
        if not self._arrays:
            self._reserve(rows)
        first = self.done * self.asked["chunk"]
        for array, part in zip(self._arrays.values(), rows, strict=True):
            array[first : first + len(part)] = part
            array.flush()  # type: ignore[attr-defined]
        self.done += 1
        self._note["done"] = self.done
        write_note(self.folder / NOTE, self._note)

    def _reserve(self, rows: list[np.ndarray]) -> None:
        """Make the files at full length: a disk that is too small says so now, not in the end."""
        n = self.asked["n"]
        named = dict(zip(NAMES, rows, strict=False))
        self._note["arrays"] = {
            name: {"shape": [n, *part.shape[1:]], "dtype": part.dtype.str}
            for name, part in named.items()
        }
        write_note(self.folder / NOTE, self._note)  # first, so that the files are known as ours
        reserve = getattr(os, "posix_fallocate", None)  # not on every system
        try:
            for name, part in named.items():
                self._arrays[name] = np.lib.format.open_memmap(
                    self._file(name), mode="w+", dtype=part.dtype, shape=(n, *part.shape[1:])
                )
                if reserve is not None:
                    with open(self._file(name), "rb+") as file:
                        reserve(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise CheckpointError(
                f"{self.where}: cannot write {n} pairs to {self.folder}: "
                f"{error.strerror or error}; choose a folder with room for them"
            ) from error

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _note(where: str, folder: Path) -> dict[str, Any] | None:
    note = read_note(where, folder / NOTE)
    if note is not None:
        numbers = (note.get("done"), note["asked"].get("n"), note["asked"].get("chunk"))
        if not all(isinstance(k, int) for k in numbers) or not isinstance(note.get("arrays"), dict):
            raise CheckpointError(
                f"{where}: {folder / NOTE} is no note of pairs; choose another folder"
            )
    return note


def _open(
    where: str, folder: Path, note: Mapping[str, Any], *, writable: bool
) -> dict[str, np.ndarray]:
    """Map the files, and make sure that they are those of the note."""
    arrays = {}
    for name, described in note["arrays"].items():
        path = folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{where}: cannot read {path}, it is missing or damaged ({error}); move its folder "
                "away to make the pairs anew"
            ) from error
        if list(array.shape) != described["shape"] or array.dtype.str != described["dtype"]:
            raise CheckpointError(
                f"{where}: {path} should hold {described['dtype']} of shape {described['shape']}, "
                f"got {array.dtype.str} of shape {list(array.shape)}; move its folder away to make "
                "the pairs anew"
            )
        # Mapped for writing only after this: that mode makes a file that is too short longer.
        arrays[name] = np.load(path, mmap_mode="r+", allow_pickle=False) if writable else array
    return arrays


def _as_array(where: str, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise DomainError(
            f"{where}: NumPy files have no bfloat16; make the pairs in float32, or without a folder"
        )
    return tensor.detach().cpu().numpy()
