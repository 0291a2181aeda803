"""DiT: a transformer over the patches of an image, steered by a condition through its norms.

    h_0 = W patches(x) + positions
    block:  h <- h + gate1 attention(norm(h) (1 + scale1) + shift1)
            h <- h + cross(h, tokens)                                where there are tokens
            h <- h + gate2 mlp(norm(h) (1 + scale2) + shift2)
    y = patches^-1(W (norm(h_K) (1 + scale) + shift))

Gates, scales and shifts are W silu(c) + b of the condition c, all zero at the start (AdaLN-Zero):
each block starts as the identity, and the network with an output of zero. Positions are fixed:

    (sin(r w_k), cos(r w_k), sin(s w_k), cos(s w_k)),    w_k = 10000^(-4 k / width)

at row r and column s of the patches.

Sources: Peebles and Xie (2023), Scalable diffusion models with transformers, arXiv 2212.09748;
cross-attention: Chen et al. (2023), PixArt-alpha, arXiv 2310.00426, section 2.3.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.nets.modulation import layer_norm, modulated, zeroed
from cflow.nets.multihead import CrossAttention, SelfAttention

__all__ = ["DiT"]


class DiT(nn.Module):
    """Map images to images of the same height and width, steered by a vector, and by tokens.

    The published sizes are S (width 384, layers 12, heads 6), B (768, 12, 12), L (1024, 24, 16) and
    XL (1152, 28, 16), with patches of side 2, 4 or 8. Weights start Xavier-uniform, biases at zero.

    Args:
        shape: Shape of one image, (channels, height, width).
        outputs: Channels of the result.
        condition: Length of the vector that steers all blocks.
        tokens: Length of the vectors of a sequence that attention reads; 0 for none.
        patch: Side of a patch in pixels; it divides height and width.
        width: Length of the hidden vectors, a multiple of 4.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Probability with which a hidden unit of the MLPs is silenced in training.

    Raises:
        ShapeError: The shape is not (channels, height, width).
        DomainError: A size is out of range, the patch does not divide the image, or the heads do
            not divide the width.

    References:
        Peebles and Xie (2023), arXiv 2212.09748, table 1 and section 3.2.

    Example:
        >>> net = DiT((1, 4, 6), 1, condition=8, patch=2, width=16, layers=1, heads=2)
        >>> net(torch.zeros(5, 1, 4, 6), torch.zeros(5, 8)).shape
        torch.Size([5, 1, 4, 6])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        condition: int,
        tokens: int = 0,
        patch: int = 2,
        width: int = 384,
        layers: int = 12,
        heads: int = 6,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ShapeError(f"DiT: shape must be (channels, height, width), got {tuple(shape)}")
        sizes = (*shape, outputs, condition, patch, width, layers, heads, expansion)
        if min(sizes) < 1 or tokens < 0 or width % 4 or width % heads:
            raise DomainError(
                "DiT: sizes must be positive, width a multiple of 4 and of heads, got shape="
                f"{tuple(shape)}, outputs={outputs}, condition={condition}, tokens={tokens}, "
                f"patch={patch}, width={width}, layers={layers}, heads={heads}, "
                f"expansion={expansion}"
            )
        channels, height, columns = shape
        if height % patch or columns % patch:
            raise DomainError(
                f"DiT: patch must divide height and width, got patch={patch} for {tuple(shape)}"
            )
        if not 0 <= dropout < 1:
            raise DomainError(f"DiT: dropout must lie in [0, 1), got {dropout}")
        self.shape, self.outputs, self.patch = tuple(shape), outputs, patch
        self.condition, self.tokens = condition, tokens
        self.rows = height // patch
        self.first = nn.Linear(channels * patch**2, width)
        self.positions: Tensor
        self.register_buffer(
            "positions", positions(self.rows, columns // patch, width), persistent=False
        )
        self.blocks = nn.ModuleList(
            _Block(width, condition, tokens, heads, expansion, dropout) for _ in range(layers)
        )
        self.steer = zeroed(nn.Linear(condition, 2 * width))
        self.last = zeroed(nn.Linear(width, outputs * patch**2))
        _xavier(self.first)

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return images, in the dtype of the weights.

        Args:
            x: Images `(*batch, channels, height, width)`.
            condition: What steers the blocks, `(*batch, condition)`.
            tokens: What attention reads, `(*batch, any, tokens)`, or None for the null condition.

        Returns:
            `(*batch, outputs, height, width)`.

        Raises:
            ShapeError: x or the condition has another trailing shape.
        """
        expect_trailing("DiT", "x", x, self.shape)
        expect_trailing("DiT", "condition", condition, (self.condition,))
        dtype, p = self.last.weight.dtype, self.patch
        patches = rearrange(x.to(dtype), "... c (h p) (w q) -> ... (h w) (c p q)", p=p, q=p)
        h = self.first(patches) + self.positions
        c = functional.silu(condition.to(dtype))[..., None, :]
        for block in self.blocks:
            h = block(h, c, tokens)
        shift, scale = self.steer(c).chunk(2, dim=-1)
        y = self.last(modulated(layer_norm(h), scale, shift))
        pattern = "... (h w) (c p q) -> ... c (h p) (w q)"
        return rearrange(y, pattern, h=self.rows, p=p, q=p)


class _Block(nn.Module):
    """Attention and an MLP, modulated and gated by c; what the tokens say between them."""

    def __init__(
        self, width: int, condition: int, tokens: int, heads: int, expansion: int, dropout: float
    ) -> None:
        super().__init__()
        self.steer = nn.Linear(condition, 6 * width)
        self.look = SelfAttention(width, heads)
        self.read = CrossAttention(width, heads, tokens=tokens) if tokens else None
        self.up = nn.Linear(width, expansion * width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(expansion * width, width)
        self.apply(_xavier)
        zeroed(self.steer)
        if self.read is not None:
            zeroed(self.read.merge)

    def forward(self, h: Tensor, c: Tensor, tokens: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.steer(c).chunk(6, dim=-1)
        h = h + gate1 * self.look(modulated(layer_norm(h), scale1, shift1))
        if self.read is not None:
            h = h + self.read(h, tokens)
        inner = functional.gelu(
            self.up(modulated(layer_norm(h), scale2, shift2)), approximate="tanh"
        )
        return h + gate2 * self.down(self.dropout(inner))


def _xavier(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.xavier_uniform_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Return fixed waves for the places of a grid, row by row, `(rows * columns, width)`.

    Example:
        >>> positions(1, 2, 4)[1]  # row 0, column 1
        tensor([0.0000, 1.0000, 0.8415, 0.5403])
    """
    k = torch.arange(width // 4, dtype=torch.float64)
    angular = 10_000.0 ** (-k / len(k))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * angular
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * angular
    waves = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
    return waves.to(torch.get_default_dtype())
