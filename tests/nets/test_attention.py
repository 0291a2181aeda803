"""The causal transformer: what it reads, that token by token is all at once, and its null class."""

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.nets import Cache, CausalTransformer

TOKENS, CHANNELS, OUTPUTS = 5, 2, 3


def network(classes: int = 0, context: int = 0) -> CausalTransformer:
    net = CausalTransformer(
        TOKENS,
        CHANNELS,
        OUTPUTS,
        width=16,
        layers=2,
        heads=4,
        expansion=2,
        classes=classes,
        context=context,
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


def by_steps(net: CausalTransformer, x: Tensor, context: Tensor | None, **options) -> Tensor:
    theta, cache = net.begin(x.shape[:-2], context, **options)
    thetas = [theta]
    for t in range(net.tokens - 1):
        theta, cache = net.step(x[..., t, :], cache)
        thetas.append(theta)
    return torch.stack(thetas, dim=-2)


def test_parameters_of_a_token_read_all_earlier_tokens_and_no_other() -> None:
    net, x = network(), torch.randn(TOKENS, CHANNELS)
    jacobian = torch.autograd.functional.jacobian(net, x)  # theta token, output, x token, channel
    reads = jacobian.abs().amax((1, 3)) > 0
    assert torch.equal(reads, torch.ones(TOKENS, TOKENS).tril(-1).bool())


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)], ids=str)
def test_token_by_token_is_all_at_once(batch: tuple[int, ...]) -> None:
    net, x = network(classes=3), torch.randn(*batch, TOKENS, CHANNELS)
    labels = torch.randint(-1, 3, batch)
    whole = net(x, labels)
    assert whole.shape == (*batch, TOKENS, OUTPUTS)
    assert torch.allclose(by_steps(net, x, labels), whole, rtol=0, atol=1e-12)


def test_temperature_acts_in_both_ways_of_running_and_sample_by_sample() -> None:
    net, x = network(context=2), torch.randn(4, TOKENS, CHANNELS)
    context, temperature = torch.randn(4, 2), torch.tensor([0.5, 1.0, 2.0, 1e6])
    whole = net(x, context, temperature=temperature)
    steps = by_steps(net, x, context, temperature=temperature)
    assert torch.allclose(steps, whole, rtol=0, atol=1e-12)
    plain = net(x, context)
    assert torch.allclose(whole[1], plain[1], rtol=0, atol=1e-12)
    differs = (whole - plain).abs().amax((1, 2)) > 1e-3
    assert differs.tolist() == [True, False, True, True]


def test_passes_do_not_disturb_each_other() -> None:
    net, a, b = network(), torch.randn(TOKENS, CHANNELS), torch.randn(TOKENS, CHANNELS)
    _, first = net.begin(())
    _, second = net.begin(())
    kept: list[Cache] = [first]
    thetas: list[Tensor] = []
    for t in range(TOKENS - 1):
        theta, first = net.step(a[t], first)
        _, second = net.step(b[t], second)
        kept.append(first)
        thetas.append(theta)
    expected = net(a)[1:]
    assert torch.allclose(torch.stack(thetas), expected, rtol=0, atol=1e-12)
    again, _ = net.step(a[1], kept[1])  # an old cache still holds what it held
    assert torch.allclose(again, expected[1], rtol=0, atol=1e-12)


def test_the_null_class_is_no_label_or_a_negative_one() -> None:
    net, x = network(classes=3), torch.randn(4, TOKENS, CHANNELS)
    null = net(x, torch.full((4,), -1))
    assert torch.equal(net(x), null)
    assert torch.equal(net(x, torch.full((4,), -7)), null)
    for label in range(3):
        assert bool((net(x, torch.full((4,), label)) - null).abs().amax(-1).gt(1e-3).all())


def test_low_precision_stays_close_and_far_inputs_stay_finite() -> None:
    net, x = network(), torch.randn(6, TOKENS, CHANNELS)
    exact = net(x)
    low = network_like(net).to(torch.bfloat16)(x)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), exact, rtol=0.1, atol=0.3)
    for scale in (1e4, 1e15):
        assert bool(torch.isfinite(network_like(net).float()(scale * x.float())).all())


def network_like(net: CausalTransformer) -> CausalTransformer:
    other = network()
    other.load_state_dict(net.state_dict())
    return other


def test_it_starts_at_zero() -> None:
    net = CausalTransformer(4, 2, 6, width=8, layers=1, heads=2, classes=2)
    assert bool((net(torch.randn(3, 4, 2), torch.tensor([0, 1, -1])) == 0).all())


def test_bad_arguments_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="heads divide width"):
        CausalTransformer(4, 2, 6, width=10, heads=4)
    with pytest.raises(DomainError, match="sizes must be positive, got tokens=0"):
        CausalTransformer(0, 2, 6)
    with pytest.raises(DomainError, match="either one of some classes or a vector"):
        CausalTransformer(4, 2, 6, classes=3, context=2)
    with pytest.raises(DomainError, match="labels must be integers"):
        network(classes=3)(torch.zeros(2, TOKENS, CHANNELS), torch.zeros(2))
    with pytest.raises(ShapeError, match="context must end in shape"):
        network(context=3)(torch.zeros(2, TOKENS, CHANNELS), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="x must end in shape"):
        network()(torch.zeros(2, TOKENS + 1, CHANNELS))
