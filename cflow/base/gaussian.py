"""The standard normal law, log p(x) = -|x|^2 / 2 - n log(2 pi) / 2."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Centred, Product
from cflow.base.entries import summed, wide
from cflow.base.interval import normal_between, normal_log_mass
from cflow.typing import Batch, Points

__all__ = ["Gaussian"]


class Gaussian(Centred, Product):
    """Independent standard normal entries of any event shape; dtype and device follow `.to()`.

    Args:
        event_shape: Shape of one point, or a number of features.

    Example:
        >>> Gaussian(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape)
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
        entries = -0.5 * (self._enter(x).square() + math.log(2 * math.pi))
        return summed(entries, len(self.event_shape))

    def centre(self, context: Tensor | None = None) -> Tensor:
        return wide(torch.zeros_like(self.scale))

    def log_mass(self, low: Tensor, high: Tensor, context: Tensor | None = None) -> Tensor:
        zero = self.centre().expand(self.event_shape)
        return normal_log_mass(low, high, zero, zero)

    def between(
        self, low: Tensor, high: Tensor, share: Tensor, context: Tensor | None = None
    ) -> Tensor:
        return normal_between(low, high, share, self.centre(), self.centre())
