"""What all pictures share: colours, and a figure that is written whole or not at all."""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

from cflow import archive
from cflow.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Path", "figure_of", "save_figure"]

Path: TypeAlias = str | os.PathLike[str]

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b")


def figure_of(size: tuple[float, float]) -> "Figure":
    """Return an empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError as error:
        raise MissingExtraError(
            "plots: matplotlib is not installed; pip install 'cflow[plots]'"
        ) from error
    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:  # noqa: ANN401
    """Write a figure to a PNG file."""
    archive.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
