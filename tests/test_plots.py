"""Pictures are written whole, or not at all."""

from pathlib import Path

import pytest
import torch

from cflow import plots
from cflow.errors import ShapeError

PNG = b"\x89PNG\r\n"


def test_pictures_are_png_files(tmp_path: Path) -> None:
    plots.image_grid(
        tmp_path / "a.png", {"real": torch.rand(4, 8, 8), "drawn": torch.rand(2, 8, 8)}
    )
    plots.trajectories(
        tmp_path / "b.png", {"one": torch.randn(5, 10, 6), "two": torch.randn(5, 3, 6)}
    )
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "validation": 1.5}]
    plots.curves(tmp_path / "c.png", {"run": history})
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="image_grid"):
        plots.image_grid(tmp_path / "a.png", {"flat": torch.rand(4, 64)})
    with pytest.raises(ShapeError, match="two times at least"):
        plots.trajectories(tmp_path / "b.png", {"point": torch.rand(1, 4, 2)})
    assert not list(tmp_path.iterdir())
