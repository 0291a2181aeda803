"""Linear maps without parameters: permutations of features and changes of event shape."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.transport.transport import Layer, Shape

__all__ = ["Permutation", "Reshape"]


class Permutation(Layer):
    """Reorder features, y_i = x_order[i]; its log-determinant is zero.

    Args:
        order: Where each output feature comes from; every index once.

    Raises:
        DomainError: `order` is no permutation.

    Example:
        >>> from cflow.state import State
        >>> Permutation([2, 0, 1]).push(State(torch.tensor([[1.0, 2.0, 3.0]]))).x
        tensor([[3., 1., 2.]])
    """

    def __init__(self, order: Sequence[int] | Tensor) -> None:
        super().__init__(event_dim=1)
        index = torch.as_tensor(order, dtype=torch.long)
        if sorted(index.tolist()) != list(range(index.numel())):
            raise DomainError(f"Permutation: every index must occur once, got {index.tolist()}")
        self.order: Tensor
        self.inverse: Tensor
        self.register_buffer("order", index)
        self.register_buffer("inverse", torch.argsort(index))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._take(x, self.order, tracked=tracked)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._take(y, self.inverse, tracked=tracked)

    def _take(self, x: Tensor, order: Tensor, *, tracked: bool) -> tuple[Tensor, Tensor | None]:
        expect_trailing("Permutation", "x", x, order.shape)
        return x[..., order], x.new_zeros(()) if tracked else None


class Reshape(Layer):
    """Rearrange the axes of one point, such as (64,) to (8, 8); entries keep their order.

    Args:
        base_shape: Event shape on the base side.
        data_shape: Event shape on the data side, with as many entries.

    Raises:
        ShapeError: The two shapes differ in their number of entries.

    Example:
        >>> from cflow.state import State
        >>> Reshape((4,), (2, 2)).push(State(torch.zeros(5, 4))).x.shape
        torch.Size([5, 2, 2])
    """

    def __init__(self, base_shape: Sequence[int], data_shape: Sequence[int]) -> None:
        self.base_shape, self.data_shape = tuple(base_shape), tuple(data_shape)
        if math.prod(self.base_shape) != math.prod(self.data_shape):
            raise ShapeError(
                f"Reshape: both shapes must have as many entries, got {self.base_shape} with "
                f"{math.prod(self.base_shape)} and {self.data_shape} with "
                f"{math.prod(self.data_shape)}"
            )
        super().__init__(event_dim=0, out_shape=self._shape)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return _reshape("Reshape.push", x, self.base_shape, self.data_shape, tracked=tracked)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return _reshape("Reshape.pull", y, self.data_shape, self.base_shape, tracked=tracked)

    def _shape(self, shape: Shape) -> Shape:
        if tuple(shape) != self.base_shape:
            raise ShapeError(f"Reshape: expected event shape {self.base_shape}, got {tuple(shape)}")
        return self.data_shape


def _reshape(
    where: str, x: Tensor, old: Shape, new: Shape, *, tracked: bool
) -> tuple[Tensor, Tensor | None]:
    expect_trailing(where, "x", x, old)
    return x.reshape(x.shape[: x.dim() - len(old)] + new), x.new_zeros(()) if tracked else None
