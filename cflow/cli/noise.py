"""Noise from a file, and how points are carried: in batches."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.cli.arrays import read_array
from cflow.errors import ShapeError

__all__ = ["in_batches", "read_noise"]


def read_noise(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read noise `(n, *shape)` from a file.

    Raises:
        ShapeError: It has another shape.
    """
    noise = read_array(path).to(torch.get_default_dtype())
    if tuple(noise.shape[1:]) != tuple(shape):
        wanted = ", ".join(map(str, shape))
        raise ShapeError(
            f"--noise: {path} must hold noise of shape (n, {wanted}), got {tuple(noise.shape)}"
        )
    return noise


def in_batches(
    call: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    context: Tensor | None,
    batch: int,
) -> Tensor:
    """Return `call(x, context)` row by row, some rows together.

    Example:
        >>> in_batches(lambda x, context: 2 * x, torch.arange(5), None, 2)
        tensor([0, 2, 4, 6, 8])
    """
    parts = []
    with tqdm(total=len(x), disable=None, leave=False) as bar:  # None: silent without a terminal
        for k in range(0, len(x), batch):
            rows = slice(k, k + batch)
            parts.append(call(x[rows], None if context is None else context[rows]))
            bar.update(len(parts[-1]))
    return torch.cat(parts)
