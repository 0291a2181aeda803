"""A field whose network sees the entries of a point as one vector: matrices, clouds, images."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from cflow.errors import DomainError, expect_trailing
from cflow.field.field import Field
from cflow.typing import Points, Times

__all__ = ["FlattenedField"]


class FlattenedField(Field):
    """Hand the entries of a point to a field of vectors, in order, and shape its answer back.

    Args:
        field: A velocity of vectors, called as `field(t, x, context)` with x `(*batch, entries)`.
        event_shape: Shape of one point; any number of axes, or none.

    Raises:
        DomainError: A point has no entries.
        ShapeError: On use, points of another shape.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> field = FlattenedField(MLPField(9), (3, 3))
        >>> field(torch.rand(7), torch.eye(3).expand(7, 3, 3)).shape
        torch.Size([7, 3, 3])
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        event_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.field = field
        self.event_shape = tuple(event_shape)
        if math.prod(self.event_shape) < 1:
            raise DomainError(f"FlattenedField: a point of shape {self.event_shape} has no entries")

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        expect_trailing("FlattenedField", "x", x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        flat = x.reshape(*batch, math.prod(self.event_shape))
        return self.field(t, flat, context).reshape(x.shape)
