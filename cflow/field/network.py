"""A field made of a plain network that sees the point, features of time, and the context."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.field.field import Field
from cflow.field.time import FourierTime, TimeEmbedding
from cflow.nets import MLP, Activation
from cflow.typing import Points, Times

__all__ = ["MLPField"]


class MLPField(Field):
    """Predict a velocity of `features` coordinates with a perceptron.

    Args:
        features: Coordinates of a point (a 1-D event).
        context: Length of the context vector; 0 for none.
        hidden_features: Widths of the hidden layers.
        time: How the network sees time; `FourierTime(frequencies)` by default.
        frequencies: Fourier frequencies of time, where `time` is not given.
        activation: The function between layers.
        residual: Skip connections between hidden layers of equal width.
        dropout: Dropout probability in training.

    Example:
        >>> MLPField(2)(torch.rand(7), torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        hidden_features: Sequence[int] = (64, 64, 64),
        time: TimeEmbedding | None = None,
        frequencies: int = 8,
        activation: Activation = "silu",
        residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.time = FourierTime(frequencies) if time is None else time
        self.net = MLP(
            features,
            features,
            context=self.time.features + context,
            hidden_features=hidden_features,
            activation=activation,
            residual=residual,
            dropout=dropout,
        )

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        features = self.time(t)
        if context is not None:
            features = torch.cat([features, context], dim=-1)
        return self.net(x, features).to(x.dtype)  # as solvers want it, whatever the weights'
