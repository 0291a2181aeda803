"""A closed surface of triangles, with the flat metric of its faces.

    exp_x(u): the straight line in the face of x, unfolded over every edge that it crosses
    d(x, y) = |Phi(x) - Phi(y)|,    Phi_i = sqrt(w(lambda_i)) phi_i,    a spectral distance

Unfolding is an isometry, so the exponential keeps volumes and velocities are carried along without
loss; a Runge-Kutta step in unfolded coordinates crosses edges as if they were not there.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, section 3.2;
Polthier and Schmies (1998), Straightest geodesics on polyhedral surfaces.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.manifold.closest import Grid, build_grid, closest_face, closest_point
from cflow.manifold.manifold import Compact, Steps
from cflow.manifold.recent import Recent, readable
from cflow.manifold.spectral import Biharmonic, Premetric, smooth_normals, spectrum
from cflow.manifold.triangles import Faces, build_faces, converted, rotated
from cflow.manifold.walk import Walk, walk
from cflow.typing import Frame

__all__ = ["Mesh"]


class _Tables(NamedTuple):
    """Hold a mesh in one dtype on one device."""

    faces: Faces
    grid: Grid
    embedding: Tensor
    upright: Tensor


class Mesh(Compact):
    """A closed surface of triangles; one point is a vector (3,) on it.

    Its distance is not that of shortest paths but a spectral one, and it has no logarithm: flow
    matching takes `PremetricPath`. A field that is merely projected to the faces makes or loses
    mass at the edges, so that densities do not integrate to one; take `cflow.field.SurfaceField`,
    which goes through `conserve`.

    Outside a traced graph and `vmap`, faces are found wherever a point lies and walks go on until
    they end. Inside, points farther from the surface than about half an edge, and walks over more
    edges than `crossings`, come out as NaN.

    Args:
        vertices: Points in space `(V, 3)`.
        faces: Three vertices for each triangle, `(F, 3)`, counted from 0, in the order that turns
            left as seen from outside.
        premetric: The distance; biharmonic by default.
        eigenpairs: Eigenfunctions in the distance, as many as there are at most.
        smoothing: Length, in mean edges, over which the normals in `conserve` are smoothed; the
            longer, the less a field feels of the surface's small bumps.
        crossings: Edges that a walk may cross inside a traced graph.
        steps: How a solver steps, see `Manifold`.

    Attributes:
        vertices: Float64 on the CPU, `(V, 3)`.
        faces: `(F, 3)`.
        spectrum: Eigenvalues and eigenfunctions of its Laplacian, the constant one first.

    Raises:
        ShapeError: vertices or faces have other shapes.
        DomainError: They are no closed, connected, consistently oriented surface without
            degenerate faces; the message says which edge, face or vertex is wrong.

    References:
        Chen and Lipman (2024), arXiv 2302.03660.

    Example:
        >>> corners = torch.cat([torch.zeros(1, 3), torch.eye(3)])
        >>> pyramid = Mesh(corners, torch.tensor([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]]))
        >>> x, u = torch.tensor([0.2, 0.2, 0.0]), torch.tensor([-0.6, 0.0, 0.0])
        >>> pyramid.expmap(x, u)  # 0.2 to the edge, and 0.4 up the side
        tensor([0.0000, 0.2000, 0.4000])
    """

    ndim = 1
    orthonormal_frame = True
    creased = True

    def __init__(
        self,
        vertices: Tensor,
        faces: Tensor,
        *,
        premetric: Premetric | None = None,
        eigenpairs: int = 200,
        smoothing: float = 3.0,
        crossings: int = 16,
        steps: Steps = "exponential",
    ) -> None:
        super().__init__(steps=steps)
        if crossings < 1:
            raise DomainError(f"Mesh: crossings must be at least 1, got {crossings}")
        expect_positive("Mesh", smoothing=smoothing)
        self.vertices = vertices.detach().cpu().double()
        self.faces = faces.detach().cpu()
        table = build_faces(self.vertices, self.faces)
        self.faces = table.corners
        self.premetric = Biharmonic() if premetric is None else premetric
        self.crossings = crossings
        self.spectrum = spectrum(table, eigenpairs)
        values, functions = (part[..., 1:] for part in self.spectrum)
        embedding = self.premetric.weight(values).sqrt() * functions
        upright = smooth_normals(table, smoothing * float(table.length.mean()))
        self._tables = _Tables(table, build_grid(table, self.vertices), embedding, upright)
        self._moved: dict[tuple[torch.dtype, torch.device], _Tables] = {}
        self._faces: Recent[tuple[Tensor, Tensor]] = Recent()
        self._walks: Recent[Walk] = Recent()

    def projx(self, x: Tensor) -> Tensor:
        """Return the closest point of the surface; its derivative is that of the face's plane."""
        flat, tables = self._flat(x)
        face, known = self._found(flat, tables)
        q = tables.faces.plane(face, flat)
        inside = closest_point(tables.faces, face, q.detach()) + (q - q.detach())
        y = tables.faces.origin[face] + tables.faces.raised(face, inside)
        y = torch.where(known[:, None], y, torch.nan).reshape(x.shape).to(x.dtype)
        self._faces.keep(self._flat(y)[0], (face, known))
        return y

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        normal = self._normal(x)
        return u - ((normal * u).sum(-1, keepdim=True) * normal).to(u.dtype)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return self._along(x, u)[0]

    def logmap(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise `DomainError`: shortest paths over a mesh have no closed form."""
        raise DomainError(
            "Mesh.logmap: there is no logarithm on a mesh, shortest paths are not known in closed "
            "form; for flow matching take cflow.matching.PremetricPath, which follows Mesh.dist"
        )

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the spectral distance, in units of the premetric; 0 from a point to itself."""
        return torch.linalg.vector_norm(self.embed(x) - self.embed(y), dim=-1)

    def embed(self, x: Tensor) -> Tensor:
        """Return Phi(x), `(*batch, K)`, whose Euclidean distances are those of `dist`."""
        return self._interpolated(x, self._on(x).embedding)

    def interpolate(self, x: Tensor, values: Tensor) -> Tensor:
        """Return the function at x that is linear on each face.

        Args:
            x: Points `(*batch, 3)`.
            values: Values at the vertices `(V, *shape)`.

        Returns:
            Values at x `(*batch, *shape)`.

        Raises:
            ShapeError: There is not one value for each vertex.
        """
        if not values.dim() or len(values) != len(self.vertices):
            raise ShapeError(
                f"Mesh.interpolate: values must have shape ({len(self.vertices)}, ...), one for "
                f"each vertex, got {tuple(values.shape)}"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        return self._interpolated(x, values.to(device=x.device, dtype=wide))

    def conserve(self, x: Tensor, u: Tensor) -> Tensor:
        """Turn a vector field of space into a tangent one that keeps mass, `(*batch, 3)`.

            v = n x (u x m) = (n.m) u - (n.u) m

        with n the normal of the face, and m a smooth one, interpolated between vertices. What
        flows over an edge of direction t is (u x m).t from both sides, where u is continuous; so
        no mass is made or lost there, nor in vertices, and div v = -n.curl(u x m) is bounded. The
        usual v = u - (n.u) n, to which this comes down where m = n, is not the same from both
        sides, since n jumps.

        Args:
            x: Points on the surface.
            u: Vectors in space, continuous in x; tangent ones come back a little shorter, as n.m.
        """
        flat, tables = self._flat(x)
        face, _ = self._found(flat, tables)
        mean = self._interpolated(flat, tables.upright)
        square = mean.square().sum(-1, keepdim=True)
        there = square > torch.finfo(square.dtype).tiny
        mean = torch.where(there, mean / torch.where(there, square, 1.0).sqrt(), 0.0)
        n, m = (part.reshape(x.shape) for part in (tables.faces.normal[face], mean))
        v = (n * m).sum(-1, keepdim=True) * u - (n * u).sum(-1, keepdim=True) * m
        return v.to(u.dtype)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        if not x.numel():
            return True, ""
        off = float(torch.linalg.vector_norm(x - self.projx(x), dim=-1).amax())
        if not math.isfinite(off):
            return False, "some coordinates are not finite"
        return off <= atol, "" if off <= atol else f"points lie up to {off:.3g} off the surface"

    def dim(self, shape: Sequence[int]) -> int:
        if tuple(shape) != (3,):
            raise ShapeError(f"Mesh: a point is a vector (3,), got {tuple(shape)}")
        return 2

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.log(float(self._tables.faces.area.sum()))

    def frame(self, x: Tensor) -> Frame:
        flat, tables = self._flat(x)
        face, _ = self._found(flat, tables)
        vectors = tables.faces.axes[face].reshape(*x.shape[:-1], 2, 3).to(x.dtype)
        return vectors, vectors

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like((x + u)[..., 0])

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> NoReturn:
        """Raise `DomainError`: shortest paths over a mesh have no closed form."""
        raise DomainError(
            "Mesh.cut_locus: it is not known on a mesh, as shortest paths have no closed form"
        )

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        x, u = torch.broadcast_tensors(x, u)
        point, way, faces = self._along(x, s[..., None] * u)
        here = faces.flat(way.start, u.expand_as(point).reshape(-1, 3).to(faces.axes.dtype))
        velocity = faces.raised(way.end, rotated(here, way.turn))
        return point, velocity.reshape(point.shape).to(u.dtype)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return v carried back to x along the walk that led to y."""
        _, way, faces = self._along(x, u)
        there = faces.flat(way.end, v.reshape(-1, 3).to(faces.axes.dtype))
        back = way.turn * torch.tensor([1.0, -1.0], dtype=there.dtype, device=there.device)
        return faces.raised(way.start, rotated(there, back)).reshape(v.shape).to(v.dtype)

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        tables = self._on(like)
        wide = tables.faces.area.dtype
        share = torch.rand((*shape, 3), dtype=wide, device=like.device, generator=generator)
        sums = tables.faces.area.cumsum(0)
        face = torch.searchsorted(sums, (share[..., 0] * sums[-1]).contiguous())
        face = face.clamp(max=len(sums) - 1)
        one, root = share[..., 1], share[..., 2].sqrt()
        weight = torch.stack([1 - root, root * one, root * (1 - one)], -1)
        flat = (weight[..., None] * tables.faces.points[face]).sum(-2)
        return (tables.faces.origin[face] + tables.faces.raised(face, flat)).to(like.dtype)

    def _on(self, x: Tensor) -> _Tables:
        """Return the tables in the dtype, float32 at least, and on the device of x."""
        key = (torch.promote_types(x.dtype, torch.float32), x.device)
        found = self._moved.get(key)
        if found is None:
            faces, grid, *values = self._tables
            moved = (part.to(dtype=key[0], device=key[1]) for part in values)
            found = _Tables(converted(faces, *key), converted(grid, *key), *moved)
            if not torch.compiler.is_compiling():
                self._moved[key] = found
        return found

    def _flat(self, x: Tensor) -> tuple[Tensor, _Tables]:
        """Return points on one batch axis, in the dtype of the tables, and those."""
        tables = self._on(x)
        if not x.dim() or x.shape[-1] != 3:
            raise ShapeError(f"Mesh: points must end in shape (3,), got {tuple(x.shape)}")
        return x.reshape(-1, 3).to(tables.embedding.dtype), tables

    def _found(self, flat: Tensor, tables: _Tables) -> tuple[Tensor, Tensor]:
        """Return the closest faces of points `(N, 3)`, and whether they are known."""
        return self._faces(flat, lambda x: closest_face(tables.grid, x, everywhere=readable(x)))

    def _normal(self, x: Tensor) -> Tensor:
        flat, tables = self._flat(x)
        return tables.faces.normal[self._found(flat, tables)[0]].reshape(x.shape)

    def _along(self, x: Tensor, u: Tensor) -> tuple[Tensor, Walk, Faces]:
        """Return where walks end, how they led there, and the table of faces."""
        x, u = torch.broadcast_tensors(x, u)
        flat, tables = self._flat(x)
        faces = tables.faces
        w = u.reshape(-1, 3).to(flat.dtype)

        def find(both: Tensor) -> Walk:
            start, way = both.split(3, -1)
            face, _ = self._found(start, tables)
            q, along = faces.plane(face, start), faces.flat(face, way)
            return walk(faces, face, q, q + along, crossings=self.crossings)

        way = self._walks(torch.cat([flat, w], -1), find)
        p = faces.plane(way.start, flat) + faces.flat(way.start, w)
        end = rotated(p, way.turn) + way.shift
        y = (faces.origin[way.end] + faces.raised(way.end, end)).reshape(x.shape).to(x.dtype)
        self._faces.keep(self._flat(y)[0], (way.end, way.ended))
        return y, way, faces

    def _interpolated(self, x: Tensor, values: Tensor) -> Tensor:
        flat, tables = self._flat(x)
        face, _ = self._found(flat, tables)
        weight = tables.faces.barycentric(face, flat)
        corners = values[tables.faces.corners[face]]
        mixed = (weight.reshape(*weight.shape, *(1,) * (values.dim() - 1)) * corners).sum(1)
        return mixed.reshape(*x.shape[:-1], *values.shape[1:])

    def __repr__(self) -> str:
        """Show how large it is, and the distance."""
        steps = "" if self.steps == "exponential" else f", steps={self.steps!r}"
        size = f"<{len(self.vertices)} vertices>, <{len(self.faces)} faces>"
        return f"Mesh({size}, premetric={self.premetric}{steps})"
