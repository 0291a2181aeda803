"""Transformer layers: order, the cached pull against recomputation, gradients, precision."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.nets import CausalTransformer
from cflow.transport import AdditiveMap, AffineMap, Inverse, TransformerLayer, UnivariateMap

TOKENS, CHANNELS = 4, 2
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reversed"])
maps = pytest.mark.parametrize("univariate", [AffineMap(2.0), AdditiveMap()], ids=str)


def build(
    *, reverse: bool = False, univariate: UnivariateMap | None = None, spread: float = 0.4
) -> TransformerLayer:
    univariate = AffineMap(2.0) if univariate is None else univariate
    outputs = CHANNELS * univariate.parameters
    net = CausalTransformer(
        TOKENS, CHANNELS, outputs, width=16, layers=2, heads=2, expansion=2, classes=3
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=spread)
    return TransformerLayer(net, univariate, reverse=reverse)


def draw(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, TOKENS, CHANNELS), torch.randint(-1, 3, batch)


def recomputed(layer: TransformerLayer, y: Tensor, labels: Tensor) -> Tensor:
    """Pull by running the whole network again for every token."""
    y = y.flip(-2) if layer.reverse else y
    known: list[Tensor] = []
    for t in range(TOKENS):
        sofar = torch.stack([*known, *[torch.zeros_like(y[..., 0, :])] * (TOKENS - t)], dim=-2)
        theta = layer.network(sofar, labels)[..., t, :]
        theta = theta.unflatten(-1, (CHANNELS, layer.univariate.parameters))
        known.append(layer.univariate.push(y[..., t, :], theta)[0])
    return torch.stack(known[::-1] if layer.reverse else known, dim=-2)


@directions
def test_a_token_reads_only_its_past_and_its_channels_do_not_mix(reverse: bool) -> None:
    layer, (x, labels) = build(reverse=reverse), draw()
    past = torch.ones(TOKENS, TOKENS).tril(-1).bool()
    past = past.flip(0, 1) if reverse else past
    y = layer.push(State(x), labels).x
    for method, points in ((layer.push, x), (layer.pull, y)):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, method=method: method(State(z), labels).x, points
        )
        links = jacobian.abs().amax((1, 3)) > 1e-14
        assert torch.equal(links, past | torch.eye(TOKENS).bool())
        own = torch.stack([jacobian[t, :, t, :] for t in range(TOKENS)])
        assert bool((own[:, ~torch.eye(CHANNELS).bool()] == 0).all())


@directions
@maps
def test_the_cached_pull_is_recomputation_token_by_token(
    reverse: bool, univariate: UnivariateMap
) -> None:
    layer, (y, labels) = build(reverse=reverse, univariate=univariate), draw(6)
    pulled = layer.pull(State(y), labels).x
    assert torch.allclose(pulled, recomputed(layer, y, labels), rtol=0, atol=1e-12)
    assert torch.allclose(layer.push(State(pulled), labels).x, y, rtol=0, atol=1e-12)


def test_a_pull_takes_each_token_through_the_network_once() -> None:
    layer, (y, labels) = build(), draw(6)
    seen: list[int] = []
    layer.network.blocks[0].mix.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[-2])
    )
    layer.pull(State(y), labels)
    assert seen == [1] * TOKENS
    seen.clear()
    layer.push(State(y), labels)
    assert seen == [TOKENS]


@directions
def test_ladj_with_labels_is_the_log_determinant_and_a_sum_over_entries(reverse: bool) -> None:
    layer, (x, labels) = build(reverse=reverse), draw(5)
    y = layer.push(State(x), labels).x
    for method, points in ((layer.push, x), (layer.pull, y)):
        ladj = method(tracked(points, event_dim=2), labels).ladj
        assert ladj is not None
        for k in range(5):
            jacobian = torch.autograd.functional.jacobian(
                lambda z, method=method, k=k: method(State(z), labels[k]).x, points[k]
            )
            expected = torch.linalg.slogdet(jacobian.reshape(8, 8)).logabsdet
            assert torch.allclose(ladj[k], expected, rtol=0, atol=1e-10)
        assert bool((ladj.abs() > 1e-2).all())


@directions
def test_gradients_through_the_cached_pull_are_those_of_the_unrolled_one(reverse: bool) -> None:
    layer, (y, labels) = build(reverse=reverse), draw(3)
    inputs = [y.requires_grad_(), *layer.parameters()]
    weights = torch.randn(3, TOKENS, CHANNELS)
    cached = torch.autograd.grad((layer.pull(State(y), labels).x * weights).sum(), inputs)
    unrolled = torch.autograd.grad((recomputed(layer, y, labels) * weights).sum(), inputs)
    for ours, theirs in zip(cached, unrolled, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    assert torch.autograd.gradcheck(lambda z: layer.pull(State(z), labels[:1]).x, y[:1])


def test_pulls_at_one_time_do_not_disturb_each_other() -> None:
    layer = build()
    points = [draw(3) for _ in range(8)]
    alone = [layer.pull(State(y), labels).x for y, labels in points]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: layer.pull(State(p[0]), p[1]).x, points))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4], ids=str)
def test_far_points_stay_finite_and_come_back_in_float32(scale: float) -> None:
    layer, (x, labels) = build().float(), draw(64)
    x = scale * x.float()
    there = layer.push(tracked(x, event_dim=2), labels)
    back = layer.pull(there, labels)
    assert there.ladj is not None
    assert bool(torch.isfinite(there.x).all() & torch.isfinite(there.ladj).all())
    assert bool((there.ladj.abs() <= 2.0 * TOKENS * CHANNELS).all())  # the bound of each entry
    assert torch.allclose(back.x, x, rtol=1e-3, atol=1e-4 * max(scale, 1))


def test_a_network_in_bfloat16_keeps_density_arithmetic_wide() -> None:
    layer, (x, labels) = build(spread=0.2), draw(6)
    exact = layer.push(tracked(x, event_dim=2), labels)
    layer.network.to(torch.bfloat16)
    low = layer.push(tracked(x.float(), event_dim=2), labels)
    assert low.x.dtype == torch.float32
    assert low.ladj is not None
    assert low.ladj.dtype == torch.float32
    assert exact.ladj is not None
    assert torch.allclose(low.ladj.double(), exact.ladj, rtol=0.05, atol=0.1)
    back = layer.pull(low, labels)
    assert bool(torch.isfinite(back.x).all())


@pytest.mark.parametrize("fast", ["density", "sample"])
def test_log_prob_with_labels_goes_through_vmap_and_jacrev(fast: str) -> None:
    layer, (x, labels) = build(), draw(5)
    flow = Flow(
        Gaussian((TOKENS, CHANNELS)),
        Inverse(layer) if fast == "density" else layer,
        context_shape=(),
    )
    value = flow.log_prob(x, labels)
    one = lambda a, c: flow.log_prob(a[None], c[None])[0]
    single = torch.func.vmap(one)(x, labels)
    assert torch.allclose(single, value, rtol=0, atol=1e-10)
    score = torch.func.vmap(torch.func.jacrev(one))(x, labels)
    points = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(points, labels).sum(), points)
    assert torch.allclose(score, expected, rtol=0, atol=1e-9)
    _, slope = torch.func.jvp(lambda a: flow.log_prob(a, labels), (x,), (torch.ones_like(x),))
    assert torch.allclose(slope, expected.sum((-2, -1)), rtol=0, atol=1e-9)


def test_the_label_decides_every_token() -> None:
    layer, (x, _) = build(), draw(3)
    pushed = [layer.push(State(x), torch.full((3,), label)).x for label in (-1, 0, 1, 2)]
    for a in range(4):
        for b in range(a):
            assert bool((pushed[a] - pushed[b]).abs().amax(-1).gt(1e-4).all())


def test_it_starts_as_the_identity() -> None:
    x = torch.randn(3, TOKENS, CHANNELS)
    layer = TransformerLayer(CausalTransformer(TOKENS, CHANNELS, 2 * CHANNELS, width=8))
    assert torch.equal(layer.push(State(x)).x, x)
    assert torch.equal(layer.pull(State(x)).x, x)


def test_bad_arguments_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="needs 4 outputs for each token of 2 channels"):
        TransformerLayer(CausalTransformer(TOKENS, CHANNELS, 3, width=8))
    with pytest.raises(ShapeError, match=r"TransformerLayer.pull: x must end in shape \(4, 2\)"):
        build().pull(State(torch.zeros(3, 2, 4)), torch.zeros(3, dtype=torch.long))
