"""Costs of tokens, for couplings: how many differ, or how far apart their embeddings lie.

    Hamming: sum_i [x0_i != x1_i],    embedding: sum_i |e(x0_i) - e(x1_i)|^2

A batch that is coupled so has fewer jumps to make, or shorter ones. With masks all sources are the
same and no coupling differs from another.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595, section 2 (couplings); Tong et
al. (2024), arXiv 2302.00482 (minibatch couplings).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_finite
from cflow.matching import SquaredEuclidean

__all__ = ["EmbeddingCost", "HammingCost"]

SQUARED = SquaredEuclidean()


@dataclass(frozen=True)
class HammingCost:
    """Count the tokens that differ: `OTCoupling(cost=HammingCost())`.

    Example:
        >>> x0, x1 = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2], [2, 1, 0]])
        >>> HammingCost()(x0, x1).tolist()
        [[0.0, 2.0]]
    """

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return how many tokens differ, `(n, m)`, for tokens `(n, *event)` and `(m, *event)`."""
        a, b = (x.reshape(len(x), -1) for x in (x0, x1))
        return torch.cdist(a.float(), b.float(), p=0)  # float32 holds each token exactly


@dataclass(frozen=True, eq=False)
class EmbeddingCost:
    """Sum the squared distances between the vectors that stand for tokens.

    Attributes:
        table: One vector for each state, `(states, features)`.

    Raises:
        ShapeError: The table is no matrix.
        DomainError: It is not finite; on use, a token has no row in it.

    Example:
        >>> levels = EmbeddingCost(torch.arange(4.0)[:, None])
        >>> levels(torch.tensor([[0, 3]]), torch.tensor([[1, 3], [3, 0]])).tolist()
        [[1.0, 18.0]]
    """

    table: Tensor

    def __post_init__(self) -> None:
        if self.table.dim() != 2:
            raise ShapeError(
                "EmbeddingCost: table must hold one vector for each state, (states, features), "
                f"got {tuple(self.table.shape)}"
            )
        expect_finite("EmbeddingCost", "table", self.table)

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return costs `(n, m)` of tokens `(n, *event)` and `(m, *event)`."""
        return SQUARED(self._vectors("x0", x0), self._vectors("x1", x1))

    def _vectors(self, name: str, x: Tensor) -> Tensor:
        outside = (x < 0) | (x >= len(self.table))
        if bool(outside.any()):
            position = tuple(outside.nonzero()[0].tolist())
            raise DomainError(
                f"EmbeddingCost: the table has rows for tokens 0 to {len(self.table) - 1}, got "
                f"{int(x[position])} in {name} at index {position}"
            )
        return self.table.detach().to(x.device)[x].reshape(len(x), -1)
