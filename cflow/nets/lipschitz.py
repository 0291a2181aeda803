"""Networks whose Lipschitz constant in x is below a coefficient, by construction and at any time.

    h_{k+1} = a(W_k h_k + V_k context + b_k),    |W_k| <= c^(1/K),    |a'| <= 1

The context enters by free weights, so the network is Lipschitz in x alone. Everything runs in
float32 at least: a log-determinant is made of this network's derivatives.
Source: Behrmann et al. (2019), Invertible residual networks, arXiv 1811.00995; Chen et al. (2019),
Residual flows for invertible generative modeling, arXiv 1906.02735, section 3.3 for LipSwish.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.nets.spectral import SpectralConv2d, SpectralLinear, convolve

__all__ = ["CLipSwish", "Contraction", "LipSwish", "LipschitzConvNet", "LipschitzMLP"]

Prepared: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""A network with its weights computed, called as `g(x, context)`."""

SWISH = 1.1  # the largest slope of z sigmoid(z) is 1.0998
PAIR = 1.1044  # the largest norm of the slopes at z and -z is 1.10434


class Contraction(nn.Module, ABC):
    """A network g(x, context) with a Lipschitz constant in x that it can certify.

    Weights are normalised at every call. Whoever calls it many times, as a fixed-point iteration
    does, asks for `prepared()` once.
    """

    @abstractmethod
    def prepared(self) -> Prepared:
        """Normalise the weights and return the map; gradients reach the weights through it."""

    @abstractmethod
    def certificate(self) -> float:
        """Return an upper bound of the Lipschitz constant in x, computed in float64."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return g(x, context)."""
        return self.prepared()(x, context)


class LipSwish(nn.Module):
    """Apply z sigmoid(beta z) / 1.1 with a learned beta > 0; its slope lies within +-1.

    References:
        Chen et al. (2019), arXiv 1906.02735, section 3.3.

    Example:
        >>> LipSwish()(torch.zeros(2)).tolist()
        [0.0, 0.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor) -> Tensor:
        beta = nn.functional.softplus(self.raw).to(z.dtype)
        return z * torch.sigmoid(beta * z) / SWISH


class CLipSwish(nn.Module):
    """Join z sigmoid(beta z) of z and of -z, scaled to a Lipschitz constant of at most 1.

    The last axis, or the channel axis of images, doubles.

    Args:
        axis: The axis along which both halves are joined, negative.

    References:
        Perugachi-Diaz et al. (2021), Invertible DenseNets with concatenated LipSwish, arXiv
        2102.02694, section 3.4.

    Example:
        >>> CLipSwish()(torch.zeros(2)).shape
        torch.Size([4])
    """

    def __init__(self, *, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self.raw = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor) -> Tensor:
        beta = nn.functional.softplus(self.raw).to(z.dtype)
        gate = torch.sigmoid(beta * z)
        return torch.cat([z * gate, -z * (1 - gate)], dim=self.axis) / PAIR


class LipschitzMLP(Contraction):
    """A multilayer perceptron on vectors with a Lipschitz constant of at most `coefficient`.

    Args:
        features: Length of the last axis of x, and of the result.
        context: Length of the context vector; 0 for none.
        hidden_features: Widths of the hidden layers.
        coefficient: The bound, in (0, 1).
        order: p of the norm in which it holds, 1 <= p <= inf.
        learn_order: Let p be trained, beginning at `order`.
        tolerance: How far below its share of the coefficient a layer's norm may end, relatively.

    Raises:
        DomainError: Sizes below 1, or a coefficient or order out of range.

    References:
        Chen et al. (2019), arXiv 1906.02735, section 3.3 and appendix D. There each layer has a
        domain and a codomain of its own order p and q, whose norm is known only from below; here
        all layers share one order, for which a bound from above is known.

    Example:
        >>> net = LipschitzMLP(2, hidden_features=(16, 16), coefficient=0.9)
        >>> net(torch.zeros(5, 2)).shape, net.certificate() <= 0.9
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        features: int,
        *,
        context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
        coefficient: float = 0.98,
        order: float = 2.0,
        learn_order: bool = False,
        tolerance: float = 0.01,
    ) -> None:
        super().__init__()
        share = layer_share("LipschitzMLP", coefficient, len(hidden_features) + 1)
        if not order >= 1 or (learn_order and not 1 < order < math.inf):
            raise DomainError(
                f"LipschitzMLP: order must lie in [1, inf], and inside it to be learned, got "
                f"{order}"
            )
        widths = [features, *hidden_features, features]
        self.layers = nn.ModuleList(
            SpectralLinear(a, b, coefficient=share, tolerance=tolerance)
            for a, b in pairwise(widths)
        )
        self.activations = nn.ModuleList(LipSwish() for _ in hidden_features)
        self.inputs = context_maps(context, hidden_features)
        self.inverse_order = 1 / order
        self.raw_order = None
        if learn_order:
            logit = math.log(self.inverse_order / (1 - self.inverse_order))
            self.raw_order = nn.Parameter(torch.tensor(logit))

    @property
    def order(self) -> float:
        """The order p of the norm in which the network contracts."""
        inverse = torch.as_tensor(self._inverse_order()).detach().item()
        return 1 / inverse if inverse else math.inf

    def prepared(self) -> Prepared:
        inverse = self._inverse_order()
        return partial(self._run, [layer.bounded_weight(inverse) for layer in linears(self.layers)])

    def certificate(self) -> float:
        inverse = torch.as_tensor(self._inverse_order()).detach()
        return math.prod(layer.certificate(inverse) for layer in linears(self.layers))

    def _inverse_order(self) -> Tensor | float:
        return self.inverse_order if self.raw_order is None else torch.sigmoid(self.raw_order)

    def _run(self, weights: list[Tensor], x: Tensor, context: Tensor | None) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, weights[0].dtype))
        for k, layer in enumerate(linears(self.layers)):
            h = nn.functional.linear(h, weights[k].to(h.dtype), layer.bias.to(h.dtype))
            if k < len(self.activations):
                h = self.activations[k](h + context_term(self.inputs, k, h, context))
        return h


class LipschitzConvNet(Contraction):
    """A convolutional network on images, kernels 3-1-...-1-3, of bounded Lipschitz constant.

    Args:
        channels: Channels of the image `(channels, height, width)`, and of the result.
        context: Length of the context vector, which reaches every pixel; 0 for none.
        hidden_channels: Channels of the hidden layers.
        coefficient: The bound, in (0, 1), in the Euclidean norm.
        tolerance: How far above a layer's norm its bound may lie, relatively.

    Raises:
        DomainError: Sizes below 1, or a coefficient out of range.

    References:
        Chen et al. (2019), arXiv 1906.02735, appendix E, for the kernels.

    Example:
        >>> LipschitzConvNet(2, hidden_channels=(8, 8))(torch.zeros(5, 2, 4, 4)).shape
        torch.Size([5, 2, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        *,
        context: int = 0,
        hidden_channels: Sequence[int] = (512, 512),
        coefficient: float = 0.98,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__()
        count = len(hidden_channels) + 1
        share = layer_share("LipschitzConvNet", coefficient, count)
        widths = [channels, *hidden_channels, channels]
        self.layers = nn.ModuleList(
            SpectralConv2d(
                a, b, kernel=3 if k in (0, count - 1) else 1, coefficient=share, tolerance=tolerance
            )
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.activations = nn.ModuleList(LipSwish() for _ in hidden_channels)
        self.inputs = context_maps(context, hidden_channels)

    def prepared(self) -> Prepared:
        return partial(self._run, [layer.bounded_weight() for layer in self._convolutions()])

    def certificate(self) -> float:
        return math.prod(layer.certificate() for layer in self._convolutions())

    def _convolutions(self) -> list[SpectralConv2d]:
        return [layer for layer in self.layers if isinstance(layer, SpectralConv2d)]

    def _run(self, weights: list[Tensor], x: Tensor, context: Tensor | None) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, weights[0].dtype))
        for k, layer in enumerate(self._convolutions()):
            h = convolve(h, weights[k].to(h.dtype), layer.bias)
            if k < len(self.activations):
                term = context_term(self.inputs, k, h, context)
                h = self.activations[k](h + (term if context is None else term[..., None, None]))
        return h


def linears(layers: nn.ModuleList) -> list[SpectralLinear]:
    """List the linear layers, by their type."""
    return [layer for layer in layers if isinstance(layer, SpectralLinear)]


def layer_share(where: str, coefficient: float, layers: int) -> float:
    """Return each layer's part of a network's bound, or raise for one out of range."""
    if not 0 < coefficient < 1:
        raise DomainError(
            f"{where}: coefficient must lie in (0, 1), so that x + g(x) is invertible, got "
            f"{coefficient}"
        )
    return coefficient ** (1 / layers)


def context_maps(context: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return the free linear maps by which a context enters each hidden layer."""
    return nn.ModuleList(nn.Linear(context, width, bias=False) for width in widths if context)


def context_term(maps: nn.ModuleList, k: int, h: Tensor, context: Tensor | None) -> Tensor:
    """Return what the context adds to hidden layer k, zero where there is none."""
    if context is None:
        return h.new_zeros(())
    if not len(maps):
        raise DomainError("Contraction: this network takes no context; build it with context=...")
    weight = maps[k].get_parameter("weight").to(h.dtype)
    return nn.functional.linear(context.to(h.dtype), weight)
