"""Samples as a picture: a histogram, points in the plane, or a grid of images. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from cflow import archive, plots
from cflow.errors import MissingExtraError, ShapeError

__all__ = ["expect_drawable", "picture"]

ROW, SHOWN = 16, 256
COLOUR = "#1b6ca8"


def expect_drawable(event_shape: Sequence[int]) -> None:
    """Raise unless points of that shape make a picture, and matplotlib is there to draw it.

    Raises:
        ShapeError: They are vectors of more than two entries, or neither grey nor coloured images.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> expect_drawable((3, 8, 8))
    """
    shape = tuple(event_shape)
    plane = len(shape) == 1 and shape[0] <= 2
    if not (plane or len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        raise ShapeError(
            f"sample: a png shows numbers, points in the plane and images, not points of shape "
            f"{shape}; name a .npy file"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "sample: matplotlib is not installed; pip install 'cflow[plots]', or name a .npy file"
        ) from error


def picture(path: Path, x: Tensor) -> None:
    """Draw samples `(n, *event)` to a PNG file; of images the first 256."""
    x = x.detach().cpu()
    if x.dim() == 2:
        _points(path, x)
        return
    x = x[:SHOWN].float()
    if x.dim() == 4 and x.shape[1] == 3:
        _coloured(path, x)
        return
    x = x[:, 0] if x.dim() == 4 else x
    plots.image_grid(path, {f"samples {k + 1} to {k + len(row)}": row for k, row in _rows(x)})


def _rows(x: Tensor) -> list[tuple[int, Tensor]]:
    return [(k, x[k : k + ROW]) for k in range(0, len(x), ROW)]


def _points(path: Path, x: Tensor) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    ax = figure.subplots()
    if x.shape[1] == 1:
        ax.hist(x[:, 0].numpy(), bins=min(100, max(10, len(x) // 20)), density=True, color=COLOUR)
    else:
        ax.scatter(*x.T.numpy(), s=4, alpha=0.5, linewidths=0, color=COLOUR)
        ax.set_aspect("equal")
    ax.set_title(f"{len(x)} samples", fontsize=10)
    ax.tick_params(labelsize=7)
    archive.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _coloured(path: Path, x: Tensor) -> None:
    from matplotlib.figure import Figure

    low, high = x.min(), x.max()
    x = (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    rows = -(-len(x) // ROW)
    blank = torch.ones(rows * ROW - len(x), *x.shape[1:])
    grid = rearrange(torch.cat([x, blank]), "(r c) ch h w -> (r h) (c w) ch", r=rows)
    figure = Figure(figsize=(0.55 * ROW, 0.55 * rows), layout="constrained")
    ax = figure.subplots()
    ax.imshow(grid.numpy())
    ax.axis("off")
    archive.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
