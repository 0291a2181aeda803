"""Where the noise of samples comes from, a seed or a file, and how it is carried: in batches."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.cli.arrays import read_array
from cflow.errors import DomainError, ShapeError

__all__ = ["in_batches", "read_noise", "standard_noise"]


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


def standard_noise(law: str, n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw the noise `(n, *shape)` that an exported file takes, as its flow draws it from the seed.

    Raises:
        DomainError: The law is neither the standard normal nor the uniform one.

    Example:
        >>> standard_noise("Gaussian", 5, (2,), 0).shape
        torch.Size([5, 2])
    """
    draw = {"Gaussian": torch.randn, "Uniform": torch.rand}.get(law)
    if draw is None:
        raise DomainError(
            f"sample: this file starts from noise of the law {law}, which cannot be drawn here; "
            "give it by --noise noise.npy"
        )
    return draw((n, *shape), generator=Generator().manual_seed(seed))


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
