"""Determinants and solutions of small square systems, written out up to three rows.

Products go wherever a flow goes: ONNX has no operator for a solve. Larger systems are factorised.
"""

import torch
from torch import Tensor

__all__ = ["log_abs_det", "solve"]


def log_abs_det(matrix: Tensor) -> Tensor:
    """Return log|det| of matrices `(*batch, n, n)`.

    Example:
        >>> log_abs_det(2 * torch.eye(3))
        tensor(2.0794)
    """
    if matrix.shape[-1] > 3:
        return torch.linalg.slogdet(matrix).logabsdet
    return (matrix[..., 0] * _cofactors(matrix)[..., 0]).sum(-1).abs().log()


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return x with matrix x = right for `(*batch, n, n)` and `(*batch, n)`.

    Example:
        >>> solve(2 * torch.eye(3), torch.ones(3))
        tensor([0.5000, 0.5000, 0.5000])
    """
    if matrix.shape[-1] > 3:
        return torch.linalg.solve(matrix, right[..., None])[..., 0]
    cofactors = _cofactors(matrix)
    det = (matrix[..., 0] * cofactors[..., 0]).sum(-1)
    return (cofactors.mT @ right[..., None])[..., 0] / det[..., None]


def _cofactors(matrix: Tensor) -> Tensor:
    """Return the cofactors of matrices of one to three rows, entry by entry."""
    n = matrix.shape[-1]
    if n == 1:
        return torch.ones_like(matrix)
    if n == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
        return torch.stack([torch.stack([d, -c], -1), torch.stack([-b, a], -1)], -2)
    a, b, c = matrix.unbind(-1)
    columns = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    return torch.stack(columns, -1)
