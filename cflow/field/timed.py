"""A perceptron of point, time and context with any number of outputs: coefficients of a frame.

    y = MLP(features(x), (waves(t), context))

Unlike a field it need not answer with as many numbers as a point has entries.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_trailing
from cflow.field.time import FourierTime, TimeEmbedding
from cflow.nets import MLP, Activation
from cflow.typing import Points, Times

__all__ = ["Features", "TimedMLP"]


@runtime_checkable
class Features(Protocol):
    """How a network sees the entries of a point, such as `cflow.nets.PeriodicFeatures`."""

    outputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return features `(*batch, outputs)` of entries `(*batch, entries)`."""
        ...


class TimedMLP(nn.Module):
    """Map points at times to numbers; the entries of a point are seen as one vector.

    Args:
        event_shape: Shape of one point, or a number of features.
        outputs: How many numbers come out.
        context: Length of the context vector; 0 for none.
        seen: How the network sees the entries; as they are by default.
        hidden_features: Widths of the hidden layers.
        time: How the network sees time; `FourierTime(8)` by default.
        activation: The function between layers.
        residual: Skip connections between hidden layers of equal width.
        dropout: Dropout probability in training.
        zero_last: Start with an output of zero.

    Raises:
        DomainError: A size is out of range.
        ShapeError: On use, points of another shape.

    Example:
        >>> TimedMLP((3, 3), 5)(torch.rand(7), torch.randn(7, 3, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        outputs: int,
        context: int = 0,
        *,
        seen: Features | None = None,
        hidden_features: Sequence[int] = (64, 64, 64),
        time: TimeEmbedding | None = None,
        activation: Activation = "silu",
        residual: bool = False,
        dropout: float = 0.0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        one = isinstance(event_shape, int)
        self.event_shape: tuple[int, ...] = (event_shape,) if one else tuple(event_shape)
        self.entries = math.prod(self.event_shape)
        if self.entries < 1:
            raise DomainError(f"TimedMLP: a point of shape {self.event_shape} has no entries")
        self.seen = seen
        self.time = FourierTime(8) if time is None else time
        self.net = MLP(
            self.entries if seen is None else seen.outputs,
            outputs,
            context=self.time.features + context,
            hidden_features=hidden_features,
            activation=activation,
            residual=residual,
            dropout=dropout,
            zero_last=zero_last,
        )

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        """Return `(*batch, outputs)` for points `(*batch, *event)`, in the dtype of x."""
        expect_trailing("TimedMLP", "x", x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        flat = x.reshape(*batch, self.entries)
        steered = self.time(t)
        if context is not None:
            steered = torch.cat([steered, context.to(steered.dtype)], -1)
        return self.net(flat if self.seen is None else self.seen(flat), steered).to(x.dtype)
