"""Learned linear maps of a vector, y = W x + b, whose determinant needs no elimination.

W is kept in a factored form, and log|det W| read off a diagonal. `MatrixLayer` is what such layers
share; `LULinear` factors W = P L U. The others stand in `householder.py` and `rotation.py`.
Source: Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, section 3.2.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_trailing
from cflow.transport.transport import Layer
from cflow.transport.triangular import inverse_of_lower

__all__ = ["LULinear", "MatrixLayer"]


class MatrixLayer(Layer):
    """Multiply by a matrix and add a bias; authors write the matrix, its inverse and log|det|.

    Both directions take one matrix product; the inverse comes from the factors. Arithmetic runs in
    float32 at least, and points keep their dtype.

    Args:
        features: Length of a vector.
        bias: Add a learned b.

    Raises:
        DomainError: No features.
    """

    def __init__(self, features: int, *, bias: bool = True) -> None:
        super().__init__(event_dim=1)
        if features < 1:
            raise DomainError(f"{type(self).__name__}: features must be positive, got {features}")
        self.features = features
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    @abstractmethod
    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W, `(features, features)`, computed in `dtype`."""

    @abstractmethod
    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the inverse of W from its factors, computed in `dtype`."""

    @abstractmethod
    def log_det(self, dtype: torch.dtype) -> Tensor:
        """Return log|det W|, a scalar, computed in `dtype`."""

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        wide = self._enter("push", x)
        y = x.to(wide) @ self.matrix(wide).mT
        if self.bias is not None:
            y = y + self.bias.to(wide)
        return y.to(x.dtype), self.log_det(wide) if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        wide = self._enter("pull", y)
        x = y.to(wide)
        if self.bias is not None:
            x = x - self.bias.to(wide)
        x = x @ self.inverse_matrix(wide).mT
        return x.to(y.dtype), -self.log_det(wide) if tracked else None

    def _enter(self, method: str, x: Tensor) -> torch.dtype:
        expect_trailing(f"{type(self).__name__}.{method}", "points", x, (self.features,))
        return torch.promote_types(x.dtype, torch.float32)


class LULinear(MatrixLayer):
    """Multiply by W = P L U: a fixed signed permutation and two learned triangular factors.

        log|det W| = sum log U_ii,   L_ii = 1,   U_ii = exp(factors_ii) > 0

    All `factors` at zero mean the permutation.

    Args:
        features: Length of a vector.
        permutation: Where each output comes from, every index once; None keeps the order.
        start: "identity" starts at the permutation; "orthogonal" at a random rotation or
            reflection, as Glow does, and then P is the pivoting of that matrix.
        bias: Add a learned b.

    Attributes:
        factors: `(features, features)`: L below the diagonal, log U_ii on it, U above it.

    Raises:
        DomainError: `permutation` is none, or is given together with an orthogonal start.

    References:
        Kingma and Dhariwal (2018), arXiv 1807.03039, equation 10; Oliva et al. (2018),
        arXiv 1801.09819.

    Example:
        >>> from cflow.state import tracked
        >>> layer = LULinear(3, start="orthogonal")
        >>> state = layer.push(tracked(torch.randn(5, 3)))
        >>> bool((state.ladj.abs() < 1e-5).all())
        True
    """

    def __init__(
        self,
        features: int,
        *,
        permutation: Sequence[int] | Tensor | None = None,
        start: Literal["identity", "orthogonal"] = "identity",
        bias: bool = True,
    ) -> None:
        super().__init__(features, bias=bias)
        order = torch.arange(features) if permutation is None else torch.as_tensor(permutation)
        if sorted(order.tolist()) != list(range(features)):
            raise DomainError(
                f"LULinear: permutation must hold every index of {features} features once, got "
                f"{order.tolist()}"
            )
        signs, factors = torch.ones(features), torch.zeros(features, features)
        if start == "orthogonal":
            if permutation is not None:
                raise DomainError(
                    "LULinear: an orthogonal start brings its own permutation; leave one out"
                )
            order, signs, factors = _factored(_orthogonal(features))
        self.factors = nn.Parameter(factors)
        self.order: Tensor
        self.signs: Tensor
        self.register_buffer("order", order)
        self.register_buffer("signs", signs)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        lower, upper = self._triangles(dtype)
        return (lower @ upper).index_select(0, self.order) * self.signs.to(dtype)[:, None]

    def inverse_matrix(self, dtype: torch.dtype) -> Tensor:
        lower, upper = self._triangles(dtype)
        left, right = inverse_of_lower(torch.stack([lower, upper.mT])).unbind()
        product = right.mT @ left
        return product.index_select(1, self.order) * self.signs.to(dtype)

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.factors.diagonal().to(dtype).sum()

    def _triangles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        factors = self.factors.to(dtype)
        eye = torch.eye(self.features, dtype=dtype, device=factors.device)
        lower = factors.tril(-1) + eye
        return lower, factors.triu(1) + factors.diagonal().exp() * eye


def _orthogonal(features: int) -> Tensor:
    """Draw a matrix uniformly from all rotations and reflections, in float64."""
    q, r = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))
    return q * r.diagonal().sign()


def _factored(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write a matrix as (order, signs, factors), with the signs moved out of the diagonal of U.

    P L U = P S (S L S) (S U) for the signs S of U's diagonal; S commutes past P as S' P.
    """
    p, lower, upper = torch.linalg.lu(matrix)
    signs = upper.diagonal().sign()
    lower, upper = signs[:, None] * lower * signs, signs[:, None] * upper
    order = p.argmax(dim=1)
    factors = lower.tril(-1) + upper.triu(1) + upper.diagonal().log().diag()
    default = torch.get_default_dtype()
    return order, signs[order].to(default), factors.to(default)
