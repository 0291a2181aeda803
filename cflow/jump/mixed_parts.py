"""One part of a mixed flow given the other: flows like any other, with their likelihoods.

    points given tokens:  dx/dt = v((1, t), tokens, x),     an ODE, with log p(x | tokens)
    tokens given points:  rates p(y | (t, 1), tokens, x),   jumps, with a bound on log p(tokens | x)

The known part is the context. They are good if the network has learnt such times, see `MixedTimes`.
"""

import torch
from torch import Tensor, nn

from cflow.base import MeanFreeGaussian
from cflow.errors import DomainError
from cflow.field import Field
from cflow.flow import Flow
from cflow.jump.flow import JumpFlow
from cflow.jump.mixed import MixedFlow
from cflow.jump.rates import NetworkPosterior
from cflow.manifold import Euclidean
from cflow.transport import ODE
from cflow.typing import Data, Points, Times

__all__ = ["points_given_tokens", "tokens_given_points"]


def points_given_tokens(flow: MixedFlow) -> Flow:
    """Return the flow of points whose context is the tokens; it shares the network.

    Its solver is that of `ODE` by default; take another by `with_solver`.

    Raises:
        DomainError: The mixed flow takes a context of its own.

    Example:
        >>> from cflow.base import MaskTokens, MeanFreeGaussian
        >>> from cflow.jump import MixedEGNN
        >>> network = MixedEGNN(5, 4, hidden_features=8, layers=1)
        >>> flow = MixedFlow(MaskTokens(6, 4), MeanFreeGaussian((6, 3)), network)
        >>> places, elements = flow.base_points.sample((2,)), torch.zeros(2, 6, dtype=torch.long)
        >>> points_given_tokens(flow).log_prob(places, elements).shape
        torch.Size([2])
    """
    _expect_alone("points_given_tokens", flow)
    base = flow.base_points
    centred = isinstance(base, MeanFreeGaussian)
    manifold = base.manifold if centred else Euclidean(len(base.event_shape))
    ode = ODE(_Velocity(flow), manifold=manifold)
    return Flow(base, ode, context_shape=flow.base_tokens.event_shape)


def tokens_given_points(flow: MixedFlow) -> JumpFlow:
    """Return the flow of tokens whose context is the points; it shares the network.

    Raises:
        DomainError: The mixed flow takes a context of its own.

    Example:
        >>> from cflow.base import MaskTokens, MeanFreeGaussian
        >>> from cflow.jump import MixedEGNN
        >>> network = MixedEGNN(5, 4, hidden_features=8, layers=1)
        >>> flow = MixedFlow(MaskTokens(6, 4), MeanFreeGaussian((6, 3)), network)
        >>> places, elements = flow.base_points.sample((2,)), torch.zeros(2, 6, dtype=torch.long)
        >>> tokens_given_points(flow).elbo(elements, places).shape
        torch.Size([2])
    """
    _expect_alone("tokens_given_points", flow)
    rates = NetworkPosterior(_Logits(flow), flow.base_tokens, flow.path)
    jumps = flow.sampler.jumps
    return JumpFlow(
        flow.base_tokens, rates, sampler=jumps, context_shape=flow.base_points.event_shape
    )


class _Velocity(Field):
    """Ask for the velocity with the tokens known."""

    def __init__(self, flow: MixedFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        assert context is not None  # of every flow with a context shape
        return self.flow(torch.stack([torch.ones_like(t), t], -1), context, x)[1]


class _Logits(nn.Module):
    """Ask for the logits with the points known."""

    def __init__(self, flow: MixedFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        assert context is not None
        t = t.to(context.dtype)
        return self.flow(torch.stack([t, torch.ones_like(t)], -1), x, context)[0]


def _expect_alone(where: str, flow: MixedFlow) -> None:
    if flow.context_shape is not None:
        raise DomainError(
            f"{where}: the known part takes the place of the context, and this flow has one of its "
            "own; draw from MixedFlow.sample with tokens= or points= instead"
        )
