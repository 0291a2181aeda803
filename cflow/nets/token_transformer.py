"""A transformer over tokens that reads in both directions, steered by a condition if there is one.

    h_0 = table[x] + places
    block:  h <- h + gate1 attention(norm(h) (1 + scale1) + shift1)
            h <- h + gate2 mlp(norm(h) (1 + scale2) + shift2)
    logits = W (norm(h_K) (1 + scale) + shift)

Queries and keys are normalised and turned by their places (`Rotary`), which tells distances; where
all tokens are masks that says nothing, and each place has a vector of its own beside. Gates, scales
and shifts are W silu(c) + b of the condition c, as in a DiT; without one, gates are 1 and norms
plain. The last matrix of every branch starts at zero, so that each block starts as the identity.
Source: Peebles and Xie (2023), arXiv 2212.09748; Lou et al. (2024), SEDD, arXiv 2310.16834,
appendix D; norms of queries and keys: Henry et al. (2020), arXiv 2010.04245.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.nets.modulation import layer_norm, modulated, zeroed
from cflow.nets.multihead import attend
from cflow.nets.rotary import Rotary

__all__ = ["TokenTransformer"]


class TokenTransformer(nn.Module):
    """Map sequences of tokens to one row of logits for each token.

    Args:
        length: Length of the longest sequence.
        states: How many values a token has that is read.
        outputs: How many logits come out for each.
        condition: Length of the vector that steers all blocks; 0 for none.
        width: Length of the hidden vectors.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Probability with which an entry of a branch is silenced in training.

    Raises:
        DomainError: A size is out of range, or a head has an odd share of the width.
        ShapeError: On use, the sequence is longer.

    Example:
        >>> net = TokenTransformer(16, 11, 10, width=16, layers=1, heads=2)
        >>> net(torch.zeros(5, 7, dtype=torch.long)).shape
        torch.Size([5, 7, 10])
    """

    def __init__(
        self,
        length: int,
        states: int,
        outputs: int,
        *,
        condition: int = 0,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (length, states, outputs, width, layers, heads, expansion)
        if min(sizes) < 1 or condition < 0 or width % heads or width // heads % 2:
            raise DomainError(
                "TokenTransformer: sizes must be positive, and each head needs an even share of "
                f"the width, got length={length}, states={states}, outputs={outputs}, "
                f"condition={condition}, width={width}, layers={layers}, heads={heads}, "
                f"expansion={expansion}"
            )
        if not 0 <= dropout < 1:
            raise DomainError(f"TokenTransformer: dropout must lie in [0, 1), got {dropout}")
        self.length, self.states, self.condition = length, states, condition
        self.table = nn.Embedding(states, width)
        nn.init.normal_(self.table.weight, std=0.5)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.places.weight, std=0.1)
        self.rotary = Rotary(width // heads, length)
        self.blocks = nn.ModuleList(
            _Block(width, condition, heads, expansion, dropout) for _ in range(layers)
        )
        self.norm = _Steered(width, condition, 2)
        self.last = zeroed(nn.Linear(width, outputs))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits.

        Args:
            x: Tokens `(*batch, places)`, integers below `states`.
            condition: What steers the blocks, `(*batch, condition)`.

        Returns:
            `(*batch, places, outputs)`.
        """
        if x.dim() < 1 or x.shape[-1] > self.length:
            raise ShapeError(
                f"TokenTransformer: sequences may be {self.length} tokens long, got a tensor of "
                f"shape {tuple(x.shape)}"
            )
        c = None
        if self.condition:
            if condition is None:
                raise DomainError("TokenTransformer: needs a condition, got none")
            expect_trailing("TokenTransformer", "condition", condition, (self.condition,))
            c = functional.silu(condition.to(self.last.weight.dtype))[..., None, :]
        h = self.table(x) + self.places.weight[: x.shape[-1]]
        for block in self.blocks:
            h = block(h, c, self.rotary)
        shift, scale = self.norm(c)
        return self.last(_steered(h, shift, scale))


class _Steered(nn.Module):
    """What a condition does to a norm: rows of W c + b, zero at the start; None without one."""

    def __init__(self, width: int, condition: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.steer = zeroed(nn.Linear(condition, rows * width)) if condition else None

    def forward(self, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.steer is None or c is None:
            return (None,) * self.rows
        return self.steer(c).chunk(self.rows, dim=-1)


class _Block(nn.Module):
    """Attention and an MLP, each added to what it reads."""

    def __init__(
        self, width: int, condition: int, heads: int, expansion: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _Steered(width, condition, 6)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, expansion * width)
        self.down = zeroed(nn.Linear(expansion * width, width))
        nn.init.zeros_(self.merge.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, c: Tensor | None, rotary: Rotary) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.norm(c)
        found = self.dropout(self._look(_steered(h, shift1, scale1), rotary))
        h = h + (found if gate1 is None else (1 + gate1) * found)
        inner = functional.gelu(self.up(_steered(h, shift2, scale2)), approximate="tanh")
        moved = self.dropout(self.down(inner))
        return h + (moved if gate2 is None else (1 + gate2) * moved)

    def _look(self, h: Tensor, rotary: Rotary) -> Tensor:
        mixed = self.mix(h).unflatten(-1, (3 * self.heads, -1)).transpose(-3, -2)
        query, key, value = mixed.chunk(3, dim=-3)  # (*batch, heads, places, size)
        query, key = (rotary(_unit(z)).to(value.dtype) for z in (query, key))
        return self.merge(attend(query, key, value).transpose(-3, -2).flatten(-2))


def _steered(h: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    if shift is None or scale is None:
        return layer_norm(h)
    return modulated(layer_norm(h), scale, shift)


def _unit(h: Tensor) -> Tensor:
    """Scale vectors to a root mean square of one, in float32 at least."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
