"""Independent laws side by side, log p(x) = sum_i log p_i(x_i).

A point is the flat concatenation of the points of the parts, as in a product of manifolds. There a
weight w_i scales the metric of a part of dimension d_i, hence its volume by w_i^(d_i / 2):

    log p(x) = sum_i (log p_i(x_i) - d_i / 2 log w_i)
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from cflow.base.base import Base
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Product
from cflow.typing import Batch, Points

__all__ = ["Joint"]


class Joint(Base):
    """Independent laws of the parts of a vector, in their order: of angles, directions, positions.

    A context goes to every law. Gradients through `sample` are those of the laws.

    Args:
        laws: The law of each part; a part takes as many entries as its points have.
        manifold: The product of manifolds that the points live in. It is needed where its weights
            are not all 1, because densities are with respect to its volume.

    Raises:
        DomainError: There is no law, or one is none.
        ShapeError: The parts of the product have other shapes than the laws' points.

    Example:
        >>> from cflow.base import Gaussian, ManifoldUniform
        >>> from cflow.manifold import Euclidean, Sphere
        >>> space = Product((Sphere(), 3), (Euclidean(), 2), weights=(1.0, 4.0))
        >>> base = Joint(ManifoldUniform(Sphere(), 3), Gaussian(2), manifold=space)
        >>> base.log_prob(space.join([torch.tensor([0.0, 0.0, 1.0]), torch.zeros(2)]))
        tensor(-5.7552)
    """

    def __init__(self, *laws: Base, manifold: Product | None = None) -> None:
        if not laws:
            raise DomainError("Joint: there must be one law at least, got none")
        for i, law in enumerate(laws):
            if not isinstance(law, Base):
                raise DomainError(
                    f"Joint: law {i} must be a base, got {type(law).__name__}; a product of "
                    "manifolds goes in as manifold="
                )
        sizes = [math.prod(law.event_shape) for law in laws]
        super().__init__(sum(sizes))
        self.laws, self.sizes = nn.ModuleList(laws), sizes
        self.log_scale = 0.0 if manifold is None else _log_scale(manifold, laws)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        draws = [law.sample(shape, context, generator=generator) for law in self._laws()]
        flat = zip(draws, self.sizes, strict=True)
        return torch.cat([x.reshape(*shape, size) for x, size in flat], -1)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        log_prob = x.new_full(x.shape[:-1], -self.log_scale)
        for part, law in zip(x.split(self.sizes, -1), self._laws(), strict=True):
            point = part.reshape((*x.shape[:-1], *law.event_shape))
            log_prob = log_prob + law.log_prob(point, context)
        return log_prob

    def _laws(self) -> list[Base]:
        return [cast(Base, law) for law in self.laws]


def _log_scale(manifold: Product, laws: Sequence[Base]) -> float:
    """Return the log of the product's volume over that of its parts."""
    shapes = [tuple(shape) for _, shape in manifold.parts]
    theirs = [law.event_shape for law in laws]
    if shapes != theirs:
        raise ShapeError(
            f"Joint: the parts of {manifold} have points of shapes {shapes}, and the laws of "
            f"{theirs}; give one law for each part"
        )
    dims = [part.dim(shape) for part, shape in manifold.parts]
    return sum(
        0.5 * dim * math.log(weight) for dim, weight in zip(dims, manifold.weights, strict=True)
    )
