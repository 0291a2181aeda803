"""A causal transformer over tokens: what it says of token t reads only the tokens before t.

    h_0 = p_0 + c,    h_t = W x_(t-1) + p_t + c,    theta_t = head(blocks(h))_t
    block:  h <- h + attention(norm(h)),   h <- h + mlp(norm(h))

The sequence enters shifted by one place, so the first token's parameters are learned (and follow
the condition c, an embedded class or vector) and the causal mask leaves no way for x_t into
theta_t. One pass gives all parameters; `begin` and `step` give them token by token, each token
passing once, with the keys and values of earlier tokens in a `Cache` that belongs to the caller.
Source: Vaswani et al. (2017), arXiv 1706.03762; pre-norm blocks: Xiong et al. (2020), 2002.04745.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, expect_trailing
from cflow.nets.modulation import layer_norm

__all__ = ["Cache", "CausalNetwork", "CausalTransformer"]


class Cache(NamedTuple):
    """What a token-by-token pass remembers; every step returns a new one and changes none.

    Attributes:
        position: Tokens passed so far.
        condition: Embedded condition, `(*batch, width)`.
        temperature: Attention temperature, broadcastable to `(*batch,)`, or None for 1.
        layers: For each block keys and values, `(*batch, heads, position, width / heads)` each.
    """

    position: int
    condition: Tensor
    temperature: Tensor | None
    layers: tuple[tuple[Tensor, Tensor], ...]


class CausalNetwork(nn.Module, ABC):
    """Steer an autoregressive layer: parameters for every token from the tokens before it.

    Args:
        tokens: Length of the sequence.
        channels: Numbers in one token.
        outputs: Parameters for one token.
    """

    def __init__(self, tokens: int, channels: int, outputs: int) -> None:
        super().__init__()
        if min(tokens, channels, outputs) < 1:
            raise DomainError(
                f"{type(self).__name__}: sizes must be positive, got tokens={tokens}, "
                f"channels={channels}, outputs={outputs}"
            )
        self.tokens, self.channels, self.outputs = tokens, channels, outputs

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, tokens, outputs)` for x `(*batch, tokens, channels)`, in one pass."""

    @abstractmethod
    def begin(self, batch: Sequence[int], context: Tensor | None = None) -> tuple[Tensor, Cache]:
        """Return the first token's parameters `(*batch, outputs)`, and what to go on with."""

    @abstractmethod
    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Take the next token `(*batch, channels)`; return the parameters of the one after it."""


class CausalTransformer(CausalNetwork):
    """Pre-norm attention and MLP blocks under a causal mask; starts with an output of zero.

    Attention is written as matrix products, so that forward and reverse mode, `vmap` and export
    pass through it; norms and softmax are taken in float32 at least.

    Args:
        tokens: Length of the sequence.
        channels: Numbers in one token.
        outputs: Parameters for one token.
        width: Length of the hidden vectors.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        classes: Number of classes if the context is integer labels `(*batch,)`; a negative label,
            or None for the whole context, is the null class.
        context: Length of the context if it is a vector `(*batch, context)`; 0 for none.

    Raises:
        DomainError: A size is out of range, or both labels and vectors are asked for.

    Example:
        >>> net = CausalTransformer(4, 2, 6, width=16, layers=1, heads=2, classes=10)
        >>> net(torch.zeros(5, 4, 2), torch.tensor([3, 1, 4, 1, -1])).shape
        torch.Size([5, 4, 6])
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        outputs: int,
        *,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        expansion: int = 4,
        classes: int = 0,
        context: int = 0,
    ) -> None:
        super().__init__(tokens, channels, outputs)
        if min(width, layers, heads, expansion) < 1 or width % heads:
            raise DomainError(
                f"CausalTransformer: sizes must be positive and heads divide width, got "
                f"width={width}, layers={layers}, heads={heads}, expansion={expansion}"
            )
        if min(classes, context) < 0 or classes * context:
            raise DomainError(
                f"CausalTransformer: the context is either one of some classes or a vector, got "
                f"classes={classes}, context={context}"
            )
        self.classes, self.context = classes, context
        self.first = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last one is null
        self.given = nn.Linear(context, width, bias=False) if context else None
        self.blocks = nn.ModuleList(_Block(width, heads, expansion) for _ in range(layers))
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, temperature: Tensor | None = None
    ) -> Tensor:
        """Return the parameters of all tokens in one pass.

        Args:
            x: Tokens `(*batch, tokens, channels)`; the last one is not read.
            context: Labels `(*batch,)` or vectors `(*batch, context)`.
            temperature: Divides attention scores, broadcastable to `(*batch,)`; 1 by default.

        Returns:
            `(*batch, tokens, outputs)`, in the dtype of the weights.
        """
        expect_trailing("CausalTransformer", "x", x, (self.tokens, self.channels))
        h = self.first(x[..., :-1, :].to(self.last.weight.dtype))
        h = functional.pad(h, (0, 0, 1, 0)) + self.positions  # the first place has no past
        h = h + self._condition(x.shape[:-2], context)[..., None, :]
        for block in self.blocks:
            h, _ = block(h, temperature, None)
        return self.last(h)

    def begin(
        self,
        batch: Sequence[int],
        context: Tensor | None = None,
        *,
        temperature: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        condition = self._condition(tuple(batch), context)
        return self._advance(condition, Cache(0, condition, temperature, ()))

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        h = self.first(x.to(self.last.weight.dtype)) + cache.condition
        return self._advance(h, cache)

    def _advance(self, h: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        h = (h + self.positions[cache.position])[..., None, :]
        layers = []
        for k, block in enumerate(self.blocks):
            h, known = block(h, cache.temperature, cache.layers[k] if cache.layers else None)
            layers.append(known)
        cache = cache._replace(position=cache.position + 1, layers=tuple(layers))
        return self.last(h[..., 0, :]), cache

    def _condition(self, batch: tuple[int, ...], context: Tensor | None) -> Tensor:
        """Embed the context, `(*batch, width)`; zero where the network takes none."""
        if self.labels is not None:
            if context is None:
                return self.labels.weight[-1].expand(*batch, -1)
            if context.is_floating_point():
                raise DomainError(
                    f"CausalTransformer: labels must be integers, got {context.dtype}"
                )
            return self.labels(torch.where(context < 0, self.classes, context))
        if self.given is not None and context is not None:
            expect_trailing("CausalTransformer", "context", context, (self.context,))
            return self.given(context.to(self.last.weight.dtype))
        return self.positions.new_zeros(*batch, self.positions.shape[-1])


class _Norm(nn.Module):
    """Layer normalisation with a learned scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        return layer_norm(h, self.weight, self.bias)


class _Block(nn.Module):
    """Attention and an MLP, each added to what it reads; knows keys and values of the past."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = _Norm(width), _Norm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(
        self, h: Tensor, temperature: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return h `(*batch, n, width)` moved on, and all keys and values up to it."""
        mixed = self.mix(self.before_attention(h)).unflatten(-1, (3 * self.heads, -1))
        query, key, value = mixed.transpose(-3, -2).chunk(3, dim=-3)  # (*batch, heads, n, size)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=-2), torch.cat([past[1], value], dim=-2)
        found = _attend(query, key, value, temperature)
        h = h + self.merge(found.transpose(-3, -2).flatten(-2))
        h = h + self.down(functional.gelu(self.up(self.before_mlp(h))))
        return h, (key, value)


def _attend(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor | None) -> Tensor:
    """Let the last places of a sequence read all places up to their own."""
    scores = query @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores / math.sqrt(query.shape[-1])
    if temperature is not None:
        scores = scores / temperature[..., None, None, None].to(scores.dtype)
    places = torch.arange(key.shape[-2], device=key.device)
    future = places > places[key.shape[-2] - query.shape[-2] :, None]
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return weights.to(value.dtype) @ value
