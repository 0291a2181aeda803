"""The registry of manifolds: one line for each; the suite asks the same things of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.manifold import Euclidean, Manifold, Sphere, Torus

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ManifoldCase:
    """A manifold, the shape of its points, and how to draw some of them.

    `points` draws `(n, *event)` spread over the manifold; `reach` is a length of tangent vectors
    below which the logarithm undoes the exponential.
    """

    name: str
    build: Callable[[], Manifold]
    event: Shape
    points: Callable[[Manifold, Shape], Tensor] = lambda space, shape: space.projx(
        torch.randn(shape)
    )
    reach: float = 1.0

    def draw(self, n: int = 6, seed: int = 0) -> tuple[Manifold, Tensor, Tensor]:
        """Draw points and tangent vectors of them, of length `reach`."""
        torch.manual_seed(seed)
        space = self.build()
        x = self.points(space, (n, *self.event))
        u = space.proju(x, torch.randn(n, *self.event))
        length = space.inner(x, u, u).sqrt().reshape(n, *(1,) * len(self.event))
        return space, x, self.reach * u / length


CASES = [
    ManifoldCase("R^3", Euclidean, (3,)),
    ManifoldCase("R^(3x3)", lambda: Euclidean(2), (3, 3)),
    ManifoldCase("S^1", Sphere, (2,)),
    ManifoldCase("S^2", Sphere, (3,)),
    ManifoldCase("S^3 by exponential steps", lambda: Sphere(steps="exponential"), (4,)),
    ManifoldCase("T^2", Torus, (2,)),
    ManifoldCase("T^(2x3) of period 1", lambda: Torus(1.0, ndim=2), (2, 3), reach=0.2),
]
