"""Tokens as cells of the simplex: both ends of a flow of probabilities, noise and tokens.

    noise: p ~ Dir(1), even on the simplex
    push:  x = argmax_k p_k;    pull: p' ~ Dir(1 + s e_x), its largest entry exchanged with entry x

As each point of a cell comes from K points, one for each place where the largest entry was,

    q(p | x) = Gamma(K + s) / Gamma(1 + s) sum_k p_k^s

is the density of the pull, over all probabilities but the last. It is that of a mixture of the laws
Dir(1 + s e_k) of all k, cut to the cell of x: the law that a Dirichlet flow of even tokens ends in,
for which the bound is an equality.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base import Base
from cflow.errors import DomainError, expect_positive, expect_tokens, expect_trailing
from cflow.transport import Stochastic
from cflow.typing import Batch, Points

__all__ = ["EvenSimplex", "VertexDequantize", "even", "nudged"]

ROUNDING = 1e-3  # of a probability, by solvers that brought it there


class VertexDequantize(Stochastic):
    """Carry tokens to probabilities, of which their own is the largest, and back.

    Args:
        vocabulary: How many values a token has, at least 2.
        concentration: The s; large for points near the vertex.
        event_dim: Axes of one point of tokens.

    Raises:
        DomainError: The vocabulary is below 2, or the concentration not positive.

    Example:
        >>> from cflow import State
        >>> layer, x = VertexDequantize(4, 3.0), torch.tensor([[0, 3, 2]])
        >>> layer.push(layer.pull(State(x))).x.tolist()
        [[0, 3, 2]]
    """

    def __init__(self, vocabulary: int, concentration: float, *, event_dim: int = 1) -> None:
        super().__init__(out_shape=self._shape)
        expect_positive("VertexDequantize", concentration=concentration)
        if vocabulary < 2 or event_dim < 0:
            raise DomainError(
                "VertexDequantize: vocabulary must be at least 2 and event_dim 0 or more, got "
                f"vocabulary={vocabulary} and event_dim={event_dim}"
            )
        self.vocabulary = vocabulary
        self.concentration = concentration
        self.event_dim = event_dim
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1.0))  # follows .to(dtype), for integer input

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        shape = (*y.shape, 2, self.vocabulary)
        return torch.randn(shape, dtype=self.unit.dtype, device=y.device, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        expect_trailing("VertexDequantize.push", "x", x, (self.vocabulary,))
        return x.argmax(-1)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        shape = tuple(y.shape[y.dim() - self.event_dim :])
        expect_tokens("VertexDequantize.pull", y, shape, self.vocabulary)
        own = y[..., None] == torch.arange(self.vocabulary, device=y.device)
        first, second = noise.unbind(-2)
        p = even(first)
        p = p + nudged(self.concentration, second) * (own.to(p.dtype) - p)
        top, at = p.max(-1, keepdim=True)
        p = torch.where(own, top, p.scatter(-1, at, (p * own).sum(-1, keepdim=True)))
        if not tracked:
            return p, None
        s, wide = self.concentration, p.to(torch.promote_types(p.dtype, torch.float32))
        constant = math.lgamma(self.vocabulary + s) - math.lgamma(1 + s)
        log_q = constant + torch.logsumexp(s * wide.log(), -1)
        return p, -log_q.flatten(log_q.dim() - self.event_dim).sum(-1) if self.event_dim else -log_q

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        expect = self.event_dim + 1
        if len(shape) != expect or shape[-1] != self.vocabulary:
            raise DomainError(
                f"VertexDequantize: the base side needs points of {expect} axes, the last of "
                f"{self.vocabulary} probabilities, got {tuple(shape)}"
            )
        return shape[:-1]


class EvenSimplex(Base):
    """Draw probabilities evenly, Dir(1) for each token; densities are over all but the last.

    Args:
        event_shape: Shape of one point, the values of a token last.

    Example:
        >>> p = torch.full((2, 3), 1 / 3)
        >>> round(EvenSimplex((2, 3)).log_prob(p).exp().item(), 4)  # 2! for each token
        4.0
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.like: Tensor
        self.register_buffer("like", torch.tensor(0.0), persistent=False)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        full = (*shape, *self.event_shape)
        like = self.like
        return even(torch.randn(full, dtype=like.dtype, device=like.device, generator=generator))

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        inside = (x >= -ROUNDING).all(-1) & ((x.sum(-1) - 1).abs() <= ROUNDING)
        each = torch.where(inside, math.lgamma(self.event_shape[-1]), -torch.inf).to(x.dtype)
        tokens = len(self.event_shape) - 1
        return each.flatten(each.dim() - tokens).sum(-1) if tokens else each


def even(noise: Tensor) -> Tensor:
    """Turn standard normal numbers `(*batch, values)` into points of the simplex by the law Dir(1).

    Numbers become exponential ones, which are divided by their sum.
    """
    e = -torch.special.log_ndtr(noise)
    return e / e.sum(-1, keepdim=True)


def nudged(s: Tensor | float, noise: Tensor) -> Tensor:
    """Turn standard normal numbers `(*batch, values)` into b ~ Beta(s, values), `(*batch, 1)`.

        b = prod_k U_k^(1 / (s + k)),    k = 0 .. values - 1

    With p ~ Dir(1) and a vertex e, p + b (e - p) ~ Dir(1 + s e).
    """
    k = torch.arange(noise.shape[-1], dtype=noise.dtype, device=noise.device)
    return (torch.special.log_ndtr(noise) / (s + k)).sum(-1, keepdim=True).exp()
