"""Masks of coupling layers: true marks the entries that move, false those that steer.

Two layers with a mask and its complement (`flip=True`) move every entry once.
Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 3.4.
"""

import torch
from torch import Tensor

from cflow.errors import DomainError

__all__ = ["alternating", "channels", "checkerboard", "halves"]


def halves(features: int, *, flip: bool = False) -> Tensor:
    """Move the second half of a vector, or the first if flipped; a middle entry is in the first.

    Args:
        features: Length of the vector, at least 2.
        flip: Move the other entries instead.

    Raises:
        DomainError: There are not two parts.

    Example:
        >>> halves(5).tolist()
        [False, False, False, True, True]
    """
    _expect_two("halves", features)
    return (torch.arange(features) >= (features + 1) // 2) ^ flip


def alternating(features: int, *, flip: bool = False) -> Tensor:
    """Move every second entry of a vector, the odd places, or the even ones if flipped.

    Args:
        features: Length of the vector, at least 2.
        flip: Move the other entries instead.

    Raises:
        DomainError: There are not two parts.

    Example:
        >>> alternating(5).tolist()
        [False, True, False, True, False]
    """
    _expect_two("alternating", features)
    return (torch.arange(features) % 2 == 1) ^ flip


def checkerboard(height: int, width: int, *, flip: bool = False) -> Tensor:
    """Move the pixels whose row and column differ in parity, in all channels alike.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        flip: Move the other pixels instead.

    Returns:
        Flags `(1, height, width)`.

    Raises:
        DomainError: There are not two pixels.

    Example:
        >>> checkerboard(2, 3).int().tolist()
        [[[0, 1, 0], [1, 0, 1]]]
    """
    _expect_two("checkerboard", min(height, width, 1) * height * width)
    odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
    return odd[None] ^ flip


def channels(channels: int, *, flip: bool = False) -> Tensor:
    """Move the second half of an image's channels, or the first if flipped.

    Args:
        channels: How many there are, at least 2.
        flip: Move the other channels instead.

    Returns:
        Flags `(channels, 1, 1)`.

    Raises:
        DomainError: There are not two parts.

    Example:
        >>> channels(3).flatten().tolist()
        [False, False, True]
    """
    _expect_two("channels", channels)
    return halves(channels, flip=flip)[:, None, None]


def _expect_two(where: str, entries: int) -> None:
    if entries < 2:
        raise DomainError(f"masks.{where}: at least 2 entries are needed to split, got {entries}")
