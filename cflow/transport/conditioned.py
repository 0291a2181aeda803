"""Encode the context once, for everything inside: class labels become vectors, images features."""

from torch import Generator, Tensor, nn

from cflow.state import State
from cflow.transport.transport import Likelihood, Shape, Transport

__all__ = ["Conditioned"]


class Conditioned(Transport):
    """Hand a transport an encoded context, context' = encoder(context).

    Args:
        transport: What is steered by the encoded context.
        encoder: A module from contexts `(*batch, *context)` to what the transport expects.

    Example:
        >>> import torch
        >>> from cflow.nets import MLP, OneHot
        >>> from cflow.transport import CouplingLayer
        >>> layer = CouplingLayer([False, True], MLP(1, 2, context=10))
        >>> labelled = Conditioned(layer, OneHot(10))
        >>> labelled.push(State(torch.zeros(3, 2)), torch.tensor([0, 9, 4])).x.shape
        torch.Size([3, 2])
    """

    def __init__(self, transport: Transport, encoder: nn.Module) -> None:
        super().__init__()
        self.transport = transport
        self.encoder = encoder

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self.transport.push(state, self._encode(context), generator=generator)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self.transport.pull(state, self._encode(context), generator=generator)

    @property
    def likelihood(self) -> Likelihood:
        return self.transport.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        return self.transport.out_shape(shape)

    def _encode(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else self.encoder(context)
