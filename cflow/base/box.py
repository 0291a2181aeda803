"""The uniform law on a box, log p(x) = -sum log(high - low) inside and -inf outside."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Product
from cflow.base.entries import summed, wide
from cflow.errors import DomainError
from cflow.typing import Batch, Points

__all__ = ["Uniform"]


class Uniform(Product):
    """Independent uniform entries: the base of maps of a box, such as bounded splines.

    Outside the closed box the log density is -inf, never NaN; its gradient is zero everywhere.

    Args:
        event_shape: Shape of one point, or a number of features.
        low: Lower end, a number or one for each entry.
        high: Upper end.

    Raises:
        DomainError: An end is infinite, or an upper end is not above its lower one.

    Example:
        >>> Uniform(2, low=-1.0).log_prob(torch.tensor([[0.0, 0.5], [0.0, 2.0]]))
        tensor([-1.3863,    -inf])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
    ) -> None:
        super().__init__(event_shape)
        ends = [torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in (low, high)]
        low, high = (end.detach().expand(self.event_shape).clone() for end in ends)
        if not bool((torch.isfinite(high - low) & (high > low)).all()):
            raise DomainError("Uniform: ends must be finite, and high above low in every entry")
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        size, low, high = (*shape, *self.event_shape), wide(self.low), wide(self.high)
        u = torch.rand(size, dtype=low.dtype, device=low.device, generator=generator)
        # rounding must not carry a point out of the box
        return torch.lerp(low, high, u).to(self.low.dtype).clamp(self.low, self.high)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x, width = self._enter(x), wide(self.high) - wide(self.low)
        inside = (x >= self.low) & (x <= self.high)
        dtype = torch.promote_types(x.dtype, width.dtype)
        entries = torch.where(inside, -width.log().to(dtype), -torch.inf)
        return summed(entries, len(self.event_shape))

    def log_mass(self, low: Tensor, high: Tensor, context: Tensor | None = None) -> Tensor:
        low, high = self._meet(low, high)
        return (high - low).clamp_min(0).log() - (self.high - self.low).double().log()

    def between(
        self, low: Tensor, high: Tensor, share: Tensor, context: Tensor | None = None
    ) -> Tensor:
        return torch.lerp(*self._meet(low, high), share)

    def _meet(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (end.double().clamp(self.low, self.high) for end in (low, high))
        return low, high
