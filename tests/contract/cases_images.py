"""Cases of image layers and of multiscale chains; images are 2 x 4 x 4 at most."""

import torch
from case import TransportCase
from torch import nn

from cflow import recipes
from cflow.nets import MLP, ConstantMaps, ConvNet, GatedConvNet
from cflow.transport import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Chain,
    Channelwise,
    Conditioned,
    CouplingLayer,
    ImageCouplingLayer,
    LULinear,
    MovingBatchNorm,
    Permutation,
    Split,
    Squeeze,
    Transport,
    invertible_conv1x1,
    masks,
    multiscale,
)
from cflow.transport.transport import Shape


def channel_coupling(context: int = 0) -> ImageCouplingLayer:
    net = ConvNet(2, 2, context=context, hidden_channels=6)
    return ImageCouplingLayer(masks.channels(3), net, AffineMap(2.0))


def pixel_coupling(context: int = 0) -> ImageCouplingLayer:
    net = GatedConvNet(2, 4, context=context, hidden_channels=6, blocks=1)
    return ImageCouplingLayer(masks.checkerboard(3, 4), net)


def moving_by_channel() -> Transport:
    """In evaluation mode: in training mode every pull moves the statistics on."""
    layer = MovingBatchNorm((2,))
    layer.fit(3 + 2 * torch.randn(50, 2))
    return Channelwise(layer).eval()


def pixelwise(context: int = 0) -> Transport:
    """A coupling of channels by a perceptron at each pixel, with the context of the image."""
    net = MLP(1, 2, context=context, hidden_features=(6,))
    return Channelwise(CouplingLayer([True, False], net))


def small_multiscale(context: int = 0) -> Transport:
    def prior(kept: int, moves: int) -> nn.Module:
        if not kept:
            return ConstantMaps(2 * moves, context=context)
        return ConvNet(kept, 2 * moves, context=context, hidden_channels=4)

    def steps(shape: Shape) -> Transport:
        return Channelwise(Chain(LULinear(shape[0], start="orthogonal"), ActNorm((shape[0],))))

    return multiscale((1, 4, 4), 2, steps=steps, prior=prior)


def small_glow() -> Transport:
    """The continuous part of the recipe: what is before it turns into grey levels."""
    flow = recipes.glow((1, 4, 4), scales=2, steps=1, hidden_channels=4)
    assert isinstance(flow.transport, Chain)
    return flow.transport[:-1]


CASES = [
    TransportCase("image coupling, channels", channel_coupling, event=(3, 2, 2), compiled=False),
    TransportCase(
        "image coupling, channels, context",
        lambda: channel_coupling(2),
        event=(3, 2, 2),
        context=(2,),
        compiled=False,
    ),
    TransportCase("image coupling, checkerboard", pixel_coupling, event=(2, 3, 4), compiled=False),
    TransportCase(
        "image coupling, checkerboard, maps as context",
        lambda: pixel_coupling(1),
        event=(2, 3, 4),
        context=(1, 6, 8),
        compiled=False,
    ),
    TransportCase(
        "image coupling, additive, after a convolution",
        lambda: Chain(
            ImageCouplingLayer(
                masks.channels(2, flip=True), ConvNet(1, 1, hidden_channels=4), AdditiveMap()
            ),
            invertible_conv1x1(2),
        ),
        event=(2, 2, 3),
        compiled=False,
    ),
    TransportCase(
        "channelwise actnorm", lambda: Channelwise(ActNorm((2,))), event=(2, 2, 3), compiled=False
    ),
    TransportCase(
        "channelwise moving batch norm", moving_by_channel, event=(2, 2, 3), compiled=False
    ),
    TransportCase(
        "channelwise permutation",
        lambda: Channelwise(Permutation([2, 0, 1])),
        event=(3, 2, 2),
        compiled=False,
    ),
    TransportCase(
        "channelwise coupling, context",
        lambda: pixelwise(2),
        event=(2, 2, 2),
        context=(2,),
        compiled=False,
    ),
    TransportCase(
        "invertible 1x1 convolution",
        lambda: invertible_conv1x1(3),
        event=(3, 2, 2),
        compiled=False,
        round_trip=1e-9,
    ),
    TransportCase("squeeze", Squeeze, event=(4, 2, 3), compiled=False),
    TransportCase(
        "split",
        lambda: Split(
            (2, 2, 2),
            multiscale(
                (1, 2, 2), 1, steps=lambda shape: Chain(), prior=lambda k, m: ConstantMaps(2 * m)
            ),
        ),
        event=(8,),
        compiled=False,
    ),
    TransportCase("multiscale", small_multiscale, event=(16,), compiled=False, round_trip=1e-9),
    TransportCase(
        "multiscale, context",
        lambda: small_multiscale(2),
        event=(16,),
        context=(2,),
        compiled=False,
        round_trip=1e-9,
    ),
    TransportCase(
        "multiscale, maps as context",
        lambda: small_multiscale(1),
        event=(16,),
        context=(1, 4, 4),
        compiled=False,
        round_trip=1e-9,
    ),
    TransportCase(
        "conditioned",
        lambda: Conditioned(pixelwise(2), nn.Linear(3, 2)),
        event=(2, 2, 2),
        context=(3,),
        compiled=False,
    ),
    TransportCase("recipe glow", small_glow, event=(16,), round_trip=1e-8, jacobian=1e-8),
]
