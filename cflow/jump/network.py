"""Networks for rates: tokens, times and a condition in, a row of logits for each token out.

Any module or function of that form will do; these two are a transformer for sequences and a
perceptron for a few tokens.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_trailing
from cflow.field import Condition, SinusoidalTime
from cflow.nets import MLP, Activation, TokenTransformer
from cflow.typing import Data, Times

__all__ = ["TokenMLP", "TransformerRates"]

FREQUENCIES = 64


class TransformerRates(nn.Module):
    """Steer a transformer over tokens by time and condition.

    Args:
        length: Length of the longest sequence.
        states: How many values a token has on the way, `base.states`.
        outputs: Logits for each token, `base.vocabulary`; `base.states` for direct rates.
        classes: Number of classes if the context is a label `(*batch,)`; `classes` itself, or a
            negative label, means none.
        context: Length of the context if it is a vector; 0 for none.
        timed: Whether the network sees time. With masks it need not: their number tells it, and
            p(x1 | x_t) does not depend on time else.
        width: Length of the hidden vectors.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Dropout probability in training.

    Attributes:
        null: The value of a context that says nothing, for guidance and `ContextDropout`.

    Raises:
        DomainError: A size is out of range.

    References:
        Ou et al. (2024), arXiv 2406.03736, theorem 1 (masks without time).

    Example:
        >>> net = TransformerRates(8, 5, 4, width=16, layers=1, heads=2)
        >>> net(torch.rand(3), torch.zeros(3, 8, dtype=torch.long)).shape
        torch.Size([3, 8, 4])
    """

    def __init__(
        self,
        length: int,
        states: int,
        outputs: int,
        *,
        classes: int = 0,
        context: int = 0,
        timed: bool = True,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        steered = timed or classes or context
        self.timed = timed
        self.condition = None
        if steered:
            time = SinusoidalTime(FREQUENCIES)
            self.condition = Condition(width, time, classes=classes, context=context)
        self.null = None if self.condition is None else self.condition.null
        self.net = TokenTransformer(
            length,
            states,
            outputs,
            condition=width if steered else 0,
            width=width,
            layers=layers,
            heads=heads,
            expansion=expansion,
            dropout=dropout,
        )

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        """Return logits `(*batch, places, outputs)` for tokens `(*batch, places)`."""
        if self.condition is None:
            if context is not None:
                raise DomainError(
                    "TransformerRates: there is no context here, got one of shape "
                    f"{tuple(context.shape)}; build it with classes or context"
                )
            return self.net(x)
        t = t if self.timed else torch.zeros_like(t)
        return self.net(x, self.condition(t, context))


class TokenMLP(nn.Module):
    """Map a few tokens, embedded and put side by side, through a perceptron steered by time.

    Args:
        event_shape: Shape of one point, or a length.
        states: How many values a token has on the way, `base.states`.
        outputs: Logits for each token, `base.vocabulary`; `base.states` for direct rates.
        context: Length of the context vector; 0 for none.
        embedding: Length of the vector that stands for a token.
        hidden_features: Widths of the hidden layers.
        activation: The function between layers.

    Raises:
        DomainError: A size is out of range.
        ShapeError: On use, tokens of another shape.

    Example:
        >>> TokenMLP(2, 5, 4)(torch.rand(3), torch.zeros(3, 2, dtype=torch.long)).shape
        torch.Size([3, 2, 4])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        states: int,
        outputs: int,
        context: int = 0,
        *,
        embedding: int = 64,
        hidden_features: Sequence[int] = (256, 256, 256),
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        one = isinstance(event_shape, int)
        self.event_shape: tuple[int, ...] = (event_shape,) if one else tuple(event_shape)
        tokens = math.prod(self.event_shape)
        if min(tokens, states, outputs, embedding) < 1:
            raise DomainError(
                f"TokenMLP: sizes must be positive, got event_shape={self.event_shape}, "
                f"states={states}, outputs={outputs}, embedding={embedding}"
            )
        self.outputs = outputs
        self.time = SinusoidalTime(FREQUENCIES)
        self.table = nn.Embedding(states, embedding)
        self.net = MLP(
            tokens * embedding,
            tokens * outputs,
            context=self.time.features + context,
            hidden_features=hidden_features,
            activation=activation,
            residual=True,
            zero_last=True,
        )

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        """Return logits `(*batch, *event, outputs)` for tokens `(*batch, *event)`."""
        expect_trailing("TokenMLP", "x", x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        h = self.table(x).reshape(*batch, -1)
        steered = self.time(t.to(h.dtype))
        if context is not None:
            steered = torch.cat([steered, context.to(h.dtype)], -1)
        return self.net(h, steered).reshape(*batch, *self.event_shape, self.outputs)
