"""UNet: residual convolutions on a pyramid of resolutions, steered by a condition.

    down:    (block, block, halve), ..., (block, block)         outputs are remembered
    middle:  block, attention, block
    up:      (block, block, block, double), ...                 each block reads one of them
    block:   h + conv(silu(norm(conv(silu(norm(h)))) (1 + scale) + shift)),   from condition c

A last convolution of zero closes every block and the network, so that it starts with an output of
zero. Halving rounds up (28, 14, 7, 4), doubling cuts off what is over.
Sources: Ronneberger et al. (2015), arXiv 1505.04597; Ho et al. (2020), Denoising diffusion
probabilistic models, arXiv 2006.11239, appendix B; Dhariwal and Nichol (2021), Diffusion models
beat GANs on image synthesis, arXiv 2105.05233, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.nets.modulation import GroupNorm, modulated, zeroed
from cflow.nets.multihead import CrossAttention, SelfAttention

__all__ = ["UNet"]


class UNet(nn.Module):
    """Map images to images of the same height and width, steered by a vector, and by tokens.

    Args:
        channels: Channels of x.
        outputs: Channels of the result.
        condition: Length of the vector that steers all blocks.
        tokens: Length of the vectors of a sequence that attention reads; 0 for none.
        width: Channels at full resolution.
        multipliers: Channels of each resolution in units of `width`, the full one first; there is
            a halving between any two.
        blocks: Residual blocks of each resolution on the way down; there is one more on the way up.
        attention: Resolutions whose blocks attend, 0 the full one; the middle always does.
        heads: Attention heads; they share the channels.
        dropout: Probability with which an entry within a block is silenced in training.

    Raises:
        DomainError: A size is out of range, a resolution does not exist, or the heads do not divide
            the channels of one that attends.

    References:
        Ho et al. (2020), arXiv 2006.11239; Dhariwal and Nichol (2021), arXiv 2105.05233.

    Example:
        >>> net = UNet(1, 1, condition=16, width=8, multipliers=(1, 2), blocks=1)
        >>> net(torch.zeros(5, 1, 7, 7), torch.zeros(5, 16)).shape
        torch.Size([5, 1, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        condition: int,
        tokens: int = 0,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (channels, outputs, condition, width, blocks, heads, *multipliers)
        if not multipliers or min(sizes) < 1 or tokens < 0:
            raise DomainError(
                f"UNet: sizes must be positive, got channels={channels}, outputs={outputs}, "
                f"condition={condition}, tokens={tokens}, width={width}, multipliers="
                f"{tuple(multipliers)}, blocks={blocks}, heads={heads}"
            )
        levels = len(multipliers)
        if not set(attention) <= set(range(levels)):
            raise DomainError(
                f"UNet: attention names resolutions from 0, the full one, to {levels - 1}, the "
                f"coarsest of {levels} multipliers, got {tuple(attention)}"
            )
        if not 0 <= dropout < 1:
            raise DomainError(f"UNet: dropout must lie in [0, 1), got {dropout}")
        self.channels, self.outputs = channels, outputs
        self.condition, self.tokens = condition, tokens

        def block(reads: int, writes: int, *, attends: bool) -> _Block:
            return _Block(reads, writes, condition, tokens, heads if attends else 0, dropout)

        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        here, remembered = width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(block(here, multiplier * width, attends=level in attention))
                here = multiplier * width
                remembered.append(here)
            if level < levels - 1:
                self.down.append(nn.Conv2d(here, here, 3, stride=2, padding=1))
                remembered.append(here)
        self.middle.append(block(here, here, attends=True))
        self.middle.append(block(here, here, attends=False))
        for level, multiplier in reversed(tuple(enumerate(multipliers))):
            for _ in range(blocks + 1):
                reads = here + remembered.pop()
                self.up.append(block(reads, multiplier * width, attends=level in attention))
                here = multiplier * width
            if level:
                self.up.append(nn.Conv2d(here, here, 3, padding=1))
        self.norm = GroupNorm(here)
        self.last = zeroed(nn.Conv2d(here, outputs, 3, padding=1))

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
        if x.dim() < 3 or x.shape[-3] != self.channels:
            raise ShapeError(
                f"UNet: x must end in ({self.channels}, height, width), got {tuple(x.shape)}"
            )
        expect_trailing("UNet", "condition", condition, (self.condition,))
        batch, dtype = x.shape[:-3], self.last.weight.dtype
        h = self.first(x.to(dtype).reshape(-1, *x.shape[-3:]))
        c = functional.silu(condition.to(dtype).reshape(-1, self.condition))
        if tokens is not None:
            tokens = tokens.to(dtype).reshape(-1, *tokens.shape[-2:])
        seen = [h]
        for part in self.down:
            h = part(h) if isinstance(part, nn.Conv2d) else part(h, c, tokens)
            seen.append(h)
        for part in self.middle:
            h = part(h, c, tokens)
        for part in self.up:
            if isinstance(part, nn.Conv2d):
                height, width = seen[-1].shape[-2:]
                h = part(functional.interpolate(h, scale_factor=2.0)[..., :height, :width])
            else:
                h = part(torch.cat([h, seen.pop()], dim=1), c, tokens)
        y = self.last(functional.silu(self.norm(h)))
        return y.reshape(*batch, *y.shape[1:])


class _Block(nn.Module):
    """Two convolutions steered by c, added to what they read; attention, added to that."""

    def __init__(
        self, reads: int, writes: int, condition: int, tokens: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.before, self.between = GroupNorm(reads), GroupNorm(writes)
        self.first = nn.Conv2d(reads, writes, 3, padding=1)
        self.steer = nn.Linear(condition, 2 * writes)
        self.dropout = nn.Dropout(dropout)
        self.second = zeroed(nn.Conv2d(writes, writes, 3, padding=1))
        self.pass_on = nn.Identity() if reads == writes else nn.Conv2d(reads, writes, 1)
        self.attention = _Attention(writes, heads, tokens) if heads else None

    def forward(self, h: Tensor, c: Tensor, tokens: Tensor | None) -> Tensor:
        scale, shift = self.steer(c)[..., None, None].chunk(2, dim=1)
        inner = self.first(functional.silu(self.before(h)))
        inner = functional.silu(modulated(self.between(inner), scale, shift))
        h = self.pass_on(h) + self.second(self.dropout(inner))
        return h if self.attention is None else self.attention(h, tokens)


class _Attention(nn.Module):
    """Let every pixel read all pixels, and the tokens where there are such."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.look = SelfAttention(channels, heads, zero_last=True)
        self.before = GroupNorm(channels) if tokens else None
        self.read = CrossAttention(channels, heads, tokens=tokens) if tokens else None

    def forward(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        h = h + _maps(self.look(_pixels(self.norm(h))), h)
        if self.before is None or self.read is None:
            return h
        return h + _maps(self.read(_pixels(self.before(h)), tokens), h)


def _pixels(h: Tensor) -> Tensor:
    return h.flatten(-2).transpose(-2, -1)


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    return rows.transpose(-2, -1).reshape(like.shape)
