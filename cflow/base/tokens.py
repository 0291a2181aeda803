"""Laws of tokens at t = 0: what a jump process starts from.

    p(x) = prod_i p_i(x_i),    x_i in {0, .., states - 1}

Tokens are integers, `int64`. Data tokens are 0 .. vocabulary - 1; a law with masks adds one state,
`mask = vocabulary`, which no data ever holds.
Source: Austin et al. (2021), Structured denoising diffusion models in discrete state-spaces, arXiv
2107.03006, section 3.1; Gat et al. (2024), Discrete flow matching, arXiv 2407.15595, section 2.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.errors import DomainError, ShapeError, expect_integers, expect_trailing
from cflow.typing import Batch, Data

__all__ = ["Categorical", "EmpiricalTokens", "MaskTokens", "TokenBase", "UniformTokens"]


class TokenBase(Base):
    """A law of sequences, grids or sets of tokens.

    Args:
        event_shape: Shape of one point, such as a length; () for a single token.
        vocabulary: How many values a data token has.
        masked: Whether there is one state more, which stands for a token that is not yet known.

    Attributes:
        mask: That state, `vocabulary`, or None where there is none.
        states: Values that a token has on the way, `vocabulary` or one more.

    Raises:
        DomainError: The vocabulary or a size is not positive.
    """

    def __init__(
        self, event_shape: Sequence[int] | int, vocabulary: int, *, masked: bool = False
    ) -> None:
        super().__init__(event_shape)
        if vocabulary < 1 or any(n < 1 for n in self.event_shape):
            raise DomainError(
                f"{type(self).__name__}: vocabulary and sizes must be positive, got vocabulary="
                f"{vocabulary} and event_shape={self.event_shape}"
            )
        self.vocabulary = vocabulary
        self.mask = vocabulary if masked else None
        self.states = vocabulary + masked

    @property
    @abstractmethod
    def absorbing(self) -> bool:
        """Whether all tokens start as masks: then a token that is none is final."""

    @property
    @abstractmethod
    def independent(self) -> bool:
        """Whether the law is the product of its marginals."""

    @abstractmethod
    def marginals(self) -> Tensor:
        """Return the law of each token by itself, broadcasting to `(*event_shape, states)`."""


class Categorical(TokenBase):
    """Draw every token by itself from a law of its own.

    Args:
        event_shape: Shape of one point.
        probs: Probabilities, in a shape that broadcasts to `(*event_shape, states)`: one law for
            all tokens, or one for each. They are divided by their sum.
        masked: Whether the last state is the mask, and no value of data.

    Raises:
        ShapeError: The probabilities do not broadcast to the event.
        DomainError: One is negative or not finite, or all of a token are zero.

    Example:
        >>> base = Categorical(3, torch.tensor([0.5, 0.0, 0.5]))
        >>> base.log_prob(torch.tensor([[0, 2, 0], [0, 1, 0]])).exp().tolist()
        [0.125, 0.0]
    """

    def __init__(
        self, event_shape: Sequence[int] | int, probs: Tensor, *, masked: bool = False
    ) -> None:
        states = probs.shape[-1] if probs.dim() else 0
        super().__init__(event_shape, states - masked, masked=masked)
        try:
            probs.expand(*self.event_shape, states)
        except RuntimeError as error:
            raise ShapeError(
                f"Categorical: probs must broadcast to {(*self.event_shape, states)}, got "
                f"{tuple(probs.shape)}"
            ) from error
        total = probs.sum(-1, keepdim=True)
        if not bool((torch.isfinite(probs) & (probs >= 0)).all() and (total > 0).all()):
            raise DomainError(
                "Categorical: probabilities must be finite, 0 or more, and not all 0 for a token, "
                f"got values from {probs.min().item():g} to {probs.max().item():g}"
            )
        self.probs: Tensor
        self.register_buffer("probs", (probs / total).detach())

    @property
    def absorbing(self) -> bool:
        return False

    @property
    def independent(self) -> bool:
        return True

    def marginals(self) -> Tensor:
        return self.probs

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Data:
        full = (*shape, *self.event_shape)
        one = self.probs.numel() == self.states  # law for all tokens
        probs = self.probs.reshape(-1) if one else self.probs.expand(*self.event_shape, -1)
        below = probs.double().cumsum(-1)
        total = below[-1] if one else below[..., -1:]
        u = torch.rand(full, generator=generator, device=below.device, dtype=torch.float64)
        u = u if one else u.reshape(-1, *self.event_shape).movedim(0, -1).contiguous()
        # a state is found where its running sum is the first above u: it has mass of its own, and
        # the last with mass ends at the total itself, so that no draw falls beyond it
        x = torch.searchsorted(below, u * total, right=True)
        return x if one else x.movedim(-1, 0).reshape(full)

    def log_prob(self, x: Data, context: Tensor | None = None) -> Batch:
        expect_trailing("Categorical.log_prob", "tokens", x, self.event_shape)
        expect_integers("Categorical.log_prob", x)
        table = self.probs.expand(*self.event_shape, self.states).log()
        table = table.expand(*x.shape, self.states)
        inside = x.clamp(0, self.states - 1).long()
        each = table.gather(-1, inside[..., None])[..., 0]
        return _summed(each.masked_fill(inside != x, -torch.inf), len(self.event_shape))


class UniformTokens(TokenBase):
    """Draw every token uniformly from the vocabulary.

    Example:
        >>> round(UniformTokens(2, 10).log_prob(torch.tensor([3, 4])).exp().item(), 6)
        0.01
        >>> UniformTokens((4, 4), 10).sample((7,)).shape
        torch.Size([7, 4, 4])
    """

    def __init__(self, event_shape: Sequence[int] | int, vocabulary: int) -> None:
        super().__init__(event_shape, vocabulary)
        self.probs: Tensor
        full = torch.full((vocabulary,), 1 / vocabulary)
        self.register_buffer("probs", full, persistent=False)

    @property
    def absorbing(self) -> bool:
        return False

    @property
    def independent(self) -> bool:
        return True

    def marginals(self) -> Tensor:
        return self.probs

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Data:
        full = (*shape, *self.event_shape)
        return torch.randint(self.vocabulary, full, generator=generator, device=self.probs.device)

    def log_prob(self, x: Data, context: Tensor | None = None) -> Batch:
        expect_trailing("UniformTokens.log_prob", "tokens", x, self.event_shape)
        expect_integers("UniformTokens.log_prob", x)
        outside = (x < 0) | (x >= self.vocabulary)
        each = self.probs.log()[0].expand(x.shape)
        return _summed(each.masked_fill(outside, -torch.inf), len(self.event_shape))


class MaskTokens(TokenBase):
    """Start with every token masked.

    Args:
        event_shape: Shape of one point.
        vocabulary: How many values a data token has; the mask is one more.

    Example:
        >>> MaskTokens(3, 27).sample(()).tolist()
        [27, 27, 27]
    """

    def __init__(self, event_shape: Sequence[int] | int, vocabulary: int) -> None:
        super().__init__(event_shape, vocabulary, masked=True)
        self.probs: Tensor
        probs = torch.zeros(self.states)
        probs[vocabulary] = 1.0
        self.register_buffer("probs", probs, persistent=False)

    @property
    def absorbing(self) -> bool:
        return True

    @property
    def independent(self) -> bool:
        return True

    def marginals(self) -> Tensor:
        return self.probs

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Data:
        full = (*shape, *self.event_shape)
        return torch.full(full, self.vocabulary, device=self.probs.device)

    def log_prob(self, x: Data, context: Tensor | None = None) -> Batch:
        expect_trailing("MaskTokens.log_prob", "tokens", x, self.event_shape)
        expect_integers("MaskTokens.log_prob", x)
        each = torch.where(x == self.vocabulary, 0.0, -torch.inf).to(self.probs.dtype)
        return _summed(each, len(self.event_shape))


class EmpiricalTokens(TokenBase):
    """Draw whole sequences from a table: the law of another data set, say, that is to be carried.

    Args:
        tokens: The table, `(rows, *event)`.
        vocabulary: How many values a token has.
        masked: Whether the state above them is the mask, and may occur in the table.

    Raises:
        ShapeError: The table is empty or has no batch axis.
        DomainError: A token is no integer, or out of range.

    Example:
        >>> EmpiricalTokens(torch.tensor([[0, 1], [1, 1]]), 2).log_prob(torch.tensor([1, 1])).exp()
        tensor(0.5000)
    """

    def __init__(self, tokens: Data, vocabulary: int, *, masked: bool = False) -> None:
        if tokens.dim() < 1 or not tokens.numel():
            raise ShapeError(
                f"EmpiricalTokens: needs a table (rows, *event), got {tuple(tokens.shape)}"
            )
        super().__init__(tokens.shape[1:], vocabulary, masked=masked)
        expect_trailing("EmpiricalTokens", "tokens", tokens, self.event_shape)
        expect_integers("EmpiricalTokens", tokens)
        outside = (tokens < 0) | (tokens >= self.states)
        if bool(outside.any()):
            place = tuple(outside.nonzero()[0].tolist())
            raise DomainError(
                f"EmpiricalTokens: tokens must lie between 0 and {self.states - 1}, got "
                f"{int(tokens[place])} at index {place} ({int(outside.sum())} of {outside.numel()} "
                "tokens are affected)"
            )
        self.tokens: Tensor
        self.register_buffer("tokens", tokens.long())

    @property
    def absorbing(self) -> bool:
        return False

    @property
    def independent(self) -> bool:
        return False

    def marginals(self) -> Tensor:
        states = torch.arange(self.states, device=self.tokens.device)
        same = self.tokens[..., None] == states
        return same.to(torch.get_default_dtype()).mean(0)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Data:
        rows = torch.randint(
            len(self.tokens), shape, generator=generator, device=self.tokens.device
        )
        return self.tokens[rows]

    def log_prob(self, x: Data, context: Tensor | None = None) -> Batch:
        expect_trailing("EmpiricalTokens.log_prob", "tokens", x, self.event_shape)
        expect_integers("EmpiricalTokens.log_prob", x)
        rows = len(self.tokens)
        flat = torch.cat([self.tokens, x.reshape(-1, *self.event_shape)]).reshape(
            -1, math.prod(self.event_shape)
        )
        kind = flat.unique(dim=0, return_inverse=True)[1]
        count = torch.bincount(kind[:rows], minlength=int(kind.max()) + 1)
        share = count[kind[rows:]].to(torch.get_default_dtype()) / rows
        return share.log().reshape(x.shape[: x.dim() - len(self.event_shape)])


def _summed(each: Tensor, ndim: int) -> Tensor:
    """Sum over the trailing axes of the event."""
    return each if not ndim else each.flatten(each.dim() - ndim).sum(-1)
