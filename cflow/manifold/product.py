"""Products of manifolds: a direction beside some angles beside a position, as one flat vector.

    g = sum_i w_i g_i,    dist^2 = sum_i w_i dist_i^2,    vol = prod_i w_i^(n_i/2) vol_i

with n_i the dimension of part i. Geodesics are those of the parts side by side.
Source: Lee (2018), Introduction to Riemannian manifolds, chapter 2; Gu, Sala, Gunel and Re (2019),
Learning mixed-curvature representations in product spaces, ICLR.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from cflow.errors import DomainError, ShapeError, expect_positive, expect_trailing
from cflow.manifold.manifold import Compact, Manifold, Steps
from cflow.typing import Frame

__all__ = ["Product"]

T = TypeVar("T")


class Product(Compact):
    """Points that consist of points of several manifolds; one point is one vector.

    It holds the entries of the parts one after the other, matrices flattened; `split` and `join`
    go there and back. Products may be parts. Where a part has no finite volume the product has
    none, and no uniform law: `cflow.base.Joint` puts laws of the parts side by side.

    Args:
        parts: A manifold and the shape of its points each, or a number of entries:
            `(Sphere(), 3), (Rotations(), (3, 3))`.
        weights: The factor of each part's metric; all 1 by default. A length counts by its root.
        steps: How a solver steps, see `Manifold`; by default along geodesics if a part asks so.

    Attributes:
        parts: The manifolds, and the shapes of their points.
        weights: The factors.

    Raises:
        DomainError: There is no part, one is no pair of manifold and shape, or a weight is not
            positive or missing.
        ShapeError: No point of a part has the shape given for it.

    Example:
        >>> from cflow.manifold import Sphere, Torus
        >>> space = Product((Sphere(), 3), (Torus(), 2), weights=(1.0, 4.0))
        >>> x = space.join([torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 6.0])])
        >>> y = space.join([torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, 6.0])])
        >>> space.dist(x, y), space.dim((5,))
        (tensor(3.), 4)
    """

    ndim = 1

    def __init__(
        self,
        *parts: tuple[Manifold, int | Sequence[int]],
        weights: Sequence[float] | None = None,
        steps: Steps | None = None,
    ) -> None:
        self.parts = tuple(_part(i, part) for i, part in enumerate(parts))
        if not parts:
            raise DomainError("Product: at least one part is needed, such as (Sphere(), 3)")
        weights = (1.0,) * len(parts) if weights is None else tuple(weights)
        if len(weights) != len(parts):
            raise DomainError(
                f"Product: each of {len(parts)} parts needs a weight, got {len(weights)}"
            )
        for i, weight in enumerate(weights):
            expect_positive("Product", **{f"weights[{i}]": weight})
        manifolds = [manifold for manifold, _ in self.parts]
        if steps is None:
            along = any(manifold.steps == "exponential" for manifold in manifolds)
            steps = "exponential" if along else "projected"
        super().__init__(steps=steps)
        self.weights = weights
        self.loop = math.inf if all(m.loop == math.inf for m in manifolds) else None
        self.smooth_frame = all(manifold.smooth_frame for manifold in manifolds)
        flat = all(manifold.orthonormal_frame for manifold in manifolds)
        self.orthonormal_frame = flat and set(weights) == {1.0}
        self.creased = any(manifold.creased for manifold in manifolds)
        self._sizes = [math.prod(shape) for _, shape in self.parts]
        self._dims = [manifold.dim(shape) for manifold, shape in self.parts]

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the points of the parts, or their vectors, `(*batch, *event_i)` each.

        Raises:
            ShapeError: The last axis has another length than the parts have entries.
        """
        expect_trailing("Product.split", "x", x, (sum(self._sizes),))
        pieces = x.split(self._sizes, -1)
        return [
            piece.reshape(*x.shape[:-1], *shape)
            for piece, (_, shape) in zip(pieces, self.parts, strict=True)
        ]

    def join(self, points: Sequence[Tensor]) -> Tensor:
        """Return the vector of points of the parts, whose batch axes are broadcast.

        Raises:
            ShapeError: A point does not have the shape of its part, or there are more or fewer.
        """
        if len(points) != len(self.parts):
            raise ShapeError(
                f"Product.join: one tensor for each of {len(self.parts)} parts is needed, got "
                f"{len(points)}"
            )
        flat = []
        for i, (point, (_, shape)) in enumerate(zip(points, self.parts, strict=True)):
            expect_trailing("Product.join", f"points[{i}]", point, shape)
            batch = point.shape[: point.dim() - len(shape)]
            flat.append(point.reshape(*batch, math.prod(shape)))
        batch = torch.broadcast_shapes(*(point.shape[:-1] for point in flat))
        return torch.cat([point.expand(*batch, -1) for point in flat], -1)

    def projx(self, x: Tensor) -> Tensor:
        return self.join(self._each(lambda part, x: part.projx(x), x))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return self.join(self._each(lambda part, x, u: part.proju(x, u), x, u))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return self.join(self._each(lambda part, x, u: part.expmap(x, u), x, u))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        return self.join(self._each(lambda part, x, y: part.logmap(x, y), x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        parts = self._each(lambda part, x, y: part.dist(x, y), x, y)
        scaled = [math.sqrt(w) * d for w, d in zip(self.weights, parts, strict=True)]
        return torch.linalg.vector_norm(torch.stack(scaled, -1), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        parts = self._each(lambda part, x, u, w: part.inner(x, u, w), x, u, w)
        scaled = [weight * inner for weight, inner in zip(self.weights, parts, strict=True)]
        return torch.stack(torch.broadcast_tensors(*scaled), -1).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether the points of all parts lie on them; `atol` is in the units of each."""
        checks = self._each(lambda part, x: part.check_point(x, atol=atol), x)
        for i, (on, reason) in enumerate(checks):
            if not on:
                return False, f"of part {i}, {self.parts[i][0]}, {reason}"
        return True, ""

    def dim(self, shape: Sequence[int]) -> int:
        if tuple(shape) != (sum(self._sizes),):
            raise ShapeError(
                f"{self}: a point is a vector of {sum(self._sizes)} entries, got {tuple(shape)}"
            )
        return sum(self._dims)

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return sum(
            part.log_volume(event) + 0.5 * dim * math.log(weight)
            for (part, event), dim, weight in zip(self.parts, self._dims, self.weights, strict=True)
        )

    def frame(self, x: Tensor) -> Frame | None:
        """Return the frames of the parts, each zero on the others; None where all are None."""
        frames = self._each(lambda part, x: part.frame(x), x)
        if all(frame is None for frame in frames):
            return None
        vectors, covectors, start = [], [], 0
        for frame, size, dim in zip(frames, self._sizes, self._dims, strict=True):
            around = (start, sum(self._sizes) - start - size)
            start += size
            one = torch.eye(size, dtype=x.dtype, device=x.device)
            for kept, side in zip((vectors, covectors), frame or (one, one), strict=True):
                wide = side if frame else side.expand(*x.shape[:-1], size, size)
                kept.append(pad(wide.reshape(*x.shape[:-1], dim, size), around))
        return torch.cat(vectors, -2), torch.cat(covectors, -2)

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        elements = self._each(lambda part, x: part.log_volume_element(x), x)
        uneven = [element for element in elements if element is not None]
        return torch.stack(uneven, -1).sum(-1) if uneven else None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        parts = self._each(lambda part, x, u: part.log_det_exp(x, u), x, u)
        return torch.stack(torch.broadcast_tensors(*parts), -1).sum(-1)

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        cut = [
            manifold.cut_locus(point, other, atol=atol / math.sqrt(weight))
            for (manifold, _), weight, point, other in zip(
                self.parts, self.weights, self.split(x), self.split(y), strict=True
            )
        ]
        return torch.stack(cut, -1).any(-1)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        ways = self._each(lambda part, x, u: part.geodesic(x, u, s), x, u)
        points, velocities = zip(*ways, strict=True)
        return self.join(points), self.join(velocities)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        rate = lambda part, x, u, y, v: part.log_rate(x, u, y, v)
        return self.join(self._each(rate, x, u, y, v))

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        points = []
        for i, (part, event) in enumerate(self.parts):
            if not isinstance(part, Compact) or part.log_volume(event) == math.inf:
                raise DomainError(
                    f"Product.uniform: part {i}, {part}, has no finite volume and so no uniform "
                    "law; cflow.base.Joint puts a law for each part side by side"
                )
            points.append(part.uniform(shape, event, like=like, generator=generator))
        return self.join(points)

    def _each(self, of: Callable[..., T], *args: Tensor) -> list[T]:
        """Call a function with each part and what tensors hold of it."""
        pieces = zip(self.parts, *map(self.split, args), strict=True)
        return [of(manifold, *piece) for (manifold, _), *piece in pieces]

    def __repr__(self) -> str:
        """Show the parts, and weights and steps where they are not the usual ones."""
        size = lambda shape: str(shape[0]) if len(shape) == 1 else str(shape)
        said = [f"({manifold}, {size(shape)})" for manifold, shape in self.parts]
        if any(weight != 1 for weight in self.weights):
            said.append(f"weights={self.weights}")
        along = any(manifold.steps == "exponential" for manifold, _ in self.parts)
        if self.steps != ("exponential" if along else "projected"):
            said.append(f"steps={self.steps!r}")
        return f"Product({', '.join(said)})"


def _part(i: int, part: tuple[Manifold, int | Sequence[int]]) -> tuple[Manifold, tuple[int, ...]]:
    """Check a part, and return its manifold and the shape of its points."""
    if not isinstance(part, tuple) or len(part) != 2 or not isinstance(part[0], Manifold):
        raise DomainError(
            f"Product: part {i} must be a manifold of cflow.manifold and the shape of its points, "
            f"such as (Sphere(), 3), got {part!r}"
        )
    manifold, shape = part
    event = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(event) != manifold.ndim:
        raise ShapeError(
            f"Product: a point of part {i}, {manifold}, has {manifold.ndim} axes, got shape {event}"
        )
    manifold.dim(event)
    return manifold, event
