"""The registry of manifolds: one line for each; the suite asks the same things of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.data import meshes
from cflow.manifold import (
    AffineInvariantSPD,
    Diffusion,
    Euclidean,
    LogEuclideanSPD,
    Lorentz,
    Manifold,
    MeanFree,
    Mesh,
    PoincareBall,
    Product,
    Quaternions,
    RigidMotions,
    Rotations,
    Simplex,
    Sphere,
    Torus,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ManifoldCase:
    """A manifold, the shape of its points, and how to draw some of them.

    `points` draws `(n, *event)` spread over the manifold; `reach` is a length of tangent vectors
    below which the logarithm undoes the exponential. `logarithm` says whether there is one, and
    `smooth` whether it has no edges, at which fields have kinks and solvers lose their order.
    """

    name: str
    build: Callable[[], Manifold]
    event: Shape
    points: Callable[[Manifold, Shape], Tensor] = lambda space, shape: space.projx(
        torch.randn(shape)
    )
    reach: float = 1.0
    logarithm: bool = True
    smooth: bool = True

    def draw(self, n: int = 6, seed: int = 0) -> tuple[Manifold, Tensor, Tensor]:
        """Draw points and tangent vectors of them, of length `reach`."""
        torch.manual_seed(seed)
        space = self.build()
        x = self.points(space, (n, *self.event))
        u = space.proju(x, torch.randn(n, *self.event))
        length = space.inner(x, u, u).sqrt().reshape(n, *(1,) * len(self.event))
        return space, x, self.reach * u / length


def around_the_centre(space: Manifold, shape: Shape) -> Tensor:
    """Draw points of a ball, at distances around 1 from its centre."""
    return space.expmap(torch.zeros(shape), 0.3 * torch.randn(shape))


def around_the_origin(space: Manifold, shape: Shape) -> Tensor:
    """Draw points of a hyperboloid, at distances below 1 from its lowest."""
    return space.projx(0.3 * torch.randn(shape))


def covariances(space: Manifold, shape: Shape) -> Tensor:
    """Draw positive definite matrices."""
    a = torch.randn(shape)
    return 0.5 * a @ a.mT + 0.3 * torch.eye(shape[-1])


def compositions(space: Manifold, shape: Shape) -> Tensor:
    """Draw probabilities, none of them near zero."""
    return torch.softmax(0.5 * torch.randn(shape), -1)


CASES = [
    ManifoldCase("R^3", Euclidean, (3,)),
    ManifoldCase("R^(3x3)", lambda: Euclidean(2), (3, 3)),
    ManifoldCase("S^1", Sphere, (2,)),
    ManifoldCase("S^2", Sphere, (3,)),
    ManifoldCase("S^3 by exponential steps", lambda: Sphere(steps="exponential"), (4,)),
    ManifoldCase("T^2", Torus, (2,)),
    ManifoldCase("T^(2x3) of period 1", lambda: Torus(1.0, ndim=2), (2, 3), reach=0.2),
    ManifoldCase("3 particles in R^2", MeanFree, (3, 2)),
    ManifoldCase("4 numbers of mean 0", lambda: MeanFree(1), (4,)),
    ManifoldCase(
        "icosphere", lambda: Mesh(*meshes.icosphere(1)), (3,), logarithm=False, smooth=False
    ),
    ManifoldCase(
        "torus of triangles",
        lambda: Mesh(*meshes.torus(12, 8), premetric=Diffusion(0.1)),
        (3,),
        logarithm=False,
        smooth=False,
    ),
    ManifoldCase("H^3 in a ball", PoincareBall, (3,), around_the_centre),
    ManifoldCase(
        "H^2 of curvature -1/4 by exponential steps",
        lambda: PoincareBall(-0.25, steps="exponential"),
        (2,),
        around_the_centre,
    ),
    ManifoldCase("H^3 in Minkowski space", Lorentz, (4,), around_the_origin),
    ManifoldCase(
        "H^2 of curvature -2 by exponential steps",
        lambda: Lorentz(-2.0, steps="exponential"),
        (3,),
        around_the_origin,
        reach=0.5,
    ),
    ManifoldCase("SPD, affine-invariant", AffineInvariantSPD, (3, 3), covariances),
    ManifoldCase(
        "SPD, affine-invariant, by exponential steps",
        lambda: AffineInvariantSPD(steps="exponential"),
        (2, 2),
        covariances,
    ),
    ManifoldCase("SPD, log-Euclidean", LogEuclideanSPD, (2, 2), covariances),
    ManifoldCase("simplex of 4", Simplex, (4,), compositions, reach=0.3),
    ManifoldCase(
        "simplex of 3 by exponential steps",
        lambda: Simplex(steps="exponential"),
        (3,),
        compositions,
        reach=0.3,
    ),
    ManifoldCase("rotations", Rotations, (3, 3)),
    ManifoldCase("rotations by exponential steps", lambda: Rotations(steps="exponential"), (3, 3)),
    ManifoldCase("quaternions", Quaternions, (4,)),
    ManifoldCase(
        "quaternions by exponential steps", lambda: Quaternions(steps="exponential"), (4,)
    ),
    ManifoldCase("rigid motions", RigidMotions, (4, 4)),
    ManifoldCase(
        "weighted rigid motions by exponential steps",
        lambda: RigidMotions(rotation_weight=2.0, translation_weight=0.3, steps="exponential"),
        (4, 4),
    ),
    ManifoldCase("S^2 x T^2", lambda: Product((Sphere(), 3), (Torus(), 2)), (5,)),
    ManifoldCase(
        "T^2 x T^1", lambda: Product((Torus(), 2), (Torus(), 1), weights=(2.0, 3.0)), (3,)
    ),
    ManifoldCase(
        "weighted S^1 x T^1 x rotations by exponential steps",
        lambda: Product(
            (Product((Sphere(), 2), (Torus(), 1), weights=(0.5, 2.0)), 3),
            (Rotations(steps="exponential"), (3, 3)),
            weights=(1.0, 3.0),
        ),
        (12,),
    ),
    ManifoldCase(
        "R^1 x H^2 x H^2",
        lambda: Product(
            (Euclidean(), 1), (PoincareBall(), 2), (Lorentz(), 3), weights=(2.0, 0.5, 1.5)
        ),
        (6,),
        around_the_origin,
        reach=0.5,
    ),
]
