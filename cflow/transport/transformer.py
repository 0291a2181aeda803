"""The transformer block of a flow: autoregressive over tokens, affine in each of them.

    push:  y_t = (x_t - b_t) exp(-s_t),    pull:  x_t = y_t exp(s_t) + b_t,
    (s_t, b_t) = net(x_0, ..., x_(t-1), context)

Push takes one pass for all tokens. Pull goes token by token; keys and values of earlier tokens are
kept for the length of the call, so each token passes the network once. The parameters speak of x,
the side that the network reads: b_t and exp(s_t) are mean and spread of x_t given its past. The
Jacobian is triangular over tokens and diagonal within one, so the log-determinant of the push is
minus the sum of all s.
Source: Zhai et al. (2024), Normalizing flows are capable generative models, arXiv 2412.06329.
"""

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_trailing
from cflow.nets import CausalNetwork
from cflow.transport.transport import Layer
from cflow.transport.univariate import AffineMap, UnivariateMap, in_full_precision

__all__ = ["TransformerLayer"]


class TransformerLayer(Layer):
    """Move every token by a map that its predecessors steer, `(*batch, tokens, channels)`.

    Maps and log-slopes are taken in float32 at least. A network in bfloat16 rounds one pass and
    token by token in different ways, so push and pull then undo each other to about 1e-2 only.

    Args:
        network: Gives the parameters; `channels * univariate.parameters` of them for each token.
        univariate: The map of one number. The layer's pull is its push, the way from noise to x
            given the past, and conversely.
        reverse: Read the tokens from the last to the first.

    Raises:
        DomainError: The network has another number of outputs than the map needs.

    Example:
        >>> from cflow.nets import CausalTransformer
        >>> from cflow.state import State
        >>> net = CausalTransformer(4, 2, 4, width=8, layers=1, heads=2)
        >>> layer = TransformerLayer(net, reverse=True)
        >>> x = torch.randn(3, 4, 2)
        >>> torch.allclose(layer.pull(layer.push(State(x))).x, x, atol=1e-5)
        True
    """

    def __init__(
        self,
        network: CausalNetwork,
        univariate: UnivariateMap | None = None,
        *,
        reverse: bool = False,
    ) -> None:
        super().__init__(event_dim=2)
        self.univariate = AffineMap() if univariate is None else univariate
        needed = network.channels * self.univariate.parameters
        if network.outputs != needed:
            raise DomainError(
                f"TransformerLayer: {self.univariate} needs {needed} outputs for each token of "
                f"{network.channels} channels, got a network with {network.outputs}"
            )
        self.network = network
        self.reverse = reverse

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = self._ordered("push", x)
        theta = self._split(self.network(x, context))
        y, slopes = in_full_precision(self.univariate.pull, x, theta)
        return (y.flip(-2) if self.reverse else y), slopes if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        y = self._ordered("pull", y)
        theta, cache = self.network.begin(y.shape[:-2], context)
        tokens, slopes = [], []
        for t in range(self.network.tokens):
            if t:
                theta, cache = self.network.step(tokens[-1], cache)
            x, slope = in_full_precision(self.univariate.push, y[..., t, :], self._split(theta))
            tokens.append(x)
            slopes.append(slope)
        x = torch.stack(tokens[::-1] if self.reverse else tokens, dim=-2)
        return x, torch.stack(slopes, dim=-2) if tracked else None

    def _ordered(self, method: str, x: Tensor) -> Tensor:
        shape = (self.network.tokens, self.network.channels)
        expect_trailing(f"TransformerLayer.{method}", "x", x, shape)
        return x.flip(-2) if self.reverse else x

    def _split(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (self.network.channels, self.univariate.parameters))
