"""The uniform law on a compact manifold, log p(x) = -log volume."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.errors import DomainError
from cflow.manifold import Compact, Manifold
from cflow.typing import Batch, Points

__all__ = ["ManifoldUniform"]


class ManifoldUniform(Base):
    """Points spread evenly by volume: over a sphere, a torus, the rotations (Haar's law), a mesh.

    Args:
        manifold: A manifold of finite volume.
        event_shape: Shape of one point, or a number of entries: 3 for the sphere S^2.

    Raises:
        DomainError: The manifold has no finite volume, so that no law is uniform on it.
        ShapeError: No point of the manifold has this shape.

    Example:
        >>> from cflow.manifold import Sphere
        >>> ManifoldUniform(Sphere(), 3).log_prob(torch.tensor([[0.0, 0.0, 1.0]]))  # -log(4 pi)
        tensor([-2.5310])
    """

    def __init__(self, manifold: Manifold, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
        log_volume = manifold.log_volume(self.event_shape)
        if not isinstance(manifold, Compact) or log_volume == float("inf"):
            raise DomainError(
                f"ManifoldUniform: {manifold} has no finite volume and so no uniform law; start "
                "from WrappedNormal there"
            )
        self.manifold: Compact = manifold
        self.log_volume = log_volume
        self.like: Tensor
        self.register_buffer("like", torch.tensor(0.0), persistent=False)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        return self.manifold.uniform(shape, self.event_shape, like=self.like, generator=generator)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        return x.new_full(x.shape[: x.dim() - len(self.event_shape)], -self.log_volume)
