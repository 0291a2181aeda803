"""A law of two tokens with its exact probabilities: the checkerboard on a grid.

    p(x) = 2 / size^2 on every other square of a 4 x 4 board of size x size cells, else 0

The entropy is log(size^2 / 2): for 128 values a token, log 8192 = 9.011 nats a pair, 4.505 a token.
No model has fewer nats, so that what it has more is a Kullback-Leibler divergence, and says how
good the model is without a picture.

Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595; the board with 128 values is
that of the examples in facebookresearch/flow_matching.
"""

import math

import torch
from torch import Generator

from cflow.errors import DomainError, expect_trailing
from cflow.typing import Batch, Data

__all__ = ["discrete_checkerboard", "discrete_checkerboard_log_prob"]

SQUARES = 4  # along a side of the board


def discrete_checkerboard(n: int, *, size: int = 128, generator: Generator | None = None) -> Data:
    """Draw pairs of tokens from the eight dark squares of the board, int64, `(n, 2)`.

    Args:
        n: How many pairs.
        size: Values of a token, a multiple of four.
        generator: Source of the draws.

    Raises:
        DomainError: The size is no positive multiple of four.

    Example:
        >>> discrete_checkerboard(5).shape
        torch.Size([5, 2])
    """
    side = _side("discrete_checkerboard", size)
    column = torch.randint(SQUARES, (n,), generator=generator)
    row = 2 * torch.randint(SQUARES // 2, (n,), generator=generator) + column % 2
    corner = side * torch.stack([column, row], dim=1)
    return corner + torch.randint(side, (n, 2), generator=generator)


def discrete_checkerboard_log_prob(x: Data, *, size: int = 128) -> Batch:
    """Return log probabilities in nats: -log(size^2 / 2) on the dark squares, else -inf.

    Args:
        x: Pairs of tokens, `(*batch, 2)`; those outside the grid are off the board.
        size: Values of a token, a multiple of four.

    Raises:
        ShapeError: x does not end in two tokens.
        DomainError: The tokens are no integers, or the size is no positive multiple of four.

    Example:
        >>> x = torch.tensor([[0, 31], [0, 32], [127, 127], [128, 128]])
        >>> [round(value, 3) for value in discrete_checkerboard_log_prob(x).tolist()]
        [-9.011, -inf, -9.011, -inf]
    """
    side = _side("discrete_checkerboard_log_prob", size)
    expect_trailing("discrete_checkerboard_log_prob", "x", x, (2,))
    if x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        raise DomainError(
            f"discrete_checkerboard_log_prob: tokens must be integers, got {x.dtype}; call .long()"
        )
    x = x.long()  # a byte need not hold the size
    square = x // side
    on = ((x >= 0) & (x < size)).all(-1)
    return torch.where(on & (square.sum(-1) % 2 == 0), -math.log(size**2 / 2), -math.inf)


def _side(where: str, size: int) -> int:
    """Return the cells along a side of a square."""
    if size < SQUARES or size % SQUARES:
        raise DomainError(f"{where}: size must be a positive multiple of {SQUARES}, got {size}")
    return size // SQUARES
