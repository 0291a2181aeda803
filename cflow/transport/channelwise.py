"""A map of vectors at every pixel of an image: 1x1 convolutions, ActNorm by channel, permutations.

    y[..., :, i, j] = g(x[..., :, i, j]),    ladj = sum over pixels of g's

Source: Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, sections 3.1 and 3.2.
"""

from collections.abc import Callable
from typing import Literal

from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError
from cflow.state import State
from cflow.transport.matrix import LULinear
from cflow.transport.transport import Likelihood, Shape, Stochastic, Transport

__all__ = ["Channelwise", "invertible_conv1x1"]


class Channelwise(Transport):
    """Run a transport of vectors `(channels,)` at every pixel of images `(channels, h, w)`.

    A context reaches every pixel whole. Data-dependent layers inside share their statistics over
    pixels: `Channelwise(ActNorm((3,)))` is the ActNorm of an image with three channels. To spare
    the moving of axes, give it several layers in one `Chain`.

    Args:
        transport: What happens at each pixel; layers or chains of them.

    Raises:
        DomainError: `transport` is none, or a stochastic one.

    Example:
        >>> import torch
        >>> from cflow.state import tracked
        >>> from cflow.transport import Affine
        >>> double = Channelwise(Affine(torch.tensor([2.0, 1.0])))
        >>> double.push(tracked(torch.ones(1, 2, 3, 3), event_dim=3)).ladj  # 9 log 2
        tensor([6.2383])
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        if not isinstance(transport, Transport) or isinstance(transport, Stochastic):
            raise DomainError(
                "Channelwise: needs a transport other than a stochastic one, got "
                f"{type(transport).__name__}"
            )
        self.transport = transport

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self._move("push", self.transport.push, state, context, generator)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self._move("pull", self.transport.pull, state, context, generator)

    @property
    def likelihood(self) -> Likelihood:
        return self.transport.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ShapeError(
                f"Channelwise: images have shape (channels, height, width), got {tuple(shape)}"
            )
        return (*self.transport.out_shape((shape[0],)), *shape[1:])

    def _move(
        self,
        method: str,
        move: Callable[..., State],
        state: State,
        context: Tensor | None,
        generator: Generator | None,
    ) -> State:
        if state.x.dim() < 3:
            raise ShapeError(
                f"Channelwise.{method}: points must end in (channels, height, width), got "
                f"{tuple(state.x.shape)}"
            )
        x = state.x.movedim(-3, -1)
        ladj = None
        if state.ladj is not None:
            ladj = state.ladj.new_zeros(()).expand(x.shape[:-1])
        if context is not None:
            batch = x.dim() - 3
            own = context.shape[batch:]
            context = context[(..., None, None) + (slice(None),) * len(own)]
            context = context.expand(*x.shape[:-1], *own)
        inner = move(State(x, ladj=ladj), context, generator=generator)
        state = state._replace(x=inner.x.movedim(-1, -3), nfe=_most(state.nfe, inner.nfe))
        if state.ladj is not None and inner.ladj is not None:
            state = state._replace(ladj=state.ladj + inner.ladj.flatten(-2).sum(-1))
        if inner.cost is not None:
            cost = inner.cost.flatten(-2).sum(-1)
            state = state._replace(cost=cost if state.cost is None else state.cost + cost)
        return state


def invertible_conv1x1(
    channels: int, *, start: Literal["identity", "orthogonal"] = "orthogonal"
) -> Channelwise:
    """Return the 1x1 convolution of Glow: a PLU matrix shared by all pixels, without bias.

    Args:
        channels: Channels of the image.
        start: A random orthogonal matrix, or the identity.

    References:
        Kingma and Dhariwal (2018), arXiv 1807.03039, equation 10.

    Example:
        >>> import torch
        >>> from cflow.state import State
        >>> invertible_conv1x1(3).push(State(torch.zeros(2, 3, 4, 4))).x.shape
        torch.Size([2, 3, 4, 4])
    """
    return Channelwise(LULinear(channels, start=start, bias=False))


def _most(before: Tensor | int, pixels: Tensor | int) -> Tensor | int:
    """Count the evaluations of the slowest pixel."""
    return before + (pixels.flatten(-2).amax(-1) if isinstance(pixels, Tensor) else pixels)
