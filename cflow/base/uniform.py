"""The uniform law on a compact manifold, log p(x) = -log volume."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.errors import DomainError
from cflow.manifold import Sphere
from cflow.typing import Batch, Points

__all__ = ["SphereUniform"]


class SphereUniform(Base):
    """Uniform unit vectors, drawn as normalised Gaussians.

    Densities are with respect to the surface area of the sphere.

    Args:
        event_shape: Shape of one point: `(n + 1,)` for the sphere S^n, n at least 1.

    Raises:
        DomainError: The shape is not that of vectors with two coordinates or more.

    Example:
        >>> SphereUniform((3,)).log_prob(torch.tensor([[0.0, 0.0, 1.0]]))  # -log(4 pi)
        tensor([-2.5310])
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(tuple(event_shape))
        if len(self.event_shape) != 1 or self.event_shape[0] < 2:
            raise DomainError(
                f"SphereUniform: event_shape must be (n,) with n at least 2, got {self.event_shape}"
            )
        self.log_density: Tensor
        log_volume = Sphere().log_volume(self.event_shape)
        self.register_buffer("log_density", torch.tensor(-log_volume))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        dtype, device = self.log_density.dtype, self.log_density.device
        full = (*shape, *self.event_shape)
        return Sphere().projx(torch.randn(full, dtype=dtype, device=device, generator=generator))

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        return torch.full_like(self._enter(x)[..., 0], -Sphere().log_volume(self.event_shape))
