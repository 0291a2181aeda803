"""Rotations as exponentials, W = exp(A - A^T): every rotation is one, and the start is smooth.

Its determinant is 1 and its inverse its transpose. `torch.matrix_exp` is unknown to ONNX; where a
sampler goes there, `HouseholderLinear` does the same work.
"""

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.transport.matrix import MatrixLayer

__all__ = ["Rotation"]


class Rotation(MatrixLayer):
    """Turn a vector by a learned rotation, y = exp(A - A^T) x + b; volumes are kept.

    Only what stands below the diagonal of `angles` (in radians) is used; zeros are the identity.

    Args:
        features: Length of a vector, at least 2.
        bias: Add a learned b.

    Raises:
        DomainError: Fewer than two features.

    References:
        Lezcano-Casado and Martinez-Rubio (2019), Cheap orthogonal constraints in neural networks,
        arXiv 1901.08428.

    Example:
        >>> from cflow.state import State
        >>> layer = Rotation(2)
        >>> _ = nn.init.constant_(layer.angles, torch.pi / 2)
        >>> layer.push(State(torch.tensor([[1.0, 0.0]]))).x.detach().abs().round(decimals=4)
        tensor([[0., 1.]])
    """

    def __init__(self, features: int, *, bias: bool = True) -> None:
        super().__init__(features, bias=bias)
        if features < 2:
            raise DomainError(f"Rotation: at least 2 features can turn, got {features}")
        self.angles = nn.Parameter(torch.zeros(features, features))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        lower = self.angles.to(dtype).tril(-1)
        return torch.linalg.matrix_exp(lower - lower.mT)

    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        return self.matrix(dtype).mT

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.angles.new_zeros((), dtype=dtype)
