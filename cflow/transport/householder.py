"""Orthogonal matrices as products of reflections, and the QR and SVD forms built on them.

    Q = H_1 H_2 ... H_k,   H_i = I - 2 u_i u_i^T,   |u_i| = 1
    Q = I - u^T T u,       T^-1 = I / 2 + (u u^T above its diagonal)

The second line multiplies all reflections at once: one small triangular inverse, no loop over k.
Sources: Tomczak and Welling (2016), arXiv 1611.09630; Joffrain et al. (2006), Accumulating
Householder transformations, revisited, ACM Transactions on Mathematical Software 32(2).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError
from cflow.transport.matrix import MatrixLayer
from cflow.transport.triangular import inverse_of_upper

__all__ = ["HouseholderLinear", "QRLinear", "Reflections", "SVDLinear"]


class Reflections(nn.Module):
    """A learned orthogonal matrix; it starts as the identity where the reflections are even.

    Args:
        features: Rows of the matrix.
        reflections: How many; None takes as many as there are features, made even. Even numbers
            give rotations (det 1), odd ones reflections (det -1).

    Raises:
        DomainError: No features or no reflections.

    Example:
        >>> q = Reflections(3).matrix(torch.float64)
        >>> torch.allclose(q, torch.eye(3, dtype=torch.float64), atol=1e-12)
        True
    """

    def __init__(self, features: int, reflections: int | None = None) -> None:
        super().__init__()
        count = features + features % 2 if reflections is None else reflections
        if features < 1 or count < 1:
            raise DomainError(
                f"Reflections: sizes must be positive, got features={features}, "
                f"reflections={reflections}"
            )
        pairs = torch.randn((count + 1) // 2, features).repeat_interleave(2, dim=0)
        self.vectors = nn.Parameter(pairs[:count].clone())  # equal neighbours cancel

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return Q, `(features, features)`, computed in `dtype`."""
        u = functional.normalize(self.vectors.to(dtype), dim=-1)
        eye = torch.eye(len(u), dtype=dtype, device=u.device)
        t = inverse_of_upper((u @ u.mT).triu(1) + 0.5 * eye)
        return torch.eye(u.shape[-1], dtype=dtype, device=u.device) - u.mT @ t @ u


class HouseholderLinear(MatrixLayer):
    """Multiply by a learned orthogonal matrix, a product of reflections; volumes are kept.

    Args:
        features: Length of a vector.
        reflections: How many reflections; None takes as many as features, made even.
        bias: Add a learned b.

    References:
        Tomczak and Welling (2016), Householder flow, arXiv 1611.09630.

    Example:
        >>> from cflow.state import State
        >>> x = torch.randn(5, 3)
        >>> y = HouseholderLinear(3, reflections=3).push(State(x)).x
        >>> torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
        True
    """

    def __init__(self, features: int, *, reflections: int | None = None, bias: bool = True) -> None:
        super().__init__(features, bias=bias)
        self.orthogonal = Reflections(features, reflections)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.orthogonal.matrix(dtype)

    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        return self.orthogonal.matrix(dtype).mT

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.orthogonal.vectors.new_zeros((), dtype=dtype)


class QRLinear(MatrixLayer):
    """Multiply by W = Q R: reflections after an upper triangle with a positive diagonal.

        log|det W| = sum log R_ii,   R_ii = exp(upper_ii)

    It starts as the identity.

    Args:
        features: Length of a vector.
        reflections: How many reflections; None takes as many as features, made even.
        bias: Add a learned b.

    Attributes:
        upper: `(features, features)`: log R_ii on the diagonal, R above it.

    References:
        Hoogeboom et al. (2019), Emerging convolutions, arXiv 1901.11137.

    Example:
        >>> from cflow.state import State
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(QRLinear(3).push(State(x)).x, x, atol=1e-5)
        True
    """

    def __init__(self, features: int, *, reflections: int | None = None, bias: bool = True) -> None:
        super().__init__(features, bias=bias)
        self.orthogonal = Reflections(features, reflections)
        self.upper = nn.Parameter(torch.zeros(features, features))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.orthogonal.matrix(dtype) @ self._triangle(dtype)

    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        return inverse_of_upper(self._triangle(dtype)) @ self.orthogonal.matrix(dtype).mT

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.upper.diagonal().to(dtype).sum()

    def _triangle(self, dtype: torch.dtype) -> Tensor:
        upper = self.upper.to(dtype)
        return upper.triu(1) + upper.diagonal().exp().diag_embed()


class SVDLinear(MatrixLayer):
    """Multiply by W = Q_1 D Q_2: reflections, positive scales, reflections; no inverse is solved.

        log|det W| = sum log_scale,   D = diag(exp(log_scale))

    The condition number of W is visible, exp(max - min of log_scale). It starts as the identity.

    Args:
        features: Length of a vector.
        reflections: How many on each side; None takes as many as features, made even.
        bias: Add a learned b.

    References:
        Zhang, Lei and Dhillon (2018), Stabilizing gradients for deep neural networks via efficient
        SVD parameterization, arXiv 1803.09327.

    Example:
        >>> from cflow.state import tracked
        >>> SVDLinear(3).push(tracked(torch.zeros(1, 3))).ladj.item()
        0.0
    """

    def __init__(self, features: int, *, reflections: int | None = None, bias: bool = True) -> None:
        super().__init__(features, bias=bias)
        self.left = Reflections(features, reflections)
        self.right = Reflections(features, reflections)
        self.log_scale = nn.Parameter(torch.zeros(features))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        scale = self.log_scale.to(dtype).exp()
        return (self.left.matrix(dtype) * scale) @ self.right.matrix(dtype)

    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        scale = (-self.log_scale.to(dtype)).exp()
        return (self.right.matrix(dtype).mT * scale) @ self.left.matrix(dtype).mT

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.log_scale.to(dtype).sum()
