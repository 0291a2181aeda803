"""A field whose layers are gated and shifted by time and context, as FFJORD builds them.

    concat:        y = W x + b + H c
    squash:        y = (W x + b) * sigmoid(G c + g)
    concatsquash:  y = (W x + b) * sigmoid(G c + g) + H c

with c = (t, context) and * the product entry by entry.
Source: Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, appendix B.1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.field.field import Field
from cflow.nets import Activation, activate
from cflow.typing import Points, Times

__all__ = ["Conditioning", "GatedField", "GatedLinear"]

Conditioning: TypeAlias = Literal["concatsquash", "squash", "concat"]
"""How a layer sees time and context: gate and shift, gate, or shift."""


class GatedLinear(nn.Module):
    """Map x linearly, gated and shifted by what c says.

    Args:
        features: Length of the last axis of x.
        outputs: Length of the last axis of the result.
        context: Length of the last axis of c.
        layer: Whether c gates, shifts, or does both.

    Example:
        >>> GatedLinear(2, 3, context=1)(torch.zeros(5, 2), torch.zeros(5, 1)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, features: int, outputs: int, *, context: int, layer: Conditioning = "concatsquash"
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)
        self.gate = nn.Linear(context, outputs) if layer != "concat" else None
        self.shift = nn.Linear(context, outputs, bias=False) if layer != "squash" else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return `(*batch, outputs)` for x `(*batch, features)` and c `(*batch, context)`."""
        y = self.linear(x)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(c))
        return y if self.shift is None else y + self.shift(c)


class GatedField(Field):
    """Predict a velocity with layers that time and context gate.

    The last layer starts at zero, so that an ODE along the field starts as the identity.

    Args:
        features: Coordinates of a point (a 1-D event).
        context: Length of the context vector; 0 for none.
        hidden_features: Widths of the hidden layers, at least one.
        layer: How every layer sees time and context.
        activation: The function between layers.

    Raises:
        DomainError: A size is not positive, or there is no hidden layer.

    Example:
        >>> GatedField(2, 3)(torch.rand(7), torch.zeros(7, 2), torch.zeros(7, 3)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        hidden_features: Sequence[int] = (64, 64, 64),
        layer: Conditioning = "concatsquash",
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        widths = (features, *hidden_features, features)
        if len(widths) < 3 or min(widths) < 1 or context < 0:
            raise DomainError(
                f"GatedField: sizes must be positive and one layer hidden at least, got features="
                f"{features}, context={context}, hidden_features={tuple(hidden_features)}"
            )
        self.activation: Activation = activation
        self.layers = nn.ModuleList(
            GatedLinear(a, b, context=1 + context, layer=layer) for a, b in pairwise(widths)
        )
        last = self.layers[-1]
        for part in (last.linear, last.shift):
            if isinstance(part, nn.Linear):
                for parameter in part.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        c = t[..., None] if context is None else torch.cat([t[..., None], context], dim=-1)
        *hidden, last = self.layers
        for layer in hidden:
            x = activate(self.activation, layer(x, c))
        return last(x, c)
