"""Multiscale images: at each scale half of the channels turns to noise, the rest goes on deeper.

    data (c, h, w) -- squeeze -- steps -- split -+- deeper scales --- flat vector
                                                 '- (x - mean(kept)) / scale(kept) -'

All noise ends in one flat vector, so a flow of it is a base on vectors and a transport, as ever: a
split with a learned Gaussian prior is an affine coupling to standard normal entries.
Sources: Dinh et al. (2017), arXiv 1605.08803, section 3.6; Kingma and Dhariwal (2018), Glow,
arXiv 1807.03039, section 3 (priors given the kept half: the authors' code, `split2d_prior`).
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.state import State
from cflow.transport.image_coupling import ImageCouplingLayer
from cflow.transport.linear import Reshape
from cflow.transport.squeeze import Squeeze
from cflow.transport.transport import Chain, Likelihood, Shape, Transport
from cflow.transport.univariate import AffineMap, UnivariateMap

__all__ = ["Split", "multiscale"]


class Split(Transport):
    """Send the first channels of an image on through `inner`; the others leave here.

    The base side is a flat vector: what `inner` makes of the kept channels, then the other
    channels as they are. A coupling on the data side, steered by the kept channels, gives those a
    prior (see `multiscale`).

    Args:
        shape: Event shape on the data side, (channels, height, width).
        inner: From flat vectors to the kept channels: it pushes `(kept * height * width,)` to
            `(kept, height, width)`.
        kept: Channels that go on; None for half of them, rounded up.

    Raises:
        ShapeError: `inner` makes another shape of its vectors.
        DomainError: No channel is kept, or none leaves.

    Example:
        >>> split = Split((4, 2, 2), Reshape((8,), (2, 2, 2)))
        >>> split.push(State(torch.zeros(3, 16))).x.shape
        torch.Size([3, 4, 2, 2])
    """

    def __init__(self, shape: Shape, inner: Transport, *, kept: int | None = None) -> None:
        super().__init__()
        channels, *grid = shape
        self.shape = (channels, *grid)
        self.kept = (channels + 1) // 2 if kept is None else kept
        if not 0 < self.kept < channels:
            raise DomainError(
                f"Split: of {channels} channels some must go on and some leave, got kept={kept}"
            )
        self.inside = self.kept * math.prod(grid)
        made = inner.out_shape((self.inside,))
        if tuple(made) != (self.kept, *grid):
            raise ShapeError(
                f"Split: inner must push ({self.inside},) to {(self.kept, *grid)}, got {made}; "
                "end its base side in a Reshape to a flat vector"
            )
        self.inner = inner

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        size = math.prod(self.shape)
        expect_trailing("Split.push", "points", state.x, (size,))
        part, rest = state.x.split([self.inside, size - self.inside], dim=-1)
        rest = rest.unflatten(-1, (self.shape[0] - self.kept, *self.shape[1:]))
        state = self.inner.push(state._replace(x=part), context, generator=generator)
        return state._replace(x=torch.cat([state.x, rest], dim=-3))

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        expect_trailing("Split.pull", "points", state.x, self.shape)
        part, rest = state.x.split([self.kept, self.shape[0] - self.kept], dim=-3)
        state = self.inner.pull(state._replace(x=part), context, generator=generator)
        return state._replace(x=torch.cat([state.x, rest.flatten(-3)], dim=-1))

    @property
    def likelihood(self) -> Likelihood:
        return self.inner.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        if tuple(shape) != (math.prod(self.shape),):
            raise ShapeError(
                f"Split: the base side is flat, ({math.prod(self.shape)},), got {tuple(shape)}"
            )
        return self.shape


def multiscale(
    shape: Shape,
    scales: int,
    *,
    steps: Callable[[Shape], Transport],
    prior: Callable[[int, int], nn.Module],
    univariate: UnivariateMap | None = None,
) -> Chain:
    """Chain squeezes, steps and splits from an image down to one flat vector.

    Each scale squeezes by 2 where height and width are even, else it goes on as it is (28, 14, 7,
    7); it runs its steps and, but for the last, splits the channels in half.

    Args:
        shape: Event shape on the data side, (channels, height, width).
        scales: How many scales.
        steps: From the event shape at a scale to the transport that keeps it.
        prior: From the numbers of kept channels k and leaving channels m to a conditioner as in
            `ImageCouplingLayer`, `(*batch, k, h, w)` to `(*batch, m * parameters, h, w)`. At the
            top k is 0 and m all channels, which takes `ConstantMaps`; it serves wherever a prior
            is not to depend on the kept channels.
        univariate: How noise becomes the leaving channels; an affine map is a Gaussian prior.

    Returns:
        A chain that pushes vectors `(channels * height * width,)` to images of `shape`; the deepest
        scale's noise comes first.

    Raises:
        DomainError: Not one scale, or a scale that cannot be split.

    Example:
        >>> from cflow.nets import ConstantMaps
        >>> chain = multiscale((1, 4, 4), 2, steps=lambda shape: Chain(),
        ...                    prior=lambda kept, moves: ConstantMaps(2 * moves))
        >>> chain.push(State(torch.zeros(5, 16))).x.shape
        torch.Size([5, 1, 4, 4])
    """
    if scales < 1 or len(shape) != 3 or min(shape) < 1:
        raise DomainError(
            f"multiscale: needs one scale and a shape (channels, height, width), got "
            f"scales={scales}, shape={tuple(shape)}"
        )
    univariate = AffineMap() if univariate is None else univariate
    channels, height, width = shape
    squeezes = not (height % 2 or width % 2)
    if squeezes:
        channels, height, width = 4 * channels, height // 2, width // 2
    here = (channels, height, width)
    kept = (channels + 1) // 2 if scales > 1 else 0
    if scales > 1 and channels < 2:
        raise DomainError(
            f"multiscale: the scale of shape {here} has one channel and cannot be split; pad the "
            "images to even sides, or take fewer scales"
        )
    if kept:
        deeper = multiscale(
            (kept, height, width), scales - 1, steps=steps, prior=prior, univariate=univariate
        )
        first: Transport = Split(here, deeper)
    else:
        first = Reshape((math.prod(here),), here)
    leaves = (torch.arange(channels) >= kept)[:, None, None]
    noise = ImageCouplingLayer(leaves, prior(kept, channels - kept), univariate)
    return Chain(first, noise, steps(here), *([Squeeze()] if squeezes else []))
