"""Guidance: sample an autoregressive flow away from a weaker version of itself.

    theta_t <- theta_t + w_t (theta_t - weak theta_t),    w_t = weight, or weight t / (tokens - 1)

where theta are the parameters of token t given the tokens before it. The weak version is the null
class (classifier-free guidance), or attention at another temperature, which needs no classes, or
both. Scales are mixed before they are bounded, so that guided ones keep the layer's bound.

What comes out is a sampler and no density of the model; `GuidedTransport` therefore pushes points
and refuses everything else.
Source: Zhai et al. (2024), Normalizing flows are capable generative models, arXiv 2412.06329; Ho
and Salimans (2022), Classifier-free diffusion guidance, arXiv 2207.12598.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, expect_positive
from cflow.nets import Cache, CausalNetwork, CausalTransformer
from cflow.state import State
from cflow.transport.noise import LabelDropout
from cflow.transport.transformer import TransformerLayer
from cflow.transport.transport import Chain, Inverse, Likelihood, Shape, Transport
from cflow.transport.univariate import AdditiveMap, AffineMap, UnivariateMap

__all__ = ["Guidance", "GuidedTransport"]

Guided: TypeAlias = Literal["both", "shift", "scale"]


@dataclass(frozen=True)
class Guidance:
    """Say how samples are guided.

    Attributes:
        weight: How far to go beyond the model, away from its weak version; 0 for not at all.
        of: Which parameters are guided.
        anneal: Let the weight grow along each layer's sequence, from 0 at its first token to
            `weight` at its last.
        temperature: Divides the attention scores of both versions; below 1 attention is sharper.
        weak_temperature: Divides those of the weak version once more. Other than 1, it guides
            models without classes, and points whose label is null.

    Raises:
        DomainError: The weight is negative or a temperature not positive.

    Example:
        >>> Guidance(weight=2.0, of="shift").anneal
        True
    """

    weight: float = 1.0
    of: Guided = "both"
    anneal: bool = True
    temperature: float = 1.0
    weak_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise DomainError(
                f"Guidance: weight must be 0 or positive, and finite, got {self.weight}"
            )
        expect_positive(
            "Guidance", temperature=self.temperature, weak_temperature=self.weak_temperature
        )


class GuidedTransport(Transport):
    """Push points through a transport whose transformer layers are guided; all modules are shared.

    Args:
        transport: Transformer layers, inside of chains, inverses and label dropout to any depth,
            and anything else beside them.
        guidance: How they are guided.

    Raises:
        DomainError: There is nothing to guide, or the layers have no weak version.

    Example:
        >>> net = CausalTransformer(4, 2, 4, width=8, layers=1, heads=2, classes=3)
        >>> layer = GuidedTransport(Inverse(TransformerLayer(net)), Guidance(weight=2.0))
        >>> layer.push(State(torch.zeros(1, 4, 2)), torch.tensor([2])).x.shape
        torch.Size([1, 4, 2])
    """

    def __init__(self, transport: Transport, guidance: Guidance) -> None:
        super().__init__()
        self.transport = _with_guidance(transport, guidance)
        self.guidance = guidance
        if not any(isinstance(part, _GuidedNetwork) for part in self.transport.modules()):
            raise DomainError(
                f"GuidedTransport: only a TransformerLayer can be guided, found none in "
                f"{type(transport).__name__}"
            )

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        if state.ladj is not None:
            self._refuse("push")
        return self.transport.push(state, context, generator=generator)

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        self._refuse("pull")

    @property
    def likelihood(self) -> Likelihood:
        self._refuse("likelihood")

    def out_shape(self, shape: Shape) -> Shape:
        return self.transport.out_shape(shape)

    def _refuse(self, method: str) -> NoReturn:
        raise DomainError(
            f"GuidedTransport.{method}: guided samples follow no density of the model; use sample "
            "or rsample here, and ask the flow without guidance for log_prob and pull"
        )


class _GuidedNetwork(CausalNetwork):
    """Mix the parameters of a network and of its weak version, both from one pass of two halves."""

    def __init__(
        self, network: CausalTransformer, univariate: UnivariateMap, guidance: Guidance
    ) -> None:
        super().__init__(network.tokens, network.channels, network.outputs)
        self.network = network
        self.guided = guidance.weight > 0
        if self.guided and not network.classes and guidance.weak_temperature == 1:
            raise DomainError(
                "GuidedTransport: without classes there is no weak version to go away from; set "
                "Guidance(weak_temperature=...) to another value than 1"
            )
        places = torch.arange(self.tokens) / max(self.tokens - 1, 1)
        weights = guidance.weight * (places if guidance.anneal else torch.ones(self.tokens))
        chosen = torch.tensor(_chosen(univariate, guidance.of)).repeat(self.channels)
        temperatures = [guidance.temperature, guidance.temperature * guidance.weak_temperature]
        self.hot = temperatures != [1.0, 1.0]
        self.gain: Tensor
        self.temperatures: Tensor
        self.register_buffer("gain", weights[:, None] * chosen, persistent=False)
        self.register_buffer("temperatures", torch.tensor(temperatures), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch = x.shape[:-2]
        theta = self.network(
            self._doubled(x), self._contexts(context), temperature=self._temperature(batch)
        )
        return self._mixed(theta, self.gain)

    def begin(self, batch: Sequence[int], context: Tensor | None = None) -> tuple[Tensor, Cache]:
        theta, cache = self.network.begin(
            (2, *batch) if self.guided else batch,
            self._contexts(context),
            temperature=self._temperature(batch),
        )
        return self._mixed(theta, self.gain[0]), cache

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        theta, cache = self.network.step(self._doubled(x), cache)
        return self._mixed(theta, self.gain[cache.position - 1]), cache

    def _doubled(self, x: Tensor) -> Tensor:
        return x.expand(2, *x.shape) if self.guided else x

    def _contexts(self, context: Tensor | None) -> Tensor | None:
        if context is None or not self.guided:
            return context
        weak = torch.full_like(context, -1) if self.network.classes else context
        return torch.stack([context, weak])

    def _temperature(self, batch: Sequence[int]) -> Tensor | None:
        if not self.hot:
            return None
        values = self.temperatures if self.guided else self.temperatures[0]
        return values.reshape(values.shape + (1,) * len(batch))

    def _mixed(self, theta: Tensor, gain: Tensor) -> Tensor:
        if not self.guided:
            return theta
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        return theta[0] + gain.to(theta.dtype) * (theta[0] - theta[1])


def _chosen(univariate: UnivariateMap, of: Guided) -> list[bool]:
    """Flag those of a map's parameters that are guided."""
    if of == "both":
        return [True] * univariate.parameters
    if isinstance(univariate, AffineMap):
        return [of == "scale", of == "shift"]
    if isinstance(univariate, AdditiveMap) and of == "shift":
        return [True]
    raise DomainError(f'GuidedTransport: {univariate} has no {of} of its own; guide "both"')


def _with_guidance(transport: Transport, guidance: Guidance) -> Transport:
    """Return the transport with every transformer layer guided."""
    again: Transport
    if isinstance(transport, TransformerLayer):
        if not isinstance(transport.network, CausalTransformer):
            raise DomainError(
                f"GuidedTransport: a layer steered by {type(transport.network).__name__} cannot be "
                "guided; start from the flow without guidance, with CausalTransformer in its layers"
            )
        network = _GuidedNetwork(transport.network, transport.univariate, guidance)
        network.to(transport.network.positions.device)
        network.training = transport.training
        again = TransformerLayer(network, transport.univariate, reverse=transport.reverse)
    elif isinstance(transport, Chain):
        again = Chain(*(_with_guidance(part, guidance) for part in transport))
    elif isinstance(transport, Inverse):
        again = Inverse(_with_guidance(transport.transport, guidance))
    elif isinstance(transport, LabelDropout):
        again = LabelDropout(_with_guidance(transport.transport, guidance), transport.rate)
    else:
        return transport
    again.training = transport.training  # not again.train(), which would reach shared modules
    return again
