"""The standard normal law, log p(x) = -|x|^2 / 2 - n log(2 pi) / 2."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.typing import Batch, Points

__all__ = ["Gaussian"]


class Gaussian(Base):
    """Independent standard normal entries of any event shape; dtype and device follow `.to()`.

    Args:
        event_shape: Shape of one point, or a number of features.

    Example:
        >>> Gaussian(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__((event_shape,) if isinstance(event_shape, int) else tuple(event_shape))
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(1.0))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        return torch.randn(
            (*shape, *self.event_shape),
            dtype=self.scale.dtype,
            device=self.scale.device,
            generator=generator,
        )

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        n = len(self.event_shape)
        entries = -0.5 * (x.square() + math.log(2 * math.pi))
        return entries.flatten(x.dim() - n).sum(-1) if n else entries
