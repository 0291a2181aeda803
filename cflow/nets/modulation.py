"""Norms without memory and what a condition does to them: the pieces that image networks share.

    AdaLN, AdaGN:  y = norm(h) (1 + scale) + shift,    (scale, shift) = W silu(c) + b

A norm knows one sample only, never the batch, and is taken in float32 at least.
Sources: Wu and He (2018), Group normalization, arXiv 1803.08494; Dhariwal and Nichol (2021),
Diffusion models beat GANs on image synthesis, arXiv 2105.05233, section 3.1 (AdaGN); Peebles and
Xie (2023), Scalable diffusion models with transformers, arXiv 2212.09748, section 3.2 (AdaLN).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import plain

__all__ = ["GroupNorm", "layer_norm", "modulated", "zeroed"]

EPSILON = 1e-6
L = TypeVar("L", nn.Linear, nn.Conv2d)


class GroupNorm(nn.Module):
    """Normalise groups of channels over all pixels of each sample, then scale and shift channels.

    There are 32 groups, or as many fewer as leave at least four channels to each (where there are
    four): a group of one channel would lose everything at a map of one pixel.

    Args:
        channels: Channels of the maps.

    Example:
        >>> GroupNorm(128).groups, GroupNorm(24).groups
        (32, 4)
        >>> GroupNorm(8)(torch.randn(5, 8, 3, 3)).shape
        torch.Size([5, 8, 3, 3])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        fits = lambda g: channels % g == 0 and channels // g >= min(4, channels)
        self.groups = max(g for g in (1, 2, 4, 8, 16, 32) if fits(g))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Return maps like h `(batch, channels, height, width)`, in its dtype."""
        wide = torch.promote_types(h.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.group_norm(h.to(wide), self.groups, weight, bias, EPSILON).to(h.dtype)


def layer_norm(h: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it where asked.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.0000,  1.0000]])
    """
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    weight, bias = (None if z is None else z.to(wide.dtype) for z in (weight, bias))
    if plain() or torch.compiler.is_exporting():
        return functional.layer_norm(wide, h.shape[-1:], weight, bias, EPSILON).to(h.dtype)
    # Written out: gradients of the fused kernel's forward mode are wrong (torch 2.13). An exported
    # graph has none.
    wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    wide = wide if weight is None else wide * weight
    return (wide if bias is None else wide + bias).to(h.dtype)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return h (1 + scale) + shift, so that a condition of zero changes nothing.

    Example:
        >>> modulated(torch.ones(1), torch.tensor([0.5]), torch.tensor([2.0]))
        tensor([3.5000])
    """
    return h * (1 + scale) + shift


def zeroed(layer: L) -> L:
    """Set a layer's weights and bias to zero and return it: its branch starts by adding nothing.

    Example:
        >>> zeroed(nn.Linear(2, 1))(torch.ones(1, 2)).item()
        0.0
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
