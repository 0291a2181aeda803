"""Guidance: the mixture it promises, position by position, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cflow import State, tracked
from cflow.errors import DomainError
from cflow.nets import CausalTransformer
from cflow.transport import (
    AdditiveMap,
    AffineMap,
    Chain,
    Guidance,
    GuidedTransport,
    Inverse,
    LabelDropout,
    Permutation,
    TransformerLayer,
    UnivariateMap,
)

TOKENS, CHANNELS = 4, 2


def build(
    classes: int = 3, *, reverse: bool = False, univariate: UnivariateMap | None = None
) -> TransformerLayer:
    univariate = AffineMap() if univariate is None else univariate
    outputs = CHANNELS * univariate.parameters
    net = CausalTransformer(
        TOKENS, CHANNELS, outputs, width=16, layers=2, heads=2, expansion=2, classes=classes
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return TransformerLayer(net, univariate, reverse=reverse)


def draw(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, TOKENS, CHANNELS), torch.randint(0, 3, batch)


def by_hand(layer: TransformerLayer, y: Tensor, labels: Tensor | None, g: Guidance) -> Tensor:
    """Sample token by token, each time with two whole passes of the plain network."""
    net, parameters = layer.network, layer.univariate.parameters
    assert isinstance(net, CausalTransformer)
    y = y.flip(-2) if layer.reverse else y
    null = None if labels is None else torch.full_like(labels, -1)
    cold = torch.tensor(g.temperature)
    weak_cold = torch.tensor(g.temperature * g.weak_temperature)
    known: list[Tensor] = []
    for t in range(TOKENS):
        x = torch.stack([*known, *[torch.zeros_like(y[..., 0, :])] * (TOKENS - t)], dim=-2)
        strong = net(x, labels, temperature=cold)[..., t, :].unflatten(-1, (CHANNELS, parameters))
        weak = net(x, null, temperature=weak_cold)[..., t, :].unflatten(-1, (CHANNELS, parameters))
        weight = g.weight * (t / (TOKENS - 1) if g.anneal else 1)
        theta = (1 + weight) * strong - weight * weak
        if g.of != "both" and parameters == 2:
            kept = 0 if g.of == "shift" else 1  # theta is (raw log-scale, shift)
            theta[..., kept] = strong[..., kept]
        known.append(layer.univariate.push(y[..., t, :], theta)[0])
    return torch.stack(known[::-1] if layer.reverse else known, dim=-2)


OPTIONS: list[dict[str, Any]] = [
    {"weight": 2.0},
    {"weight": 2.0, "anneal": False},
    {"weight": 1.5, "of": "shift"},
    {"weight": 1.5, "of": "scale", "anneal": False},
    {"weight": 0.7, "temperature": 0.5},
    {"weight": 0.7, "weak_temperature": 3.0},
    {"weight": 0.7, "temperature": 0.5, "weak_temperature": 3.0, "anneal": False},
    {"weight": 0.0, "temperature": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reversed"])
def test_guided_samples_follow_the_formula(options: dict[str, Any], reverse: bool) -> None:
    layer, (y, labels), guidance = build(reverse=reverse), draw(5), Guidance(**options)
    sampled = GuidedTransport(Inverse(layer), guidance).push(State(y), labels).x
    assert torch.allclose(sampled, by_hand(layer, y, labels, guidance), rtol=0, atol=1e-11)
    plain = layer.pull(State(y), labels).x
    assert bool((sampled - plain).abs().amax((-2, -1)).gt(1e-4).all())


def test_a_volume_preserving_layer_is_guided_in_its_shift() -> None:
    layer, (y, labels) = build(univariate=AdditiveMap()), draw(5)
    for of in ("both", "shift"):
        guidance = Guidance(2.0, of=of)
        sampled = GuidedTransport(Inverse(layer), guidance).push(State(y), labels).x
        assert torch.allclose(sampled, by_hand(layer, y, labels, guidance), rtol=0, atol=1e-11)
    with pytest.raises(DomainError, match="has no scale of its own"):
        GuidedTransport(Inverse(layer), Guidance(2.0, of="scale"))


def test_without_classes_attention_temperature_guides() -> None:
    layer, (y, _) = build(classes=0), draw(5)
    guidance = Guidance(1.5, weak_temperature=4.0)
    sampled = GuidedTransport(Inverse(layer), guidance).push(State(y)).x
    assert torch.allclose(sampled, by_hand(layer, y, None, guidance), rtol=0, atol=1e-11)
    with pytest.raises(DomainError, match="without classes there is no weak version"):
        GuidedTransport(Inverse(layer), Guidance(1.5, temperature=0.5))


def test_a_vector_context_stays_in_both_versions() -> None:
    net = CausalTransformer(
        TOKENS, CHANNELS, 2 * CHANNELS, width=16, layers=2, heads=2, expansion=2, context=3
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    layer, context, (x, _) = TransformerLayer(net), torch.randn(5, 3), draw(5)
    guided = GuidedTransport(layer, Guidance(2.0, anneal=False, weak_temperature=4.0))
    strong, weak = net(x, context), net(x, context, temperature=torch.tensor(4.0))
    expected, _ = layer.univariate.pull(x, (3 * strong - 2 * weak).unflatten(-1, (CHANNELS, 2)))
    assert torch.allclose(guided.push(State(x), context).x, expected, rtol=0, atol=1e-11)


def test_a_layer_that_samples_in_one_pass_is_guided_in_one_pass() -> None:
    layer, (x, labels) = build(), draw(5)
    guided = GuidedTransport(layer, Guidance(2.0, anneal=False))
    theta, weak = layer.network(x, labels), layer.network(x, torch.full_like(labels, -1))
    mixed = (3 * theta - 2 * weak).unflatten(-1, (CHANNELS, 2))
    expected, _ = layer.univariate.pull(x, mixed)
    assert torch.allclose(guided.push(State(x), labels).x, expected, rtol=0, atol=1e-11)


def test_no_weight_is_plain_sampling() -> None:
    layer, (y, labels) = build(), draw(5)
    plain = layer.pull(State(y), labels).x
    assert torch.equal(
        GuidedTransport(Inverse(layer), Guidance(0.0)).push(State(y), labels).x, plain
    )
    slight = GuidedTransport(Inverse(layer), Guidance(1e-9)).push(State(y), labels).x
    assert torch.allclose(slight, plain, rtol=0, atol=1e-7)


def test_a_point_without_a_label_is_not_guided_and_the_first_token_of_an_annealed_one() -> None:
    layer, (y, labels) = build(), draw(5)
    labels[2] = -1
    plain = layer.pull(State(y), labels).x
    sampled = GuidedTransport(Inverse(layer), Guidance(3.0)).push(State(y), labels).x
    assert torch.allclose(sampled[2], plain[2], rtol=0, atol=1e-11)
    assert torch.allclose(sampled[:, 0], plain[:, 0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)], ids=str)
def test_any_batch_axes_and_no_batch_mates(batch: tuple[int, ...]) -> None:
    layer, (y, labels) = build(), draw(*batch)
    guided = GuidedTransport(Inverse(layer), Guidance(1.0, temperature=0.8))
    sampled = guided.push(State(y), labels).x
    flat = guided.push(State(y.reshape(-1, TOKENS, CHANNELS)), labels.reshape(-1)).x
    assert torch.allclose(sampled.reshape(flat.shape), flat, rtol=0, atol=1e-12)


def test_it_reaches_layers_at_any_depth_and_shares_them() -> None:
    first, second = build(), build(reverse=True)
    chain = Chain(LabelDropout(Chain(Inverse(first), Chain(second))), Permutation([1, 0])).eval()
    guided = GuidedTransport(chain, Guidance(1.5))
    y, labels = draw(5)
    one = GuidedTransport(Inverse(first), Guidance(1.5)).push(State(y), labels)
    two = GuidedTransport(second, Guidance(1.5)).push(one, labels).x.flip(-1)
    assert torch.allclose(guided.push(State(y), labels).x, two, rtol=0, atol=1e-11)
    owned = {id(p) for p in chain.parameters()}
    assert {id(p) for p in guided.parameters()} == owned
    assert not any(part.training for part in chain.modules())
    assert len(guided.state_dict()) == len(chain.state_dict())


def test_gradients_pass_through_guided_samples() -> None:
    layer, (y, labels), guidance = build(), draw(3), Guidance(2.0)
    parameters = list(layer.parameters())
    ours = torch.autograd.grad(
        GuidedTransport(Inverse(layer), guidance).push(State(y), labels).x.square().sum(),
        parameters,
    )
    theirs = torch.autograd.grad(by_hand(layer, y, labels, guidance).square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)


def test_it_is_a_sampler_and_nothing_else() -> None:
    layer, (y, labels) = build(), draw(3)
    guided = GuidedTransport(Inverse(layer), Guidance(2.0))
    with pytest.raises(DomainError, match=r"GuidedTransport.push: guided samples follow no dens"):
        guided.push(tracked(y, event_dim=2), labels)
    with pytest.raises(DomainError, match=r"GuidedTransport.pull: guided samples follow no dens"):
        guided.pull(State(y), labels)
    with pytest.raises(DomainError, match="ask the flow without guidance for log_prob"):
        _ = guided.likelihood


def test_bad_guidance_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="found none in Permutation"):
        GuidedTransport(Permutation([1, 0]), Guidance())
    guided = GuidedTransport(build(), Guidance())
    with pytest.raises(DomainError, match="start from the flow without guidance"):
        GuidedTransport(guided.transport, Guidance())
    with pytest.raises(DomainError, match="weight must be 0 or positive"):
        Guidance(-1.0)
    with pytest.raises(DomainError, match="weak_temperature must be positive"):
        Guidance(weak_temperature=0.0)
