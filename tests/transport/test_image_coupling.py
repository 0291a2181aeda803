"""Couplings of images: which entries depend on which, by the sparsity of an autograd Jacobian."""

import pytest
import torch
from torch import Tensor

from cflow import State, tracked
from cflow.errors import DomainError, ShapeError
from cflow.nets import ConvNet, GatedConvNet
from cflow.transport import AffineMap, ImageCouplingLayer, masks

SHAPE = (3, 4, 5)


def layer(mask: Tensor, *, gated: bool = False, parameters: int = 2) -> ImageCouplingLayer:
    if mask.shape[1:] == (1, 1):
        moves = int(mask.sum())
        net = ConvNet(3 - moves, parameters * moves, hidden_channels=8, zero_last=False)
    elif gated:
        net = GatedConvNet(3, parameters * 3, hidden_channels=8, zero_last=False)
    else:
        net = ConvNet(3, parameters * 3, hidden_channels=8, zero_last=False)
    return ImageCouplingLayer(mask, net, AffineMap(2.0))


MASKS = {
    "channels": masks.channels(3),
    "channels, flipped": masks.channels(3, flip=True),
    "checkerboard": masks.checkerboard(4, 5),
    "checkerboard, flipped": masks.checkerboard(4, 5, flip=True),
    "any entries": torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5,
}


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_moved_entries_depend_on_themselves_and_on_frozen_ones_alone(
    mask: Tensor, direction: str
) -> None:
    coupling, x = layer(mask), torch.randn(SHAPE)
    move = lambda z: getattr(coupling, direction)(State(z)).x
    full = torch.autograd.functional.jacobian(move, x).reshape(60, 60)
    moved = mask.expand(SHAPE).flatten()
    eye = torch.eye(60, dtype=torch.bool)
    assert torch.equal(full[~moved], eye[~moved].to(full.dtype))  # frozen: left as they are
    among = full[moved][:, moved]
    assert bool((among[~eye[moved][:, moved]] == 0).all())  # no moved entry sees another
    assert bool((full[moved][:, ~moved] != 0).any(1).all())  # each sees some frozen one
    inside = getattr(coupling, direction)(tracked(x, event_dim=3))
    slopes = full.diagonal()[moved].abs().log().sum()
    assert torch.allclose(inside.ladj, slopes, rtol=0, atol=1e-11)


def test_a_checkerboard_sees_the_pixels_that_its_convolutions_reach() -> None:
    """Two 3x3 convolutions reach two pixels far; of those the frozen ones steer."""
    mask = masks.checkerboard(9, 9)
    net = ConvNet(1, 2, hidden_channels=8, zero_last=False)
    coupling, x = ImageCouplingLayer(mask, net), torch.randn(1, 9, 9)
    row = torch.autograd.functional.jacobian(lambda z: coupling.push(State(z)).x[0, 4, 5], x)[0]
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[2:7, 3:8] = True
    expected = near & ~mask[0]
    expected[4, 5] = True
    assert torch.equal(row != 0, expected)


def test_a_gated_network_starts_at_zero_and_may_steer_too() -> None:
    net = GatedConvNet(3, 6, hidden_channels=8)
    coupling, x = ImageCouplingLayer(masks.checkerboard(4, 5), net), torch.randn(2, *SHAPE)
    assert torch.equal(coupling.push(State(x)).x, x)
    assert not torch.equal(layer(masks.checkerboard(4, 5), gated=True).push(State(x)).x, x)


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="with 0 true"):
        ImageCouplingLayer(torch.zeros(3, 1, 1, dtype=torch.bool), ConvNet(3, 2))
    with pytest.raises(DomainError, match=r"moved must be flags \(channels, height, width\)"):
        ImageCouplingLayer(masks.halves(3), ConvNet(3, 2))
    coupling = layer(masks.channels(3))
    with pytest.raises(ShapeError, match=r"the mask \(3, 1, 1\) spans, got \(2, 4, 4, 4\)"):
        coupling.push(State(torch.zeros(2, 4, 4, 4)))
    with pytest.raises(ShapeError, match=r"the mask \(1, 4, 5\) spans"):
        layer(masks.checkerboard(4, 5)).push(State(torch.zeros(3, 4, 4)))
    short = ImageCouplingLayer(masks.channels(3), ConvNet(2, 3, hidden_channels=4))
    with pytest.raises(ShapeError, match=r"must return maps ending in \(2, 4, 4\)"):
        short.push(State(torch.zeros(3, 4, 4)))
