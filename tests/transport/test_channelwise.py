"""Vector layers at every pixel: against convolutions, and log-determinants times pixels."""

import pytest
import torch

from cflow import State, tracked
from cflow.errors import DomainError, ShapeError
from cflow.nets import MLP
from cflow.transport import (
    ActNorm,
    Affine,
    AffineMap,
    Chain,
    Channelwise,
    CouplingLayer,
    Dequantize,
    LULinear,
    Permutation,
    initialize,
    invertible_conv1x1,
)


def test_a_1x1_convolution_is_torch_s_and_counts_every_pixel() -> None:
    layer, x = invertible_conv1x1(3), torch.randn(5, 3, 4, 6)
    inner = layer.transport
    assert isinstance(inner, LULinear)
    torch.nn.init.normal_(inner.factors, std=0.5)
    weight = inner.matrix(torch.float64)
    state = layer.push(tracked(x, event_dim=3))
    expected = torch.nn.functional.conv2d(x, weight[..., None, None])
    assert torch.allclose(state.x, expected, rtol=0, atol=1e-12)
    volume = 24 * torch.linalg.slogdet(weight).logabsdet
    assert torch.allclose(state.ladj, volume.expand(5), rtol=0, atol=1e-11)
    back = layer.pull(state)
    assert torch.allclose(back.x, x, rtol=0, atol=1e-11)
    assert torch.allclose(back.ladj, torch.zeros(5), rtol=0, atol=1e-11)


def test_ladjs_of_every_form_are_summed_over_pixels() -> None:
    """One for all pixels, one for each entry, one for each moved entry."""
    x = torch.randn(2, 2, 3, 3)
    scale = torch.tensor([2.0, 0.5])
    assert Channelwise(Permutation([1, 0])).push(tracked(x, event_dim=3)).ladj.tolist() == [0, 0]
    ladj = Channelwise(Affine(scale**2)).push(tracked(x, event_dim=3)).ladj
    assert torch.allclose(ladj, 9 * (scale**2).log().sum().expand(2))
    net = MLP(1, 2)
    coupling = CouplingLayer([True, False], net, AffineMap(2.0))
    ladj = Channelwise(coupling).push(tracked(x, event_dim=3)).ladj
    raw = net(x.movedim(1, -1)[..., 1:])[..., 0]
    assert torch.allclose(ladj, (2 * torch.tanh(raw / 2)).flatten(1).sum(1))


def test_actnorm_by_channel_shares_its_statistics_over_pixels() -> None:
    y = torch.tensor([5.0, -1.0])[:, None, None] + 3 * torch.randn(50, 2, 4, 4)
    layer = Channelwise(ActNorm((2,)))
    initialize(layer, y)
    x = layer.pull(State(y)).x.movedim(1, 0).flatten(1)
    assert torch.allclose(x.mean(1), torch.zeros(2), atol=1e-12)
    assert torch.allclose(x.std(1), torch.ones(2))
    before = layer.transport.state_dict()["shift"].clone()
    initialize(layer, 10 * y)
    assert torch.equal(layer.transport.state_dict()["shift"], before)


def test_shapes_and_errors_in_words() -> None:
    layer = Channelwise(Chain(Permutation([1, 0]), ActNorm((2,))))
    assert layer.out_shape((2, 5, 6)) == (2, 5, 6)
    with pytest.raises(ShapeError, match=r"images have shape \(channels, height, width\)"):
        layer.out_shape((2, 5))
    with pytest.raises(ShapeError, match=r"Channelwise.push: points must end in"):
        layer.push(State(torch.zeros(2, 5)))
    with pytest.raises(DomainError, match="other than a stochastic one, got Dequantize"):
        Channelwise(Dequantize())
