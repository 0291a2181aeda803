"""Attention of many heads that reads every place: of its own sequence, or of a condition's.

    heads of  softmax(Q K' / sqrt(size)) V,    Q = W_q h,    (K, V) = W_kv h  or  W_kv tokens

Torch's fused kernel does the work, in compiled and exported graphs as well. It has no forward mode,
no second derivative and no batching rule, so that under `torch.func` (an exact divergence) the
products are written out; both give the same numbers. They are written out on CPUs too where that is
quicker (`benchmarks/jump.py`): over short sequences in half precision, whose gradients take the
kernel 1.3 to 7 times the time, and without gradients over the shortest. Exported graphs, which may
run anywhere, keep the kernel.
Sources: Vaswani et al. (2017), arXiv 1706.03762, equation 1; cross-attention on a condition:
Rombach et al. (2022), arXiv 2112.10752, section 3.3; Chen et al. (2023), PixArt-alpha, arXiv
2310.00426, section 2.3.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, expect_trailing, transformed
from cflow.nets.modulation import zeroed

__all__ = ["CrossAttention", "SelfAttention", "attend", "written_out"]

SHORT = 256  # places that are read, where gradients will be taken in half precision
SHORTER = 32  # where none will be


class SelfAttention(nn.Module):
    """Let every place of a sequence read all places.

    Args:
        width: Length of the vectors.
        heads: Attention heads; they share the width.
        zero_last: Start with an output of zero.

    Raises:
        DomainError: A size is not positive, or the heads do not divide the width.

    Example:
        >>> SelfAttention(8, 2)(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, width: int, heads: int, *, zero_last: bool = False) -> None:
        super().__init__()
        _expect_heads("SelfAttention", width, heads)
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        if zero_last:
            zeroed(self.merge)

    def forward(self, h: Tensor) -> Tensor:
        """Return `(*batch, places, width)` for h of that shape."""
        query, key, value = _heads(self.mix(h), 3 * self.heads).chunk(3, dim=-3)
        return self.merge(_joined(attend(query, key, value)))


class CrossAttention(nn.Module):
    """Let every place of a sequence read the tokens of a condition.

    Keys and values have no bias, so that a token of zeros says nothing: no tokens at all, and any
    number of tokens of zeros, are one and the same null condition.

    Args:
        width: Length of the vectors that read.
        heads: Attention heads; they share the width.
        tokens: Length of the vectors that are read.
        zero_last: Start with an output of zero.

    Raises:
        DomainError: A size is not positive, or the heads do not divide the width.

    Example:
        >>> CrossAttention(8, 2, tokens=5)(torch.zeros(4, 3, 8), torch.zeros(4, 7, 5)).shape
        torch.Size([4, 3, 8])
    """

    def __init__(self, width: int, heads: int, *, tokens: int, zero_last: bool = True) -> None:
        super().__init__()
        _expect_heads("CrossAttention", width, heads)
        if tokens < 1:
            raise DomainError(f"CrossAttention: tokens must have a positive length, got {tokens}")
        self.heads, self.tokens = heads, tokens
        self.ask = nn.Linear(width, width)
        self.read = nn.Linear(tokens, 2 * width, bias=False)
        self.merge = nn.Linear(width, width)
        if zero_last:
            zeroed(self.merge)

    def forward(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return `(*batch, places, width)` for h of that shape.

        Args:
            h: What reads, `(*batch, places, width)`.
            tokens: What is read, `(*batch, any, tokens)`, or None for the null condition.
        """
        if tokens is None:
            tokens = h.new_zeros(*h.shape[:-2], 1, self.tokens)
        expect_trailing("CrossAttention", "tokens", tokens, (self.tokens,))
        query = _heads(self.ask(h), self.heads)
        key, value = _heads(self.read(tokens.to(h.dtype)), 2 * self.heads).chunk(2, dim=-3)
        return self.merge(_joined(attend(query, key, value)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K' / sqrt(size)) V, the softmax in float32 at least.

    Args:
        query: `(*batch, n, size)`.
        key: `(*batch, m, size)`.
        value: `(*batch, m, size)`.

    Returns:
        `(*batch, n, size)`.

    Example:
        >>> attend(torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))
        tensor([[2.]])
    """
    if not (transformed() or _short(key)):
        return functional.scaled_dot_product_attention(query, key, value)
    return written_out(query, key, value)


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what `attend` does by products and a softmax, whatever torch's kernel could do.

    Example:
        >>> written_out(torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))
        tensor([[2.]])
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
    return weights.to(value.dtype) @ value


def _short(key: Tensor) -> bool:
    """Say whether the products are quicker than the kernel."""
    on_cpu = key.device.type == "cpu" and not torch.compiler.is_exporting()
    graded = torch.is_grad_enabled() and key.requires_grad
    most = SHORTER if not graded else SHORT if key.dtype.itemsize < 4 else 0
    return on_cpu and key.shape[-2] <= most


def _heads(h: Tensor, heads: int) -> Tensor:
    """Split vectors into heads, `(*batch, heads, places, size)`."""
    return h.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _joined(h: Tensor) -> Tensor:
    return h.transpose(-3, -2).flatten(-2)


def _expect_heads(where: str, width: int, heads: int) -> None:
    if min(width, heads) < 1 or width % heads:
        raise DomainError(
            f"{where}: sizes must be positive and heads divide width, got width={width}, "
            f"heads={heads}"
        )
