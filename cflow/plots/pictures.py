"""Pictures of flat things: grids of images, trajectories in the plane, and training curves."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cflow.errors import ShapeError
from cflow.plots.figure import COLOURS, Path, figure_of, save_figure

__all__ = ["curves", "image_grid", "trajectories"]


def image_grid(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Draw rows of grey images, each under its own label, to a PNG file.

    Args:
        path: The file to write.
        rows: Images `(n, height, width)` by label; dark is high, on one scale for all rows.

    Raises:
        ShapeError: A row holds no images.
        MissingExtraError: matplotlib is not installed.
    """
    if any(images.dim() != 3 or not len(images) for images in rows.values()):
        raise ShapeError(
            "image_grid: every row needs images (n, height, width), got "
            f"{ {label: tuple(images.shape) for label, images in rows.items()} }"
        )
    columns = max(len(images) for images in rows.values())
    figure = figure_of((0.55 * columns + 0.2, 0.82 * len(rows)))
    low = min(float(images.min()) for images in rows.values())
    high = max(float(images.max()) for images in rows.values())
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for (label, images), ax in zip(rows.items(), axes[:, 0], strict=True):
        gap = images.new_full((images.shape[1], 1), low)
        strip = torch.cat([part for image in images for part in (image, gap)][:-1], dim=1)
        ax.imshow(strip.detach().cpu().numpy(), cmap="Greys", vmin=low, vmax=high, aspect="equal")
        ax.set_title(label, fontsize=9, loc="left", pad=3)
        ax.set_anchor("W")
        ax.axis("off")
    save_figure(figure, path)


def trajectories(path: Path, panels: Mapping[str, Tensor]) -> None:
    """Draw the ways of points through time, projected to the plane that their ends span best.

    Args:
        path: The file to write.
        panels: Trajectories `(times, points, features)` by title; one plane for all panels.

    Raises:
        ShapeError: A panel is no trajectory.
        MissingExtraError: matplotlib is not installed.
    """
    for title, panel in panels.items():
        if panel.dim() != 3 or panel.shape[0] < 2:
            raise ShapeError(
                f"trajectories: {title!r} needs shape (times, points, features) with two times at "
                f"least, got {tuple(panel.shape)}"
            )
    figure = figure_of((3.6 * len(panels), 3.7))
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    ends = next(iter(panels.values()))[-1].detach().cpu().double()
    plane = torch.linalg.svd(ends - ends.mean(0), full_matrices=False).Vh[:2].T
    for (title, panel), ax in zip(panels.items(), axes, strict=True):
        ways = (panel.detach().cpu().double() @ plane).numpy()
        for k in range(ways.shape[1]):
            ax.plot(ways[:, k, 0], ways[:, k, 1], color=COLOURS[0], lw=0.6, alpha=0.6)
        ax.scatter(ways[0, :, 0], ways[0, :, 1], s=7, color="#999999", label="t = 0", zorder=3)
        ax.scatter(ways[-1, :, 0], ways[-1, :, 1], s=7, color=COLOURS[1], label="t = 1", zorder=3)
        ax.set_title(title, fontsize=10)
        ax.set_aspect("equal")
        ax.tick_params(labelsize=7)
    axes[0].legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def curves(path: Path, histories: Mapping[str, Sequence[Mapping[str, float | int]]]) -> None:
    """Draw training and validation losses against steps, one panel for each training.

    Args:
        path: The file to write.
        histories: `TrainResult.history` by title.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_of((3.1 * len(histories), 2.6))
    axes = figure.subplots(1, len(histories), squeeze=False)[0]
    for (title, history), ax in zip(histories.items(), axes, strict=True):
        for name, colour in (("loss", COLOURS[0]), ("validation", COLOURS[1])):
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                ax.plot(*zip(*points, strict=True), color=colour, lw=1, label=name)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step", fontsize=8)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("loss", fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    save_figure(figure, path)
