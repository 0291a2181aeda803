"""Fields on images: a UNet or a transformer over patches, steered by time and context.

    v(t, x, context) = net(x, c),                      c of time and a label or a vector
    v(t, x, context) = net(x, c, tokens = context),    c of time alone; attention reads the tokens

Each field has one kind of context, or none, and a value of it that says nothing, `null`. Hide the
context in training with that value, and guide samples away from it.
Sources: those of `cflow.nets.UNet`, `cflow.nets.DiT` and `cflow.field.Condition`.
"""

from collections.abc import Sequence

from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.field.condition import Condition
from cflow.field.field import Field
from cflow.field.time import SinusoidalTime, TimeEmbedding
from cflow.nets import DiT, UNet
from cflow.typing import Points, Times

__all__ = ["DiTField", "UNetField"]


class UNetField(Field):
    """Predict the velocity of images with a UNet; it starts at zero.

    Args:
        shape: Shape of one image, (channels, height, width), of any size.
        classes: Number of classes, if the context is a label `(*batch,)`; 0 for none.
        context: Length of the context, if it is a vector `(*batch, context)`; 0 for none.
        tokens: Length of its vectors, if the context is a sequence `(*batch, any, tokens)` that
            attention reads; 0 for none.
        width: Channels at full resolution; the condition has four times as many entries.
        multipliers: Channels of each resolution in units of `width`, the full one first.
        blocks: Residual blocks of each resolution.
        attention: Resolutions that attend, 0 the full one; the middle always does.
        heads: Attention heads; they share the channels.
        dropout: Probability with which an entry within a block is silenced in training.
        time_scale: Largest angular frequency at which the network sees time, in radians.
        time: How the network sees time, in place of sinusoidal waves; a `SpanTime` for a flow map.

    Attributes:
        null: The context that says nothing: `classes` for labels (a negative one means the same),
            0.0 in every entry for vectors and sequences, None without a context. No context at all
            gives the same velocity.

    Raises:
        ShapeError: The shape is not (channels, height, width).
        DomainError: A size is out of range, or there is more than one kind of context.

    References:
        Ho et al. (2020), arXiv 2006.11239; Dhariwal and Nichol (2021), arXiv 2105.05233.

    Example:
        >>> import torch
        >>> field = UNetField((1, 8, 8), 10, width=8, multipliers=(1, 2), blocks=1, attention=())
        >>> field(torch.rand(5), torch.randn(5, 1, 8, 8), torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        context: int = 0,
        tokens: int = 0,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 4,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        time: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.shape = _expect_one_context("UNetField", shape, classes, context, tokens)
        self.net = UNet(
            self.shape[0],
            self.shape[0],
            condition=4 * width,
            tokens=tokens,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            heads=heads,
            dropout=dropout,
        )
        time = time or SinusoidalTime(max(1, width // 2), scale=time_scale)
        self.condition = Condition(4 * width, time, classes=classes, context=context)
        self.null = 0.0 if tokens else self.condition.null

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        expect_trailing("UNetField", "x", x, self.shape)
        if self.net.tokens:
            _expect_tokens("UNetField", x, context, self.net.tokens)
            return self.net(x, self.condition(t), context).to(x.dtype)
        return self.net(x, self.condition(t, context)).to(x.dtype)


class DiTField(Field):
    """Predict the velocity of images with a transformer over patches; it starts at zero.

    DiT-S/2 on 4 x 32 x 32 latents with 1000 classes is `DiTField((4, 32, 32), 1000)`.

    Args:
        shape: Shape of one image, (channels, height, width).
        classes: Number of classes, if the context is a label `(*batch,)`; 0 for none.
        context: Length of the context, if it is a vector `(*batch, context)`; 0 for none.
        tokens: Length of its vectors, if the context is a sequence `(*batch, any, tokens)` that
            attention reads; 0 for none.
        patch: Side of a patch in pixels; it divides height and width.
        width: Length of the hidden vectors and of the condition, a multiple of 4.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Probability with which a hidden unit is silenced in training.
        frequencies: Frequencies at which the network sees time.
        time_scale: The largest of them, in radians.
        time: How the network sees time, in place of those; a `SpanTime` for a flow map.

    Attributes:
        null: The context that says nothing, as for `UNetField`.

    Raises:
        ShapeError: The shape is not (channels, height, width).
        DomainError: A size is out of range, the patch does not divide the image, the heads do not
            divide the width, or there is more than one kind of context.

    References:
        Peebles and Xie (2023), arXiv 2212.09748; Chen et al. (2023), arXiv 2310.00426.

    Example:
        >>> import torch
        >>> field = DiTField((1, 8, 8), tokens=3, width=16, layers=1, heads=2)
        >>> field(torch.rand(5), torch.randn(5, 1, 8, 8), torch.randn(5, 7, 3)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        context: int = 0,
        tokens: int = 0,
        patch: int = 2,
        width: int = 384,
        layers: int = 12,
        heads: int = 6,
        expansion: int = 4,
        dropout: float = 0.0,
        frequencies: int = 128,
        time_scale: float = 1000.0,
        time: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.shape = _expect_one_context("DiTField", shape, classes, context, tokens)
        self.net = DiT(
            self.shape,
            self.shape[0],
            condition=width,
            tokens=tokens,
            patch=patch,
            width=width,
            layers=layers,
            heads=heads,
            expansion=expansion,
            dropout=dropout,
        )
        time = time or SinusoidalTime(frequencies, scale=time_scale)
        self.condition = Condition(width, time, classes=classes, context=context)
        self.null = 0.0 if tokens else self.condition.null

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        expect_trailing("DiTField", "x", x, self.shape)
        if self.net.tokens:
            _expect_tokens("DiTField", x, context, self.net.tokens)
            return self.net(x, self.condition(t), context).to(x.dtype)
        return self.net(x, self.condition(t, context)).to(x.dtype)


def _expect_one_context(
    where: str, shape: Sequence[int], classes: int, context: int, tokens: int
) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ShapeError(f"{where}: shape must be (channels, height, width), got {tuple(shape)}")
    if min(shape) < 1 or min(classes, context, tokens) < 0:
        raise DomainError(
            f"{where}: sizes must be positive, got shape={tuple(shape)}, classes={classes}, "
            f"context={context}, tokens={tokens}"
        )
    if sum(size > 0 for size in (classes, context, tokens)) > 1:
        raise DomainError(
            f"{where}: the context is a label, a vector or a sequence; give one of classes="
            f"{classes}, context={context}, tokens={tokens}"
        )
    return tuple(shape)


def _expect_tokens(where: str, x: Tensor, context: Tensor | None, tokens: int) -> None:
    if context is None:
        return
    batch = context.shape[:-2] if context.dim() > 1 else None
    if batch != x.shape[:-3] or context.shape[-1] != tokens or not context.shape[-2]:
        raise ShapeError(
            f"{where}: the context must be a sequence {(*x.shape[:-3], 'any', tokens)}, got "
            f"{tuple(context.shape)}"
        )
