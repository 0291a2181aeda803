"""Convolutional networks from maps (and a context) to maps of the same height and width.

Batch axes are any, as everywhere. A context is a vector `(*batch, n)`, the same at every pixel, or
maps `(*batch, n, h, w)`; maps of a finer grid are averaged down to the points' grid. Either is
added to the first hidden maps through a 1x1 convolution.
Sources: Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, section 3.3; Ho et al. (2019), Flow++,
arXiv 1902.00275, section 3.3 (gated residual blocks).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError

__all__ = ["ConstantMaps", "ConvNet", "GatedConvNet"]


class ConvNet(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, as in the coupling layers of Glow.

    Args:
        channels: Channels of x.
        outputs: Channels of the result.
        context: Entries of a context vector, or channels of context maps; 0 for none.
        hidden_channels: Channels of both hidden maps.
        zero_last: Start with an output of zero, an identity layer.

    Raises:
        DomainError: A size is not positive.

    Example:
        >>> net = ConvNet(2, 6, context=3, hidden_channels=16)
        >>> net(torch.zeros(5, 2, 4, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 6, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        context: int = 0,
        hidden_channels: int = 512,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        _expect_sizes("ConvNet", context, channels, outputs, hidden_channels)
        self.first = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.context = nn.Conv2d(context, hidden_channels, 1, bias=False) if context else None
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.last = nn.Conv2d(hidden_channels, outputs, 3, padding=1)
        if zero_last:
            _zero(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, outputs, h, w)` for x `(*batch, channels, h, w)`."""
        h = _enter(x, context, self.first, self.context)
        h = self.middle(functional.silu(h))
        return _unflatten(self.last(functional.silu(h)), x)


class GatedConvNet(nn.Module):
    """Residual blocks that a gate scales, h + a sigmoid(b) with (a, b) = convolutions of h.

    Args:
        channels: Channels of x.
        outputs: Channels of the result.
        context: Entries of a context vector, or channels of context maps; 0 for none.
        hidden_channels: Channels of all hidden maps.
        blocks: How many residual blocks.
        dropout: Probability with which a hidden map's entry is silenced in training.
        zero_last: Start with an output of zero, an identity layer.

    Raises:
        DomainError: A size is not positive.

    Example:
        >>> GatedConvNet(2, 6, hidden_channels=8)(torch.zeros(2, 4, 4)).shape
        torch.Size([6, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        context: int = 0,
        hidden_channels: int = 96,
        blocks: int = 3,
        dropout: float = 0.0,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        _expect_sizes("GatedConvNet", context, channels, outputs, hidden_channels, blocks)
        self.first = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.context = nn.Conv2d(context, hidden_channels, 1, bias=False) if context else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Conv2d(hidden_channels, 2 * hidden_channels, 1),
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(hidden_channels, outputs, 3, padding=1)
        if zero_last:
            _zero(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, outputs, h, w)` for x `(*batch, channels, h, w)`."""
        h = _enter(x, context, self.first, self.context)
        for block in self.blocks:
            value, gate = block(h).chunk(2, dim=-3)
            h = h + value * torch.sigmoid(gate)
        return _unflatten(self.last(functional.silu(h)), x)


class ConstantMaps(nn.Module):
    """Learned constants by channel, moved by a context, and blind to x but for its grid.

    Args:
        outputs: Channels of the result.
        context: Entries of a context vector, or channels of context maps; 0 for none.

    Raises:
        DomainError: A size is not positive.

    Example:
        >>> ConstantMaps(4)(torch.zeros(5, 0, 2, 2)).shape
        torch.Size([5, 4, 2, 2])
    """

    def __init__(self, outputs: int, *, context: int = 0) -> None:
        super().__init__()
        _expect_sizes("ConstantMaps", context, outputs)
        self.constants = nn.Parameter(torch.zeros(outputs))
        self.context = nn.Conv2d(context, outputs, 1, bias=False) if context else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, outputs, h, w)` for x `(*batch, any, h, w)`."""
        values = self.constants[:, None, None]
        if self.context is not None and context is not None:
            steered = _steered(self.context, context, x)
            values = values + steered.reshape(*x.shape[:-3], *steered.shape[1:])
        return values.expand(*x.shape[:-3], len(self.constants), *x.shape[-2:])


def _enter(x: Tensor, context: Tensor | None, first: nn.Conv2d, steer: nn.Conv2d | None) -> Tensor:
    """Flatten the batch axes and return the first hidden maps; the weights' dtype rules."""
    if x.dim() < 3 or x.shape[-3] != first.in_channels:
        raise ShapeError(
            f"ConvNet: x must end in ({first.in_channels}, height, width), got {tuple(x.shape)}"
        )
    dtype = first.weight.dtype
    h = first(_flatten(x.to(dtype)))
    return h if steer is None or context is None else h + _steered(steer, context, x)


def _steered(steer: nn.Conv2d, context: Tensor, x: Tensor) -> Tensor:
    """Return what the context adds to maps on the grid of x, with flat batch axes."""
    maps = context.dim() == x.dim()
    if context.shape[-3 if maps else -1] != steer.in_channels:
        raise ShapeError(
            f"ConvNet: the context must be vectors ({steer.in_channels},) or maps "
            f"({steer.in_channels}, height, width), got {tuple(context.shape)}"
        )
    if not maps:
        context = context[..., None, None]
    return steer(_onto(_flatten(context.to(steer.weight.dtype)), x.shape[-2:]))


def _onto(context: Tensor, grid: Sequence[int]) -> Tensor:
    """Average context maps down to a coarser grid; one value for all pixels stays as it is."""
    height, width = context.shape[-2:]
    if (height, width) in ((1, 1), tuple(grid)):
        return context
    if height % grid[0] or width % grid[1]:
        raise ShapeError(
            f"ConvNet: context maps of {height} x {width} do not divide onto a grid of "
            f"{grid[0]} x {grid[1]}"
        )
    return functional.avg_pool2d(context, (height // grid[0], width // grid[1]))


def _flatten(x: Tensor) -> Tensor:
    return x[None] if x.dim() == 3 else x.flatten(0, -4)


def _unflatten(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _expect_sizes(where: str, context: int, *sizes: int) -> None:
    if min(sizes) < 1 or context < 0:
        raise DomainError(
            f"{where}: sizes must be positive, got {sizes} and a context of {context}"
        )
