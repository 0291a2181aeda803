"""Losses of jump flows: learn rates from points on the way, without a simulation.

    loss = E w(t) 1/L sum_i l_i(t, x_t, x1),    t ~ times,  (x0, x1) ~ coupling,  x_t ~ path

    cross-entropy    l = -log p(x1 | x_t)
    generalised KL   l = s'(t) k,  with k of `elbo.py`: its integral over time is minus the bound
    squared rates    l = sum_y (u(x_t -> y) - u(x_t -> y | x1))^2, per unit of the clock squared
    bound            l = k at moments of low variance, see `elbo.py`

All have the conditional mean of the path's rates as their minimum.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595; Shaul et al.
(2024), arXiv 2412.03487 (generalised KL); Holderrieth et al. (2024), Generator
matching, arXiv 2410.20587 (Bregman divergences of rates).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_tokens
from cflow.jump.elbo import clock_kl, expect_path, log_posterior
from cflow.jump.flow import JumpFlow
from cflow.jump.path import over_tokens
from cflow.jump.rates import Posterior, Rates
from cflow.matching import (
    ContextDropout,
    Coupling,
    IndependentCoupling,
    Stratified,
    TimeLaw,
    UniformTimes,
)
from cflow.typing import Batch, Data, Times

__all__ = [
    "CrossEntropy",
    "GeneralisedKL",
    "JumpLoss",
    "SquaredRates",
    "jump_matching",
    "negative_elbo",
]


class JumpLoss(ABC):
    """Compare a model's rates with those of a path; concrete losses are frozen dataclasses."""

    @abstractmethod
    def __call__(
        self, rates: Rates, t: Times, x: Data, x1: Data, context: Tensor | None = None
    ) -> Tensor:
        """Return one number for each token.

        Args:
            rates: The model.
            t: Times `(n,)`.
            x: Tokens at these times, `(n, *event)`.
            x1: Their ends.
            context: Conditions `(n, *context)`.

        Returns:
            `(n, *event)`.
        """


@dataclass(frozen=True)
class CrossEntropy(JumpLoss):
    """Give -log p(x1 | x_t); with masks, 0 for tokens that are final.

    Its minimum is the posterior, whatever the weights of times.
    """

    def __call__(
        self, rates: Rates, t: Times, x: Data, x1: Data, context: Tensor | None = None
    ) -> Tensor:
        if not isinstance(rates, Posterior):
            raise DomainError(
                f"CrossEntropy: needs a posterior, got {type(rates).__name__}; take GeneralisedKL "
                "for rates alone"
            )
        log_p = log_posterior(rates, t, x, context)
        value = -log_p.gather(-1, x1[..., None])[..., 0]
        unsettled = rates.unsettled(x)
        return value if unsettled is None else torch.where(unsettled, value, 0.0)


@dataclass(frozen=True)
class GeneralisedKL(JumpLoss):
    """Give the Bregman divergence of rates, sum_y u1 log(u1 / u) - u1 + u, per unit of time.

    With uniform times it is the bound, but its weight s'(t) grows without limit towards data;
    `negative_elbo` draws better moments.
    """

    def __call__(
        self, rates: Rates, t: Times, x: Data, x1: Data, context: Tensor | None = None
    ) -> Tensor:
        return over_tokens(rates.clock.speed(t), x) * clock_kl(rates, t, x, x1, context)


@dataclass(frozen=True)
class SquaredRates(JumpLoss):
    """Give the squared error of rates, in units of the clock: in time it is s'(t)^2 of this."""

    def __call__(
        self, rates: Rates, t: Times, x: Data, x1: Data, context: Tensor | None = None
    ) -> Tensor:
        path = expect_path("SquaredRates", rates)
        u = rates(t, x, context)
        ends = functional.one_hot(x1, rates.states).to(u)
        return (u - path.rates(t, x, ends)).square().sum(-1)


CROSS_ENTROPY = CrossEntropy()
INDEPENDENT = IndependentCoupling()
TIMES = Stratified(UniformTimes())


def jump_matching(
    flow: JumpFlow,
    x1: Data,
    context: Tensor | None = None,
    *,
    x0: Data | None = None,
    coupling: Coupling = INDEPENDENT,
    t: Times | None = None,
    times: TimeLaw = TIMES,
    loss: JumpLoss = CROSS_ENTROPY,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the loss of each data point, averaged over its tokens.

    Args:
        flow: The flow, whose base starts the paths.
        x1: Data tokens `(n, *event)`.
        context: Conditions `(n, *context_shape)`.
        x0: Starts `(m, *event)`; drawn from the base by default.
        coupling: Which start goes to which end.
        t: Times `(n,)`, one for each pair; drawn by default.
        times: The law of times.
        loss: What is compared.
        weight: Factor on the loss of each time, a function of `(n,)`.
        dropout: Leaves out conditions, for guidance.
        generator: Source of the randomness.

    Returns:
        One number per pair, `(n,)`.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: x1 holds no data tokens, or the loss does not fit the rates.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior, TokenMLP
        >>> base = MaskTokens(2, 4)
        >>> flow = JumpFlow(base, NetworkPosterior(TokenMLP(2, 5, 4), base))
        >>> jump_matching(flow, torch.randint(4, (8, 2))).shape
        torch.Size([8])
    """
    base, rates = flow.base, flow.rates
    path = expect_path("jump_matching", rates)
    _expect_data("jump_matching", flow, x1, context)
    x1 = x1.long()
    if x0 is None:
        x0 = base.sample((len(x1),), generator=generator)
    expect_tokens("jump_matching, x0", x0, base.event_shape, base.states)
    i, j, mass = coupling(x0, x1, context, generator=generator)
    x0, x1, context = x0[i], x1[j], None if context is None else context[j]
    like = torch.empty(0, device=x1.device)
    t = times.sample(len(x1), like=like, generator=generator) if t is None else t
    noise = torch.rand(x1.shape, generator=generator, device=x1.device)
    x = path.sample(x0, x1, t, noise=noise).x
    if dropout is not None and context is not None:
        context, _ = dropout.drop(context, generator=generator)
    value = loss(rates, t, x, x1, context).reshape(len(x1), -1).mean(1)
    if weight is not None:
        value = weight(t) * value
    return value if mass is None else mass.to(value) * value


def negative_elbo(
    flow: JumpFlow,
    x1: Data,
    context: Tensor | None = None,
    *,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return minus the bound in nats per token: the loss that trains a flow as it is measured.

    Args:
        flow: The flow.
        x1: Data tokens `(n, *event)`.
        context: Conditions `(n, *context_shape)`.
        dropout: Leaves out conditions, for guidance.
        generator: Source of the randomness.

    Returns:
        One number per point, `(n,)`, whose mean is the mean of -log p at least.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior
        >>> base = MaskTokens(2, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> flow = JumpFlow(base, NetworkPosterior(uniform, base))
        >>> [round(k.exp().item(), 4) for k in negative_elbo(flow, torch.tensor([[0, 1], [3, 3]]))]
        [4.0, 4.0]
    """
    _expect_data("negative_elbo", flow, x1, context)
    if dropout is not None and context is not None:
        context, _ = dropout.drop(context, generator=generator)
    return -flow.elbo(x1, context, generator=generator) / math.prod(flow.event_shape)


def _expect_data(where: str, flow: JumpFlow, x1: Tensor, context: Tensor | None) -> None:
    base = flow.base
    masked = base.mask is not None
    expect_tokens(where, x1, base.event_shape, base.vocabulary, masked=masked)
    if x1.dim() != len(base.event_shape) + 1 or (context is not None and len(context) != len(x1)):
        raise ShapeError(
            f"{where}: x1 needs one leading batch axis, and the context one condition for each "
            f"point, got {tuple(x1.shape)} and {None if context is None else tuple(context.shape)}"
        )
    if (context is None) != (flow.context_shape is None):
        raise DomainError(
            f"{where}: the flow {'takes no' if flow.context_shape is None else 'needs a'} context, "
            f"got {None if context is None else tuple(context.shape)}"
        )
