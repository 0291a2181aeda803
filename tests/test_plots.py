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


def test_pictures_of_manifolds(tmp_path: Path) -> None:
    from cflow.data import meshes

    sphere = lambda x: 3 * x[:, 2]
    events = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    plots.globe(tmp_path / "a.png", sphere, {"train": events, "test": events[:5]}, size=20)
    torus = lambda x: x.cos().sum(-1)
    plots.ramachandran(tmp_path / "b.png", {"law": torus, "drawn": 6 * torch.rand(99, 2)}, size=12)
    vertices, faces = meshes.icosphere(1)
    values = torch.arange(len(faces)).double()
    plots.surface(tmp_path / "c.png", vertices, faces, {"z": values}, points={"x": vertices})
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    with pytest.raises(ShapeError, match="events 'flat' must end in shape"):
        plots.globe(tmp_path / "d.png", sphere, {"flat": torch.rand(5, 2)})
    with pytest.raises(ShapeError, match="one value for each of the 80 faces"):
        plots.surface(tmp_path / "d.png", vertices, faces, {"z": vertices[:, 2]})


def test_points_behind_a_surface_are_out_of_sight() -> None:
    """A sphere that a ball of a quarter of its radius hides in part, from an eye up the axis."""
    from cflow.data import meshes
    from cflow.plots.manifolds import _in_sight

    vertices, faces = meshes.icosphere(3)
    centre = torch.tensor([0.3, 0.2, 2.0])
    both = torch.cat([vertices[faces], 0.25 * vertices[faces] + centre])
    a, b, c = both.unbind(1)
    facing = torch.linalg.cross(b - a, c - a)[:, 2] > 1e-6
    x = vertices[faces].mean(1)
    across = torch.linalg.vector_norm(x[:, :2] - centre[:2], dim=1)
    clear = (x[:, 2].abs() > 0.2) & ((across - 0.25).abs() > 0.02)  # away from both outlines
    seen = _in_sight(x, both[facing])
    assert 500 < seen.sum() < 640
    assert torch.equal(seen[clear], ((x[:, 2] > 0) & (across > 0.25))[clear])
