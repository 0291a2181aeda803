"""The face of a surface that is closest to a point, exact, without a search at run time.

Space near the surface is cut into cubes of half diagonal r around c. For a point in such a cube,
|x - c| <= r, so the face closest to it lies within dist(c) + 2 r of c: these faces are its list,
and the distances to all faces of the list are compared. The rest of space has no lists; there the
distances to all faces are compared whose bounding sphere does not rule them out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cflow.manifold.triangles import Faces

__all__ = ["Grid", "build_grid", "closest_face", "closest_point"]

CUBE = 0.4  # edge of a cube, in median edges of the faces
MARGIN = 0.3  # how far off the surface points still find lists, in half diagonals of a cube
MOST = 2_000_000  # cubes in all
PAIRS = 2**18  # pairs of points and faces that are compared together


class Grid(NamedTuple):
    """Hold the cubes near a surface, and for each the faces that may be closest.

    Attributes:
        centre: The middle of the surface's bounding box, from which gauges measure, `(3,)`.
        low: The corner of the first cube, `(3,)`.
        size: Edge of a cube, `()`.
        counts: Number of cubes along each axis, `(3,)`.
        row: The list of each cube, -1 for none, `(cubes,)`.
        start: Where a list starts, `(lists,)`.
        held: How many faces it holds, `(lists,)`.
        place: Numbers up to the length of the longest, `(longest,)`.
        listed: The faces of all lists, one after the other.
        gauge: For each face the seven affine functions of space that its distance is made of: the
            height over its plane, heights over its edges, lengths along them; `(F, 7, 3)`.
        gauge_at: Their constants, `(F, 7)`.
        length: Lengths of the edges, `(F, 3)`.
        radius: Distance of the farthest corner from the centroid, `(F,)`.
        middle: Centroids, from the centre, `(F, 3)`.
    """

    centre: Tensor
    low: Tensor
    size: Tensor
    counts: Tensor
    row: Tensor
    start: Tensor
    held: Tensor
    place: Tensor
    listed: Tensor
    gauge: Tensor
    gauge_at: Tensor
    length: Tensor
    radius: Tensor
    middle: Tensor


def build_grid(faces: Faces, vertices: Tensor) -> Grid:
    """Lay cubes around a surface and list the faces that may be closest to points in each."""
    low, high = vertices.amin(0), vertices.amax(0)
    centre = (low + high) / 2
    middle = faces.origin - centre
    in_plane = torch.cat([faces.inward, faces.forth], 1) @ faces.axes
    gauge = torch.cat([faces.normal[:, None], in_plane], 1)
    at = torch.cat([faces.inward_at, faces.forth_at], 1)
    gauge_at = torch.nn.functional.pad(at, (1, 0)) - (gauge * middle[:, None]).sum(-1)
    radius = torch.linalg.vector_norm(faces.points, dim=-1).amax(1)

    edge = CUBE * faces.length.median()
    while float(((high - low) / edge + 4).prod()) > MOST:
        edge = 1.1 * edge
    half = 3**0.5 / 2 * edge
    margin = (1 + MARGIN) * half
    counts = ((high - low + 2 * margin) / edge).ceil().long()
    low = centre - counts * edge / 2
    none = counts.new_zeros(0)
    grid = Grid(
        centre, low, edge, counts, none, none, none, none, none, gauge, gauge_at, faces.length,
        radius, middle,
    )  # fmt: skip
    reach = (3 + MARGIN) * half  # to a face that may be closest in a cube with a list
    cube, face, gap = _near(grid, vertices[faces.corners], reach)
    least = torch.full((int(counts.prod()),), torch.inf, dtype=gap.dtype, device=gap.device)
    least = least.scatter_reduce(0, cube, gap, "amin")
    near = least <= margin
    listed = near[cube] & (gap <= (least[cube] + 2 * half) * (1 + 1e-5))
    cube, face = cube[listed], face[listed]
    row = torch.where(near, near.cumsum(0) - 1, -1)
    order = torch.argsort(row[cube], stable=True)
    mine, face = row[cube][order], face[order]
    count = torch.bincount(mine)
    place = torch.arange(int(count.max()), device=face.device)
    start = count.cumsum(0) - count
    return grid._replace(row=row, start=start, held=count, place=place, listed=face)


def closest_face(grid: Grid, x: Tensor, *, everywhere: bool) -> tuple[Tensor, Tensor]:
    """Return the faces closest to points `(N, 3)`, and where they are known, `(N,)` each.

    Args:
        grid: Cubes and lists.
        x: Points.
        everywhere: Also search far from the surface, which takes a look at values; otherwise far
            points are not known, nor are those that are not finite.
    """
    x = x - grid.centre
    cell = ((x - (grid.low - grid.centre)) / grid.size).floor()
    known = ((cell >= 0) & (cell < grid.counts)).all(-1)
    cell = torch.where(known[..., None], cell, 0.0).long()
    number = (cell[..., 0] * grid.counts[1] + cell[..., 1]) * grid.counts[2] + cell[..., 2]
    row = grid.row[number]
    known = known & (row >= 0)
    row = row.clamp(min=0)
    start, count = grid.start[row], grid.held[row]
    if not everywhere:
        place = torch.minimum(grid.place, count[..., None] - 1)
        faces = grid.listed[start[..., None] + place]
        best = _squares(grid, x, faces).argmin(-1, keepdim=True)
        return faces.gather(-1, best).squeeze(-1), known
    point = torch.repeat_interleave(count)
    place = torch.arange(len(point), device=x.device) - (count.cumsum(0) - count)[point]
    face = _best(grid, x, point, grid.listed[start[point] + place])
    if not bool(known.all()):
        far = ~known & torch.isfinite(x).all(-1)
        face[far] = _searched(grid, x[far])
        known = known | far
    return face, known


def closest_point(faces: Faces, face: Tensor, q: Tensor) -> Tensor:
    """Return the points of triangles that are closest to points of their planes, `(N, 2)`."""
    height = faces.heights(face, q)
    forth, length = faces.forth[face], faces.length[face]
    along = (forth * q[..., None, :]).sum(-1) + faces.forth_at[face]
    kept = torch.minimum(along.clamp(min=0), length)
    square = height.square() + (along - kept).square()
    edge = square.argmin(-1, keepdim=True)[..., None].expand(*square.shape[:-1], 1, 2)
    start = faces.points[face].roll(-1, -2)
    on_edge = (start + kept[..., None] * forth).gather(-2, edge).squeeze(-2)
    return torch.where((height >= 0).all(-1, keepdim=True), q, on_edge)


def _squares(grid: Grid, x: Tensor, faces: Tensor) -> Tensor:
    """Return squared distances of points `(N, 3)`, from the centre, to faces `(N, K)`."""
    gauges = (grid.gauge[faces] * x[..., None, None, :]).sum(-1) + grid.gauge_at[faces]
    height, along = gauges[..., 1:4], gauges[..., 4:]
    beyond = along - torch.minimum(along.clamp(min=0), grid.length[faces])
    beside = (height.square() + beyond.square()).amin(-1)
    return gauges[..., 0].square() + torch.where((height >= 0).all(-1), 0.0, beside)


def _near(grid: Grid, triangles: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of cubes and faces no farther than reach from their centres, and the gaps."""
    found = []
    low = ((triangles.amin(1) - reach - grid.low) / grid.size - 0.5).ceil().long().clamp(min=0)
    high = ((triangles.amax(1) + reach - grid.low) / grid.size - 0.5).floor().long()
    span = torch.minimum(high, grid.counts - 1) - low + 1
    total = span.prod(1)
    step = max(1, int(PAIRS // max(1, int(total.max()))))
    for first in range(0, len(triangles), step):
        count = total[first : first + step]
        face = torch.repeat_interleave(torch.arange(len(count), device=low.device), count) + first
        place = torch.arange(len(face), device=low.device) - (count.cumsum(0) - count)[face - first]
        y, z = span[face, 1], span[face, 2]
        cell = torch.stack([place // (y * z), place // z % y, place % z], -1) + low[face]
        x = grid.low - grid.centre + (cell + 0.5) * grid.size
        apart = torch.linalg.vector_norm(x - grid.middle[face], dim=-1)
        near = apart <= grid.radius[face] + reach
        x, face, cell = x[near], face[near], cell[near]
        gap = _squares(grid, x, face[:, None]).squeeze(1).sqrt()
        near = gap <= reach
        cell, face, gap = cell[near], face[near], gap[near]
        cube = (cell[:, 0] * grid.counts[1] + cell[:, 1]) * grid.counts[2] + cell[:, 2]
        found.append((cube, face, gap))
    cube, face, gap = (torch.cat(part) for part in zip(*found, strict=True))
    return cube, face, gap


def _searched(grid: Grid, x: Tensor) -> Tensor:
    """Return the closest faces of points anywhere, `(N,)`."""
    parts = []
    for some in x.split(max(1, PAIRS // len(grid.middle))):
        mode = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(some, grid.middle, compute_mode=mode)
        least = apart.amin(1, keepdim=True)  # a centroid lies on its face
        row, face = ((apart - grid.radius) <= least * (1 + 1e-5)).nonzero(as_tuple=True)
        parts.append(_best(grid, some, row, face))
    return torch.cat(parts)


def _best(grid: Grid, x: Tensor, point: Tensor, face: Tensor) -> Tensor:
    """Return the closest of the faces that pairs give to each point, `(N,)`."""
    gap = _squares(grid, x[point], face[:, None]).squeeze(1)
    least = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    least = least.scatter_reduce(0, point, gap, "amin")
    first = gap == least[point]
    return point.new_zeros(len(x)).scatter(0, point[first], face[first])
