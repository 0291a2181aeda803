"""The inverse of a triangular matrix by halves, made of plain matrix products.

    inverse of [[A, 0], [C, D]]  =  [[A^-1, 0], [-D^-1 C A^-1, D^-1]]

All blocks of one size are inverted together, so a matrix of n rows takes log2(n) batched steps.
torch.linalg.solve_triangular is as exact, but no ONNX exporter knows it.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["inverse_of_lower", "inverse_of_upper"]


def inverse_of_lower(lower: Tensor) -> Tensor:
    """Invert lower triangular matrices; what stands above the diagonal is not read.

    Args:
        lower: `(*batch, n, n)`, no zero on the diagonal.

    Example:
        >>> inverse_of_lower(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([[ 1.0000,  0.0000],
                [-1.5000,  0.5000]])
    """
    batch, n, size = lower.shape[:-2], lower.shape[-1], 1
    full = 1 << (n - 1).bit_length()
    matrix = functional.pad(lower, (0, full - n, 0, full - n))
    diagonal = functional.pad(lower.diagonal(dim1=-2, dim2=-1), (0, full - n), value=1.0)
    blocks = diagonal.reciprocal().reshape(*batch, full, 1, 1)
    while size < full:
        count = full // (2 * size)
        grid = matrix.reshape(*batch, count, 2 * size, count, 2 * size)
        below = grid[..., size:, :, :size].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
        corner = -(second @ below @ first)
        upper_half = functional.pad(first, (0, size))
        blocks = torch.cat([upper_half, torch.cat([corner, second], dim=-1)], dim=-2)
        size *= 2
    return blocks[..., 0, :n, :n]


def inverse_of_upper(upper: Tensor) -> Tensor:
    """Invert upper triangular matrices; what stands below the diagonal is not read.

    Args:
        upper: `(*batch, n, n)`, no zero on the diagonal.

    Example:
        >>> inverse_of_upper(torch.tensor([[1.0, 3.0], [0.0, 2.0]]))
        tensor([[ 1.0000, -1.5000],
                [ 0.0000,  0.5000]])
    """
    return inverse_of_lower(upper.mT).mT
