"""Triangle meshes: the Stanford bunny and Spot the cow, files of any kind, spheres and tori.

A mesh is its vertices, points in space, and its faces, three vertices each, counted from 0 in the
order that turns left as seen from outside.

Source: Stanford Computer Graphics Laboratory (1994), the Stanford 3D scanning repository; Crane,
Pinkall and Schroeder (2013), Robust fairing via conformal curvature flow (Spot, CC0). Both were
simplified to about 5000 faces, as in Chen and Lipman (2024), Flow matching on general geometries,
arXiv 2302.03660; copies in harryjo97/riemannian-diffusion-mixture.
"""

import math
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch
from cflow.errors import DataError, DomainError, MissingExtraError

__all__ = ["FILES", "Triangles", "icosphere", "load", "read", "torus"]

ADDRESS = (
    "https://raw.githubusercontent.com/harryjo97/riemannian-diffusion-mixture/"
    "e77b2f8968457bdfc238c247df06cf977200bea5/data/mesh/"
)

FILES = {
    "bunny": RemoteFile(
        "meshes/bunny_simp.obj",
        ADDRESS + "bunny.obj",
        "4de73019859d1f959de20977f8a06242c8ede461138c9ea004c7a8ceb59ae26e",
    ),
    "spot": RemoteFile(
        "meshes/spot_simp.obj",
        ADDRESS + "spot.obj",
        "0738b5e8608fed74e5e8c7aa8dd0af97b4b74f9f6cbf7aac84cd7e40b2e44a75",
    ),
}
SCALES = {"bunny": 1 / 250, "spot": 1.0}


class Triangles(NamedTuple):
    """Hold vertices `(V, 3)`, float64, and faces `(F, 3)`, int64."""

    vertices: Tensor
    faces: Tensor


def load(name: str) -> Triangles:
    """Load a mesh that is used to compare flows on surfaces.

    Args:
        name: "bunny" (2502 vertices, 5000 faces, coordinates times 1/250) or "spot" (2930 vertices,
            5856 faces).

    Returns:
        A closed surface about two units long.

    Raises:
        DomainError: There is no such mesh.
        DataError: The file is damaged, or cannot be fetched.
        MissingExtraError: trimesh is not installed, or pooch where the file has to be fetched.

    Example:
        >>> vertices, faces = load("bunny")  # doctest: +SKIP
        >>> len(faces)  # doctest: +SKIP
        5000
    """
    if name not in FILES:
        raise DomainError(f"meshes.load: there is no mesh {name!r}; known are {list(FILES)}")
    vertices, faces = read(fetch(FILES[name]))
    return Triangles(vertices * SCALES[name], faces)


def read(path: str | os.PathLike[str]) -> Triangles:
    r"""Read a mesh from a file: .obj, .ply, .stl, .off and whatever else trimesh knows.

    Vertices at exactly the same place become one, as files repeat them along seams of textures;
    polygons are cut into triangles.

    Args:
        path: The file.

    Returns:
        The mesh as it stands there, whether closed or not.

    Raises:
        DataError: The file is missing, damaged, of an unknown kind, or holds no triangles.
        MissingExtraError: trimesh is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "face.obj"
        >>> _ = path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
        >>> read(path).faces
        tensor([[0, 1, 2]])
    """
    try:
        import trimesh  # an extra
    except ImportError as error:
        raise MissingExtraError(
            "meshes.read: trimesh, which reads the files, is not installed; "
            "pip install 'cflow[meshes]'"
        ) from error
    if not os.path.isfile(path):
        raise DataError(f"meshes.read: there is no file {path}")
    try:
        mesh = trimesh.load_mesh(os.fspath(path), process=False)
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        faces = np.asarray(mesh.faces, dtype=np.int64)
    except Exception as error:  # its readers raise whatever they stumble over
        raise DataError(f"meshes.read: {path} cannot be read as a mesh ({error!r})") from error
    if faces.ndim != 2 or faces.shape[1:] != (3,) or not len(faces):
        raise DataError(
            f"meshes.read: {path} holds no triangles, but {len(vertices)} vertices only; a surface "
            "needs faces"
        )
    outside = (faces < 0) | (faces >= len(vertices))
    if outside.any():
        raise DataError(
            f"meshes.read: {path} is damaged: a face names vertex {int(faces[outside][0])}, and "
            f"there are {len(vertices)}"
        )
    if not np.isfinite(vertices).all():
        raise DataError(f"meshes.read: {path} is damaged: a coordinate is not finite")
    _, first, number = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as in the file
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    faces = place[number.reshape(-1)][faces]
    return Triangles(torch.from_numpy(vertices[first[order]]), torch.from_numpy(faces))


def icosphere(subdivisions: int = 2) -> Triangles:
    """Return a unit sphere of 20 * 4^subdivisions nearly equal faces, an icosahedron split.

    Raises:
        DomainError: subdivisions is negative.

    Example:
        >>> vertices, faces = icosphere(1)
        >>> len(vertices), len(faces)
        (42, 80)
    """
    if subdivisions < 0:
        raise DomainError(f"meshes.icosphere: subdivisions must be at least 0, got {subdivisions}")
    golden = (1 + math.sqrt(5)) / 2
    signs = [(a, b) for b in (1, -1) for a in (-1, 1)]
    one = torch.tensor([[a, b * golden, 0.0] for a, b in signs], dtype=torch.float64)
    vertices = torch.cat([one, one.roll(1, 1), one.roll(2, 1)])
    # the faces are the triples of vertices that all lie two apart, turned to face outwards
    near = (torch.cdist(vertices, vertices) - 2).abs() < 1e-3
    triples = torch.combinations(torch.arange(12), 3)
    faces = triples[near[triples, triples.roll(1, 1)].all(1)]
    outwards = torch.linalg.det(vertices[faces]) > 0
    faces = torch.where(outwards[:, None], faces, faces.flip(1))
    vertices = vertices / torch.linalg.vector_norm(vertices, dim=-1, keepdim=True)
    for _ in range(subdivisions):
        ends = torch.stack([faces, faces.roll(-1, 1)], -1).sort(-1).values
        edges, number = torch.unique(ends.reshape(-1, 2), dim=0, return_inverse=True)
        middle = vertices[edges].sum(1)
        middle = middle / torch.linalg.vector_norm(middle, dim=-1, keepdim=True)
        a, b, c = faces.unbind(1)
        ab, bc, ca = (number.reshape(-1, 3) + len(vertices)).unbind(1)
        corners = ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))
        faces = torch.cat([torch.stack(face, 1) for face in corners])
        vertices = torch.cat([vertices, middle])
    return Triangles(vertices, faces)


def torus(rings: int = 24, sides: int = 12, *, radius: float = 1.0, tube: float = 0.4) -> Triangles:
    """Return a torus about the third axis, of 2 * rings * sides faces.

    Args:
        rings: Corners the long way round, at least 3.
        sides: Corners of the tube, at least 3.
        radius: Of the circle in the middle of the tube.
        tube: Radius of the tube.

    Raises:
        DomainError: Too few corners, or not 0 < tube < radius.

    Example:
        >>> vertices, faces = torus(8, 5)
        >>> len(vertices), len(faces)
        (40, 80)
    """
    if rings < 3 or sides < 3 or not 0 < tube < radius:
        raise DomainError(
            "meshes.torus: rings and sides must be at least 3 and 0 < tube < radius, got "
            f"rings={rings}, sides={sides}, radius={radius}, tube={tube}"
        )
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(sides), indexing="ij")
    i, j = i.flatten(), j.flatten()
    a, b = 2 * math.pi * i.double() / rings, 2 * math.pi * j.double() / sides
    out = radius + tube * b.cos()
    vertices = torch.stack([out * a.cos(), out * a.sin(), tube * b.sin()], 1)
    corner = lambda di, dj: (i + di) % rings * sides + (j + dj) % sides
    low = torch.stack([corner(0, 0), corner(1, 0), corner(1, 1)], 1)
    high = torch.stack([corner(0, 0), corner(1, 1), corner(0, 1)], 1)
    return Triangles(vertices, torch.cat([low, high]))
