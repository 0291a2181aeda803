"""Squeeze, split and the chain of scales: shapes, what goes where, and conditional priors."""

import pytest
import torch

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.nets import ConstantMaps, ConvNet
from cflow.transport import (
    ActNorm,
    Chain,
    Channelwise,
    ImageCouplingLayer,
    Inverse,
    Reshape,
    Split,
    Squeeze,
    multiscale,
)


def prior(kept: int, moves: int):
    if not kept:
        return ConstantMaps(2 * moves)
    return ConvNet(kept, 2 * moves, hidden_channels=6, zero_last=False)


def norms(shape: tuple[int, ...]) -> Channelwise:
    return Channelwise(ActNorm((shape[0],)))


def test_squeeze_folds_each_block_into_neighbouring_channels() -> None:
    y = torch.arange(16.0).reshape(1, 4, 4)
    x = Squeeze().pull(tracked(y, event_dim=3))
    assert x.x[:, 0, 0].tolist() == [0, 1, 4, 5]
    assert x.x[:, 1, 0].tolist() == [8, 9, 12, 13]
    assert torch.equal(Squeeze().push(x).x, y)
    assert Squeeze(3).pull(State(torch.zeros(2, 5, 2, 6, 9))).x.shape == (2, 5, 18, 2, 3)
    with pytest.raises(ShapeError, match=r"multiples of 2, got \(1, 3, 4\)"):
        Squeeze().pull(State(torch.zeros(1, 3, 4)))
    with pytest.raises(ShapeError, match=r"multiple of 4 channels, got \(6, 2, 2\)"):
        Squeeze().out_shape((6, 2, 2))
    with pytest.raises(DomainError, match="factor must be at least 1"):
        Squeeze(0)


def test_a_split_sends_the_first_channels_on_and_leaves_the_others() -> None:
    split = Split((3, 2, 2), Chain(Reshape((8,), (2, 2, 2)), norms((2,))), kept=2)
    split.inner[1].transport.log_scale.data.fill_(1.0)
    y = torch.randn(5, 3, 2, 2)
    state = split.pull(tracked(y, event_dim=3))
    assert torch.allclose(state.x[:, :8], y[:, :2].flatten(1) * torch.tensor(-1.0).exp())
    assert torch.equal(state.x[:, 8:], y[:, 2:].flatten(1))
    assert torch.allclose(state.ladj, torch.full((5,), -8.0))
    assert split.out_shape((12,)) == (3, 2, 2)
    with pytest.raises(ShapeError, match=r"the base side is flat, \(12,\), got \(3, 2, 2\)"):
        split.out_shape((3, 2, 2))
    with pytest.raises(ShapeError, match=r"inner must push \(8,\) to \(2, 2, 2\), got \(8,\)"):
        Split((3, 2, 2), Chain())
    with pytest.raises(DomainError, match="some must go on and some leave, got kept=3"):
        Split((3, 2, 2), Chain(), kept=3)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (2, 3, 5), (1, 12, 4)], ids=str)
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_any_grid_ends_in_one_flat_vector(shape: tuple[int, ...], scales: int) -> None:
    if shape == (2, 3, 5) and scales == 3:
        with pytest.raises(DomainError, match=r"shape \(1, 3, 5\) has one channel"):
            multiscale(shape, scales, steps=norms, prior=prior)
        return
    chain = multiscale(shape, scales, steps=norms, prior=prior)
    size = torch.Size(shape).numel()
    flow = Flow(Gaussian(size), chain)
    assert flow.event_shape == shape
    y = torch.randn(2, *shape)
    assert torch.allclose(flow.push(flow.pull(y)), y, rtol=0, atol=1e-12)


def test_leaving_channels_are_gaussian_given_the_kept_ones() -> None:
    """log p splits into the deeper scale's and a normal law with mean and scale from the net."""
    chain = multiscale((1, 4, 4), 2, steps=lambda shape: Chain(), prior=prior)
    flow, y = Flow(Gaussian(16), chain), torch.randn(6, 1, 4, 4)
    split, noise = chain[0], chain[1]
    assert isinstance(split, Split)
    assert isinstance(noise, ImageCouplingLayer)
    images = Squeeze().pull(State(y)).x
    kept, left = images[:, :2], images[:, 2:]
    raw, mean = noise.conditioner(kept, None).unflatten(1, (2, 2)).unbind(2)
    law = torch.distributions.Normal(mean, (3 * torch.tanh(raw / 3)).exp())
    deeper = Flow(Gaussian(8), split.inner)
    expected = deeper.log_prob(kept) + law.log_prob(left).flatten(1).sum(1)
    assert torch.allclose(flow.log_prob(y), expected, rtol=0, atol=1e-10)
    # Base noise scaled to nothing leaves the means: temperature is a factor of the noise.
    calm = flow.push(torch.zeros(16))
    images = Squeeze().pull(State(calm)).x
    means = noise.conditioner(images[:2], None).unflatten(0, (2, 2))[:, 1]
    assert torch.allclose(images[2:], means, rtol=0, atol=1e-12)


def test_initialise_reaches_every_scale() -> None:
    chain = multiscale((1, 8, 8), 3, steps=norms, prior=prior)
    flow, y = Flow(Gaussian(64), chain), 5 + 2 * torch.randn(200, 1, 8, 8)
    flow.initialize(y)
    layers = [m for m in chain.modules() if isinstance(m, ActNorm)]
    assert len(layers) == 3
    assert all(bool(m.fitted) and not m.fitting for m in layers)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.initialize(10 * y)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_what_cannot_be_reached_is_refused_in_words() -> None:
    steps = lambda shape: Inverse(norms(shape))
    chain = multiscale((1, 4, 4), 2, steps=steps, prior=prior)
    with pytest.raises(DomainError, match="inside Inverse cannot be set"):
        Flow(Gaussian(16), chain).initialize(torch.randn(5, 1, 4, 4))
    with pytest.raises(DomainError, match="needs one scale"):
        multiscale((1, 4, 4), 0, steps=norms, prior=prior)
