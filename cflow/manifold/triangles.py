"""A closed surface of triangles: its faces as flat pieces, and how they join.

Every face has a plane of its own, with coordinates q = axes (x - origin) in which its metric is
the usual one. Edge k lies opposite corner k, and is given by affine functions of q:

    height_k(q) = n_k.q + c_k over the edge, inwards      along_k(q) = t_k.q + d_k from its start

The plane across the edge is unfolded into this one by a rotation and a shift of its coordinates,
q' = turn q + shift, where a turn is a unit complex number, written (cos, sin).
Source: Polthier and Schmies (1998), Straightest geodesics on polyhedral surfaces.
"""

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_finite

__all__ = ["Faces", "build_faces", "converted", "rotated"]

FLAT = 1e-10  # area over the square of the longest edge below which a face has no plane


class Faces(NamedTuple):
    """Hold what is known of each of F faces, on the leading axis.

    Attributes:
        corners: Vertices, in the order that turns left as seen from outside, `(F, 3)`.
        origin: The centroid, `(F, 3)`.
        axes: Two orthonormal directions in the plane, `(F, 2, 3)`.
        normal: The unit normal, outwards, `(F, 3)`.
        points: The corners in the plane, `(F, 3, 2)`.
        inward: Unit normals n of the edges in the plane, `(F, 3, 2)`.
        inward_at: Constants c of the heights over the edges, `(F, 3)`.
        forth: Unit directions t of the edges, `(F, 3, 2)`.
        forth_at: Constants d of the lengths along the edges, `(F, 3)`.
        length: Lengths of the edges, `(F, 3)`.
        height: Heights of the corners over the edges opposite, `(F, 3)`.
        across: The faces across the edges, `(F, 3)`.
        entry: Which of its edges leads back, `(F, 3)`.
        turn: Rotations of the coordinates into those across, `(F, 3, 2)`.
        shift: Shifts after them, `(F, 3, 2)`.
        area: Areas, `(F,)`.
    """

    corners: Tensor
    origin: Tensor
    axes: Tensor
    normal: Tensor
    points: Tensor
    inward: Tensor
    inward_at: Tensor
    forth: Tensor
    forth_at: Tensor
    length: Tensor
    height: Tensor
    across: Tensor
    entry: Tensor
    turn: Tensor
    shift: Tensor
    area: Tensor

    def plane(self, face: Tensor, x: Tensor) -> Tensor:
        """Return the coordinates `(N, 2)` of points `(N, 3)` in the planes of their faces."""
        return (self.axes[face] * (x - self.origin[face])[..., None, :]).sum(-1)

    def flat(self, face: Tensor, u: Tensor) -> Tensor:
        """Return the coordinates `(N, 2)` of directions `(N, 3)` in the planes of their faces."""
        return (self.axes[face] * u[..., None, :]).sum(-1)

    def raised(self, face: Tensor, w: Tensor) -> Tensor:
        """Return the directions `(N, 3)` that have coordinates `(N, 2)`."""
        return (self.axes[face] * w[..., None]).sum(-2)

    def heights(self, face: Tensor, q: Tensor) -> Tensor:
        """Return the heights of points of the planes over the three edges, `(N, 3)`."""
        return (self.inward[face] * q[..., None, :]).sum(-1) + self.inward_at[face]

    def barycentric(self, face: Tensor, x: Tensor) -> Tensor:
        """Return the weights of the corners, `(N, 3)`, which sum to 1."""
        return self.heights(face, self.plane(face, x)) / self.height[face]


def rotated(w: Tensor, turn: Tensor) -> Tensor:
    """Return the product of complex numbers, written (real, imaginary).

    Example:
        >>> rotated(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    a, b = w.unbind(-1)
    c, s = turn.unbind(-1)
    return torch.stack([a * c - b * s, a * s + b * c], -1)


def build_faces(vertices: Tensor, corners: Tensor) -> Faces:
    """Check that triangles make up a closed surface, and return what is known of each.

    Args:
        vertices: Points in space `(V, 3)`.
        corners: Indices of vertices `(F, 3)`, all faces turning the same way round.

    Raises:
        ShapeError: The tensors have other shapes.
        DomainError: They are no closed, connected, consistently oriented surface; the message says
            where.

    Example:
        >>> vertices = torch.cat([torch.zeros(1, 3), torch.eye(3)])
        >>> corners = torch.tensor([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]])
        >>> faces = build_faces(vertices, corners)
        >>> faces.across.tolist()
        [[3, 2, 1], [3, 0, 2], [3, 1, 0], [1, 2, 0]]
    """
    _expect_indices(vertices, corners)
    triangles = vertices[corners]
    origin = triangles.mean(1)
    sides = triangles.roll(-2, 1) - triangles.roll(-1, 1)  # edge k runs from corner k + 1 to k + 2
    double = torch.linalg.cross(sides[:, 1], sides[:, 2])
    area = 0.5 * torch.linalg.vector_norm(double, dim=-1)
    length = torch.linalg.vector_norm(sides, dim=-1)
    flat = ~(area > FLAT * length.amax(1).square())
    if bool(flat.any()):
        bad = int(flat.nonzero()[0])
        raise DomainError(
            f"Mesh: face {bad} with corners {corners[bad].tolist()} is degenerate, its area is "
            f"{float(area[bad]):.3g}; remove such faces ({int(flat.sum())} of {len(flat)})"
        )
    across, entry = _joined(corners)
    _expect_one_surface(len(vertices), corners, across, entry)
    normal = double / (2 * area[:, None])
    first = sides[:, 2] / length[:, 2:]
    axes = torch.stack([first, torch.linalg.cross(normal, first)], 1)
    points = torch.einsum("fij,fkj->fki", axes, triangles - origin[:, None])
    forth = (points.roll(-2, 1) - points.roll(-1, 1)) / length[..., None]
    inward = torch.stack([-forth[..., 1], forth[..., 0]], -1)
    start = points.roll(-1, 1)
    forth_at, inward_at = -(forth * start).sum(-1), -(inward * start).sum(-1)
    there = forth[across, entry]  # the same edge, seen from across it runs the other way
    turn = rotated(-there, forth * torch.tensor([1.0, -1.0]).to(forth))
    shift = points[across, (entry + 2) % 3] - rotated(start, turn)
    folded = torch.linalg.vector_norm(normal[:, None] + normal[across], dim=-1) < FLAT
    if bool(folded.any()):
        bad = folded.nonzero()[0].tolist()
        raise DomainError(
            f"Mesh: faces {bad[0]} and {int(across[bad[0], bad[1]])} are folded flat onto each "
            "other, so that the surface has no inside there; remove both"
        )
    return Faces(
        corners,
        origin,
        axes,
        normal,
        points,
        inward,
        inward_at,
        forth,
        forth_at,
        length,
        2 * area[:, None] / length,
        across,
        entry,
        turn,
        shift,
        area,
    )


T = TypeVar("T", bound=tuple)


def converted(tables: T, dtype: torch.dtype, device: torch.device) -> T:
    """Return a named tuple of tensors whose floating ones have a dtype, all on a device."""
    moved = (
        leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)
        for leaf in tables
    )
    return type(tables)(*moved)


def _expect_indices(vertices: Tensor, corners: Tensor) -> None:
    for name, value in (("vertices", vertices), ("faces", corners)):
        if value.dim() != 2 or value.shape[1] != 3:
            raise ShapeError(
                f"Mesh: {name} must have shape (n, 3), got {tuple(value.shape)}; faces are "
                "triangles, each three indices of vertices"
            )
    if corners.is_floating_point() or corners.dtype == torch.bool:
        raise DomainError(f"Mesh: faces must be integer indices, got {corners.dtype}")
    expect_finite("Mesh", "vertices", vertices)
    if len(corners) < 4:
        raise DomainError(f"Mesh: a closed surface has 4 faces at least, got {len(corners)}")
    outside = ((corners < 0) | (corners >= len(vertices))).any(1)
    if bool(outside.any()):
        bad = int(outside.nonzero()[0])
        raise DomainError(
            f"Mesh: face {bad} has corners {corners[bad].tolist()}, but vertices are numbered from "
            f"0 to {len(vertices) - 1}"
        )


def _joined(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the face across each edge, and which of its edges it is there; `(F, 3)` each."""
    start, end = corners.roll(-1, 1).flatten(), corners.roll(-2, 1).flatten()
    size = int(corners.max()) + 1
    code, back = start * size + end, end * size + start
    order = torch.argsort(code, stable=True)
    sorted_code = code[order]
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    _, which, count = torch.unique(low * size + high, return_inverse=True, return_counts=True)
    wrong = (count != 2)[which]
    if bool(wrong.any()):
        bad = int(wrong.nonzero()[0])
        raise DomainError(
            f"Mesh: the edge between vertices {int(low[bad])} and {int(high[bad])} of face "
            f"{bad // 3} lies in {int(count[which[bad]])} faces, and in a closed surface in two; "
            f"{int((count != 2).sum())} edges are so; close the holes, join vertices that lie at "
            "the same place, or remove the faces that are too many"
        )
    twin = torch.searchsorted(sorted_code, back).clamp(max=len(code) - 1)
    wrong = sorted_code[twin] != back
    if bool(wrong.any()):
        bad = int(wrong.nonzero()[0])
        both = ((code == code[bad]).nonzero()[:, 0] // 3).tolist()
        raise DomainError(
            f"Mesh: faces {both[0]} and {both[-1]} run along the edge from vertex "
            f"{int(start[bad])} to {int(end[bad])} in the same direction; turn faces round so that "
            "neighbours run along their edge in opposite directions (if the surface has two sides)"
        )
    other = order[twin].reshape(-1, 3)
    return other // 3, other % 3


def _expect_one_surface(vertices: int, corners: Tensor, across: Tensor, entry: Tensor) -> None:
    """Raise `DomainError` for vertices of no face or of two sheets, and for separate pieces."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    def pieces(one: Tensor, other: Tensor, size: int) -> tuple[int, np.ndarray]:
        pair = (one.flatten().cpu().numpy(), other.flatten().cpu().numpy())
        graph = coo_matrix((np.ones(len(pair[0])), pair), shape=(size, size))
        return connected_components(graph, directed=False)

    used = torch.bincount(corners.flatten().cpu(), minlength=vertices)
    if bool((used == 0).any()):
        raise DomainError(
            f"Mesh: vertex {int((used == 0).nonzero()[0])} belongs to no face, and "
            f"{int((used == 0).sum())} do so; leave such vertices out"
        )
    # corner (f, k + 1) starts edge k, which the face across ends in its corner entry + 2
    number = torch.arange(corners.numel(), device=corners.device).reshape(-1, 3)
    sheets, sheet = pieces(number.roll(-1, 1), number[across, (entry + 2) % 3], corners.numel())
    if sheets != vertices:
        firsts = np.unique(np.stack([corners.flatten().cpu().numpy(), sheet]), axis=1)[0]
        bad = int(firsts[1:][firsts[1:] == firsts[:-1]][0])
        raise DomainError(
            f"Mesh: sheets of the surface touch in vertex {bad} only; give each a vertex of its own"
        )
    count, _ = pieces(corners, corners.roll(1, 1), vertices)
    if count != 1:
        raise DomainError(
            f"Mesh: the surface falls into {count} pieces, between which nothing can flow; make a "
            "mesh of each"
        )
