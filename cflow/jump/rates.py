"""Rates: where tokens jump to, and how fast; the model of a jump process.

    u(x -> y) >= 0 for y != x,  one token at a time:    dp/ds = p Q,   Q_xy = u,  Q_xx = -sum_y u

Every token has its own row of rates, which may depend on all others (a factorised process). Rates
are per unit of a clock, see `clock.py`. Two parameterisations:

    posterior:  logits of p(x1 | x_t) over the vocabulary; the path turns them into rates
    direct:     u = exp(network), of any process

Source: Campbell et al. (2022), A continuous time framework for discrete denoising models, arXiv
2205.14987, section 3; Gat et al. (2024), arXiv 2407.15595.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.base import TokenBase
from cflow.errors import ShapeError
from cflow.jump.clock import Clock, PlainClock
from cflow.jump.path import JumpPath, MixturePath
from cflow.typing import Data, Times

__all__ = ["DirectRates", "NetworkPosterior", "Posterior", "Rates", "TokenFunction"]

TokenFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Any network or function `(t, x, context)` with one row of numbers for each token."""

MIXTURE = MixturePath()


class Rates(nn.Module, ABC):
    """Give the rates of a factorised jump process.

    Args:
        states: How many values a token has.
        path: The path whose rates these are to be, or None for those of any other process.
        clock: The clock that they are counted in; the path's own where there is one.
    """

    def __init__(self, states: int, path: JumpPath | None, *, clock: Clock | None = None) -> None:
        super().__init__()
        self.states = states
        self.path = path
        own = PlainClock() if path is None else path.clock
        self.clock: Clock = own if clock is None else clock

    @abstractmethod
    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        """Return rates.

        Args:
            t: Times `(*batch,)`.
            x: Tokens `(*batch, *event)`.
            context: Conditions `(*batch, *context)`.

        Returns:
            Rates per unit of the clock `(*batch, *event, states)`; 0 for staying.
        """


class Posterior(Rates):
    """Give rates by predicting data from tokens on the way: authors write `logits`.

    Args:
        vocabulary: How many values a data token has.
        path: The path that is reversed.
        masked: Whether there is a state more, the mask.
        absorbing: Whether all tokens start as masks, so that one that is none is final.
    """

    def __init__(
        self, vocabulary: int, path: JumpPath, *, masked: bool = False, absorbing: bool = False
    ) -> None:
        super().__init__(vocabulary + masked, path)
        self.vocabulary, self.masked, self.absorbing = vocabulary, masked, absorbing

    @abstractmethod
    def logits(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        """Return unnormalised log p(x1 | x_t), `(*batch, *event, vocabulary)`."""

    def along(self, path: JumpPath) -> "Posterior":
        """Return rates of the same predictions along another path with the same law at each time.

        `NoisingPath.of(base, schedule)`, say, for a bound that can be tight without masks.
        """
        return _Along(self, path)

    def unsettled(self, x: Data) -> Tensor | None:
        """Flag the tokens that may still jump, or return None where all may."""
        return x == self.vocabulary if self.absorbing else None

    def probabilities(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        """Return p(x1 | x_t) over all states, `(*batch, *event, states)`; final tokens stay."""
        logits = self.logits(t, x, context)
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        p = functional.pad(p, (0, int(self.masked)))
        unsettled = self.unsettled(x)
        if unsettled is None:
            return p
        return torch.where(unsettled[..., None], p, functional.one_hot(x, self.states).to(p))

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        assert self.path is not None  # of every posterior
        return self.path.rates(t, x, self.probabilities(t, x, context))


class NetworkPosterior(Posterior):
    """Predict data with a network.

    Args:
        network: Called as `network(t, x, context)`, gives logits over the vocabulary for each
            token, `(*batch, *event, vocabulary)`: ours or any other module or function.
        base: The law that the process starts from, which says what states there are.
        path: The path that is reversed; a mixture along `LinearSchedule` by default.

    Raises:
        ShapeError: On use, the network answers with another shape.
        DomainError: The path needs another base.

    Example:
        >>> from cflow.base import MaskTokens
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> rates = NetworkPosterior(uniform, MaskTokens(2, 4))
        >>> rates(torch.rand(1), torch.tensor([[4, 1]])).tolist()
        [[[0.25, 0.25, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]]
    """

    def __init__(self, network: TokenFunction, base: TokenBase, path: JumpPath = MIXTURE) -> None:
        path.expect_base(base)
        masked = base.mask is not None
        super().__init__(base.vocabulary, path, masked=masked, absorbing=base.absorbing)
        self.network = network

    def logits(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        logits = self.network(t, x, context)
        if logits.shape != (*x.shape, self.vocabulary):
            raise ShapeError(
                f"NetworkPosterior: the network must return one logit for each of "
                f"{self.vocabulary} values of each token, {(*x.shape, self.vocabulary)}, got "
                f"{tuple(logits.shape)}"
            )
        return logits


class DirectRates(Rates):
    """Let a network give the logarithms of rates, of a path or of any other process.

    Args:
        network: Called as `network(t, x, context)`, gives `(*batch, *event, states)`; minus
            infinity for jumps that never happen. What it says of staying is not read.
        states: How many values a token has.
        path: The path that is reversed, for losses and the bound; None for any other process.
        clock: The clock that rates are counted in; the path's, or time itself without one.

    Raises:
        ShapeError: On use, the network answers with another shape.

    Example:
        >>> halves = lambda t, x, context: torch.full((*x.shape, 3), 0.5).log()
        >>> DirectRates(halves, 3)(torch.rand(1), torch.tensor([[2]])).tolist()
        [[[0.5, 0.5, 0.0]]]
    """

    def __init__(
        self,
        network: TokenFunction,
        states: int,
        path: JumpPath | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(states, path, clock=clock)
        self.network = network

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        log_rates = self.network(t, x, context)
        if log_rates.shape != (*x.shape, self.states):
            raise ShapeError(
                f"DirectRates: the network must return one number for each of {self.states} "
                f"states of each token, {(*x.shape, self.states)}, got {tuple(log_rates.shape)}"
            )
        return log_rates.exp().scatter(-1, x[..., None], 0.0)


class _Along(Posterior):
    """Turn the predictions of a posterior into rates of another path."""

    def __init__(self, inner: Posterior, path: JumpPath) -> None:
        super().__init__(inner.vocabulary, path, masked=inner.masked, absorbing=inner.absorbing)
        self.inner = inner

    def logits(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        return self.inner.logits(t, x, context)
