"""The equations that are solved: perceptrons, a stiff mate, a field that works row by row."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cflow.field import Field, TwoLayerField

RATE = 2000.0  # of the stiff mate's relaxation, per unit of time


class Perceptron(Field):
    """Three hidden layers with SiLU that see the point and the time.

    Args:
        features: Coordinates of a point.
        width: Units of each hidden layer.
        gain: Factor on the initial weights: 1 for a fresh field, 2 to 3 for a trained-like one.
    """

    def __init__(self, features: int, *, width: int = 256, gain: float = 1.0) -> None:
        super().__init__()
        sizes = (features + 1, width, width, width, features)
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])
        scale_weights(self, gain)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], dim=-1))


class Rowwise(Field):
    """A field of elementwise arithmetic: no kernel of it may know how many rows there are."""

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.sin(3 * x + t[:, None]) - x.flip(-1)


class Mated(Field):
    """A field with a mask in the context: marked rows relax at a high rate to a moving circle."""

    def __init__(self, field: Field, *, rate: float = RATE) -> None:
        super().__init__()
        self.field, self.rate = field, rate
        self.phase: Tensor
        self.register_buffer("phase", torch.arange(8) * (math.pi / 2))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        circle = torch.cos(2 * math.pi * t[:, None] - self.phase[: x.shape[-1]])
        return torch.where(context, self.rate * (circle - x), self.field(t, x))


class Breaking(Field):
    """A field with a mask in the context: marked rows turn to NaN at t = 0.3."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        return self.field(t, x).masked_fill(context & (t[:, None] > 0.3), math.nan)


@torch.no_grad()
def scale_weights(module: nn.Module, gain: float) -> None:
    """Multiply the weight matrices of a module, not its biases."""
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.mul_(gain)


def two_layer(features: int, *, width: int = 256, gain: float = 1.0) -> TwoLayerField:
    """Build a field with a closed divergence, and draw the weights that start at zero."""
    field = TwoLayerField(features, hidden_features=(width, width))
    with torch.no_grad():
        for parameter in field.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=gain / (3 * parameter.shape[1]) ** 0.5)
    return field


def marked(rows: int, *, last: bool) -> Tensor:
    """Return a mask `(rows, 1)` that marks the last row, or none."""
    mask = torch.zeros(rows, 1, dtype=torch.bool)
    mask[rows - 1 :] = last
    return mask


def broadcasting(f: Callable[..., Tensor], *args: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return f(t, y, *args) for solvers that hand on one time for all rows."""
    return lambda t, y: f(t.expand(len(y)), y, *args)
