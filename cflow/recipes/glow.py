"""Glow: integer images by multiscale affine couplings, 1x1 convolutions and ActNorm.

noise (D,) -- scales: split, prior, steps, squeeze --> logits --sigmoid--> [0, 1] --floor--> levels

Source: Kingma and Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions,
arXiv 1807.03039.
"""

import math
from collections.abc import Sequence

from torch import nn

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import ConstantMaps, ConvNet, OneHot
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    ActNorm,
    AffineMap,
    Chain,
    Channelwise,
    Conditioned,
    Dequantize,
    ImageCouplingLayer,
    Inverse,
    Logit,
    LULinear,
    Reshape,
    Transport,
    masks,
    multiscale,
)

__all__ = ["glow"]


@recipe
def glow(
    shape: Sequence[int],
    classes: int = 0,
    *,
    context_shape: Sequence[int] | None = None,
    scales: int = 3,
    steps: int = 8,
    hidden_channels: int = 512,
    bound: float = 3.0,
    levels: int = 256,
    alpha: float = 0.05,
    fast: Fast = "density",
) -> Flow:
    """Build a Glow on integer images, densities in the images' own units.

    Each scale squeezes 2 x 2 pixels into channels where the sides are even (28, 14, 7, 7), runs its
    steps, and gives half of the channels to a Gaussian whose mean and scale come from the other
    half; the last scale has a Gaussian learned by channel and class. The likelihood is the uniform
    dequantisation bound. Call `flow.initialize(images)` with some hundred images
    before training, which sets the ActNorms. Couplings start as the identity, 1x1 convolutions as
    random orthogonal matrices.

    Temperature T is a scaling of the base noise: `flow.push(T * flow.base.sample((n,)), labels)`.

    Args:
        shape: Shape of one image, (channels, height, width), or (height, width) for grey ones.
        classes: Number of classes; their integer labels `(*batch,)` are the context. 0 for none.
        context_shape: Shape of any other context: (n,) for vectors, (n, height, width) for maps, on
            the image's grid or a finer one that it divides; None for none.
        scales: Number of scales.
        steps: Steps at each scale, of coupling, 1x1 convolution and ActNorm.
        hidden_channels: Channels of the coupling networks, of three convolutions each.
        bound: Largest absolute log-scale of one coupling layer or prior.
        levels: Number of grey levels; images hold integers 0 .. levels-1.
        alpha: Margin of the logit.
        fast: Which way the 1x1 convolutions take a plain product instead of their inverse; all
            else costs the same both ways.

    Raises:
        DomainError: The shape is not that of images, or has too few channels for its scales; or
            both kinds of context are asked for.

    Example:
        >>> flow = glow((4, 4), scales=2, steps=1, hidden_channels=8, levels=17)
        >>> flow.sample(3).shape
        torch.Size([3, 4, 4])
    """
    full = (1, *shape) if len(shape) == 2 else tuple(shape)
    if len(full) != 3 or min(full) < 1 or steps < 0 or classes < 0:
        raise DomainError(
            "glow: needs a shape (channels, height, width) or (height, width), and counts that are "
            f"not negative, got shape={tuple(shape)}, classes={classes}, steps={steps}"
        )
    if context_shape is not None and (classes or len(context_shape) not in (1, 3)):
        raise DomainError(
            "glow: context_shape must be (n,) or (n, height, width), and not go with classes, got "
            f"context_shape={tuple(context_shape)}, classes={classes}"
        )
    univariate = AffineMap(bound)
    context = context_shape[0] if context_shape else classes

    def conditioner(kept: int, moves: int) -> nn.Module:
        outputs = moves * univariate.parameters
        if not kept:
            return ConstantMaps(outputs, context=context)
        return ConvNet(kept, outputs, context=context, hidden_channels=hidden_channels)

    def scale(here: tuple[int, ...]) -> Transport:
        channels = here[0]
        if steps and channels < 2:
            raise DomainError(
                f"glow: the scale of shape {here} has one channel, which cannot be split; pad the "
                "images to even sides"
            )
        parts: list[Transport] = []
        for _ in range(steps):
            moved = masks.channels(channels)
            moves = int(moved.sum())
            linear = LULinear(channels, start="orthogonal", bias=False)
            parts += [
                ImageCouplingLayer(moved, conditioner(channels - moves, moves), univariate),
                Channelwise(Chain(oriented(linear, fast), ActNorm((channels,)))),
            ]
        return Chain(*parts)

    images = multiscale(full, scales, steps=scale, prior=conditioner, univariate=univariate)
    grey = [Reshape(full, tuple(shape))] if len(shape) == 2 else []
    transport: Transport = Chain(images, *grey, Inverse(Logit(alpha)), Dequantize(levels))
    if classes:
        transport = Conditioned(transport, OneHot(classes))
        context_shape = ()
    return Flow(Gaussian(math.prod(full)), transport, context_shape=context_shape)
