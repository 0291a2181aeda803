"""Meshes: sizes, closed surfaces, files of several kinds, and words for those that are none."""

import builtins
import math
from pathlib import Path

import pytest
import torch

from cflow.data import find, meshes
from cflow.errors import DataError, DomainError, MissingExtraError


def volume(vertices: torch.Tensor, faces: torch.Tensor) -> float:
    """Return the volume inside, negative where faces turn the wrong way."""
    return float(torch.linalg.det(vertices[faces]).sum() / 6)


def characteristic(vertices: torch.Tensor, faces: torch.Tensor) -> int:
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    edges, count = torch.unique(edges, dim=0, return_counts=True)
    assert (count == 2).all()
    return len(vertices) - len(edges) + len(faces)


@pytest.mark.parametrize(("name", "sizes"), [("bunny", (2502, 5000)), ("spot", (2930, 5856))])
def test_the_published_meshes_are_spheres(name: str, sizes: tuple[int, int]) -> None:
    pytest.importorskip("trimesh")
    if find(meshes.FILES[name]) is None:
        pytest.skip("the meshes are not on disk; name a folder with them in CFLOW_DATA")
    vertices, faces = meshes.load(name)
    assert (len(vertices), len(faces)) == sizes
    assert vertices.dtype == torch.float64
    assert characteristic(vertices, faces) == 2
    assert volume(vertices, faces) > 0
    assert 1 < (vertices.amax(0) - vertices.amin(0)).max() < 3


def test_spheres_and_tori() -> None:
    for level in range(4):
        vertices, faces = meshes.icosphere(level)
        assert len(faces) == 20 * 4**level
        assert characteristic(vertices, faces) == 2
        assert torch.allclose(torch.linalg.vector_norm(vertices, dim=1), torch.ones(len(vertices)))
    assert volume(vertices, faces) == pytest.approx(4 / 3 * math.pi, rel=0.02)
    vertices, faces = meshes.torus(80, 40, radius=1.0, tube=0.4)
    assert characteristic(vertices, faces) == 0
    assert volume(vertices, faces) == pytest.approx(2 * math.pi**2 * 0.4**2, rel=0.02)
    with pytest.raises(DomainError, match="subdivisions must be at least 0, got -1"):
        meshes.icosphere(-1)
    with pytest.raises(DomainError, match="0 < tube < radius"):
        meshes.torus(tube=2.0)


@pytest.mark.parametrize("kind", ["obj", "ply", "off", "stl"])
def test_files_are_read_back(tmp_path: Path, kind: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    vertices, faces = meshes.icosphere(1)
    path = tmp_path / f"sphere.{kind}"
    trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False).export(path)
    found = meshes.read(path)
    assert found.vertices.shape == vertices.shape  # stl repeats them for every face
    assert characteristic(*found) == 2
    assert volume(*found) == pytest.approx(volume(vertices, faces), rel=1e-5)


def test_seams_of_textures_are_closed_and_polygons_cut(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    path = tmp_path / "cube.obj"
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    sides = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    lines = [f"v {x} {y} {z}" for x, y, z in corners] + ["vt 0 0", "vt 0 1", "vt 1 1", "vt 1 0"]
    lines += ["f " + " ".join(f"{v}/{k + 1}" for k, v in enumerate(side)) for side in sides]
    path.write_text("\n".join(lines))
    vertices, faces = meshes.read(path)
    assert len(vertices) == 8
    assert len(faces) == 12
    assert characteristic(vertices, faces) == 2
    assert volume(vertices, faces) == pytest.approx(1.0)


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    with pytest.raises(DataError, match="there is no file"):
        meshes.read(tmp_path / "missing.obj")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (tmp_path / "empty.obj").write_text("")
    (tmp_path / "words.obj").write_text("nothing\n")
    (tmp_path / "words.xyzw").write_text("nothing\n")
    (tmp_path / "short.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    (tmp_path / "nan.obj").write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "cut.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement ver")
    for name in ("points.obj", "empty.obj", "words.obj", "words.xyzw", "short.obj", "nan.obj"):
        with pytest.raises(DataError, match=rf"meshes.read: .*{name}"):
            meshes.read(tmp_path / name)
    with pytest.raises(DataError, match=r"cut.ply"):
        meshes.read(tmp_path / "cut.ply")


def test_bad_names_damage_and_a_missing_extra(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no mesh 'teapot'; known are \['bunny', 'spot'\]"):
        meshes.load("teapot")
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes/bunny_simp.obj").write_text("v 0 0 0\n")
    with pytest.raises(DataError, match="damaged"):
        meshes.load("bunny")
    real = builtins.__import__

    def missing(name: str, *args, **kwargs):
        if name == "trimesh":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'cflow\[meshes\]'"):
        meshes.read(tmp_path / "meshes/bunny_simp.obj")
