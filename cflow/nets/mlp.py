"""A multilayer perceptron whose extra inputs reach every layer.

    h_0 = x,    h_{k+1} = a(W_k [h_k, context] + b_k),    y = W_K [h_K, context] + b_K

Equal neighbouring widths are joined by a skip connection when `residual` is set.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.nets.activation import Activation, activate

__all__ = ["MLP"]


class MLP(nn.Module):
    """Map features (and a context) to outputs.

    Args:
        features: Length of the last axis of x.
        outputs: Length of the last axis of the result.
        context: Length of the last axis of the context; 0 for none.
        hidden_features: Widths of the hidden layers.
        activation: The function a between layers.
        residual: Add h_k to h_{k+1} where their widths agree.
        dropout: Probability with which a hidden unit is silenced in training.
        zero_last: Start with an output of zero (an identity layer, a resting field).

    Example:
        >>> MLP(2, 3, hidden_features=(16, 16))(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation = "silu",
        residual: bool = False,
        dropout: float = 0.0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        if min((outputs, *hidden_features)) < 1 or features < 0 or context < 0:
            raise DomainError(
                f"MLP: sizes must be positive, got features={features}, outputs={outputs}, "
                f"context={context}, hidden_features={tuple(hidden_features)}"
            )
        widths = [features, *hidden_features]
        self.hidden = nn.ModuleList(nn.Linear(a + context, b) for a, b in pairwise(widths))
        self.last = nn.Linear(widths[-1] + context, outputs)
        self.dropout = nn.Dropout(dropout)
        self.activation: Activation = activation
        self.residual = residual
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, outputs)` for x `(*batch, features)` and context `(*batch, context)`."""
        dtype = self.last.weight.dtype  # a net of low precision takes points of any
        h = x.to(dtype)
        context = None if context is None else context.to(dtype)
        for layer in self.hidden:
            new = self.dropout(activate(self.activation, layer(_join(h, context))))
            h = h + new if self.residual and h.shape == new.shape else new
        return self.last(_join(h, context))


def _join(h: Tensor, context: Tensor | None) -> Tensor:
    return h if context is None else torch.cat([h, context], dim=-1)
