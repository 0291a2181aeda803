"""The normal law of centred clouds of particles, in all directions that keep the centre.

    log p(x) = -|x|^2 / (2 s^2) - n/2 log(2 pi s^2),    n = (particles - 1) dims,    sum_i x_i = 0

Source: Koehler, Klein and Noe (2020), Equivariant flows, arXiv 2006.02425; Satorras et al. (2021),
E(n) equivariant normalizing flows, arXiv 2105.09016.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.errors import expect_positive
from cflow.manifold import MeanFree, expect_on
from cflow.typing import Batch, Points

__all__ = ["MeanFreeGaussian"]


class MeanFreeGaussian(Base):
    """Normal clouds about the origin, less their mean; no rotation or permutation changes the law.

    The density is against the volume of the subspace of centred clouds, in which `MeanFree` steps.

    Args:
        event_shape: Shape of one cloud, `(particles, dims)`; the first axis counts particles, two
            or more.
        scale: Standard deviation in each direction of the subspace, in the units of the points.

    Raises:
        ShapeError: There are fewer than two particles.
        DomainError: The scale is not positive; on use, clouds that are not centred.

    Example:
        >>> MeanFreeGaussian((4, 2)).log_prob(torch.zeros(4, 2))  # -6/2 log(2 pi)
        tensor(-5.5136)
    """

    def __init__(self, event_shape: Sequence[int], *, scale: float = 1.0) -> None:
        super().__init__(tuple(event_shape))
        expect_positive("MeanFreeGaussian", scale=scale)
        self.manifold = MeanFree(max(1, len(self.event_shape)))
        self.dim = self.manifold.dim(self.event_shape)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        full, like = (*shape, *self.event_shape), self.scale
        noise = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return self.scale * self.manifold.projx(noise)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        wide = self._enter(x)
        expect_on("MeanFreeGaussian.log_prob", "x", self.manifold, x)  # to its own precision
        scale = self.scale.to(wide.dtype)
        square = (wide / scale).flatten(-self.manifold.ndim).square().sum(-1)
        return -0.5 * square - self.dim * (0.5 * math.log(2 * math.pi) + scale.log())
