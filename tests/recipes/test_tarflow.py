"""TarFlow: saved whole, conditioned, cheap on the side asked for, a density that sums to one."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cflow import Flow, load, nll
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.recipes import tarflow
from cflow.transport import GaussianNoise

SMALL: dict[str, Any] = {"patch": 2, "width": 16, "blocks": 2, "layers": 1, "heads": 2}
BUILDS: dict[str, Callable[[], Flow]] = {
    "plain": lambda: tarflow((4, 4), **SMALL),
    "channels, classes": lambda: tarflow((2, 4, 4), 3, **SMALL),
    "sample": lambda: tarflow((4, 4), 3, fast="sample", **SMALL),
    "noise": lambda: tarflow((4, 4), 3, noise=0.1, **SMALL),
    "levels": lambda: tarflow((4, 4), 3, levels=17, **SMALL),
    "additive": lambda: tarflow((4, 4), 3, additive=True, bound=1.0, **SMALL),
    "context": lambda: tarflow((4, 4), context=2, learned_base=True, **SMALL),
}
every = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def away(flow: Flow) -> Flow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.15)
    return flow.eval()


def data(flow: Flow, *batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = torch.randn(*batch, *flow.event_shape)
    if flow.likelihood == "bound":
        x = torch.randint(0, 17, (*batch, *flow.event_shape))
    if flow.context_shape is None:
        return x, None
    if flow.context_shape == ():
        return x, torch.randint(-1, 3, batch)
    return x, torch.randn(*batch, *flow.context_shape)


@every
def test_it_starts_as_the_base_and_survives_a_file(
    build: Callable[[], Flow], tmp_path: Path
) -> None:
    fresh = build().eval()
    x, context = data(fresh, 6)
    if fresh.likelihood == "exact":
        expected = Gaussian(fresh.event_shape).log_prob(x)
        assert torch.allclose(fresh.log_prob(x, context), expected)
    flow = away(build())
    flow.save(tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    value = flow.log_prob(x, context, generator=torch.Generator().manual_seed(0))
    loaded = again.log_prob(x, context, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loaded, value, rtol=1e-13, atol=0)
    assert again.likelihood == flow.likelihood
    assert bool(torch.isfinite(value).all())


@every
def test_samples_come_back_and_carry_their_density(build: Callable[[], Flow]) -> None:
    flow = away(build())
    _, context = data(flow, 5)
    x0 = flow.base.sample((5,))
    if flow.likelihood == "bound":
        x = flow.push(x0, context)
        assert bool((x == x.round()).all() & (x >= 0).all() & (x <= 16).all())
        return
    assert torch.allclose(flow.pull(flow.push(x0, context), context), x0, rtol=0, atol=1e-9)
    x, value = flow.sample_and_log_prob((2,), context)
    assert torch.allclose(value, flow.log_prob(x, context), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["sample", "additive", "context"])
def test_log_prob_is_base_plus_log_determinant_of_the_whole(name: str) -> None:
    flow = away(BUILDS[name]())
    x, context = data(flow, 2)
    assert context is not None
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, k=k: flow.pull(z[None], context[k : k + 1])[0], x[k]
        ).reshape(16, 16)
        base = flow.base.log_prob(flow.pull(x[k : k + 1], context[k : k + 1]))
        expected = base[0] + torch.linalg.slogdet(jacobian).logabsdet
        value = flow.log_prob(x[k : k + 1], context[k : k + 1])[0]
        assert torch.allclose(value, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_the_density_of_two_pixels_integrates_to_one(label: int) -> None:
    flow = away(tarflow((1, 2), 2, **{**SMALL, "patch": 1, "learned_base": True}))
    side = torch.linspace(-10, 10, 161)
    grid = torch.cartesian_prod(side, side).reshape(-1, 1, 2)
    labels = torch.full((len(grid),), label)
    with torch.no_grad():
        mass = flow.log_prob(grid, labels).exp().sum() * (side[1] - side[0]) ** 2
        assert bool((flow.log_prob(grid, labels) - flow.base.log_prob(grid.mT)).abs().max() > 1)
    assert abs(mass.item() - 1) < 1e-5


def test_bounds_over_all_integer_images_sum_to_less_than_one() -> None:
    flow = away(tarflow((1, 2), levels=3, **{**SMALL, "patch": 1}))
    images = torch.tensor(list(itertools.product(range(3), repeat=2))).reshape(-1, 1, 2)
    with torch.no_grad():
        value, error = flow.log_prob_with_error(
            images, repeats=4000, generator=torch.Generator().manual_seed(0)
        )
        u = flow.pull(images + 0.0, generator=torch.Generator().manual_seed(0))
    assert u.shape == (9, 2, 1)
    assert float(error.max()) < 0.05
    assert 0.0 < value.exp().sum() < 1.0 + 5 * float(error.max())


def test_the_spread_of_the_base_is_learned_from_the_loss() -> None:
    flow = tarflow((4, 4), additive=True, **SMALL)
    x = 3.0 * torch.randn(64, 4, 4)
    log_scale = flow.get_parameter("transport.parts.0.log_scale")
    nll(flow, x).mean().backward()
    assert log_scale.grad is not None
    assert bool((log_scale.grad < 0).all())  # wider lowers the loss
    flow.initialize(x)
    assert log_scale.exp().mean().item() == pytest.approx(3.0, rel=0.1)
    with torch.no_grad():  # the layers are the identity still, so the law is this Gaussian
        rows = flow.pull(x) * log_scale.exp() + flow.get_parameter("transport.parts.0.shift")
        law = torch.distributions.Normal(
            flow.get_parameter("transport.parts.0.shift"), log_scale.exp()
        )
        assert torch.allclose(flow.log_prob(x), law.log_prob(rows).sum((-2, -1)))


@pytest.mark.parametrize("fast", ["density", "sample"])
def test_the_side_asked_for_takes_one_pass_a_layer(fast: str) -> None:
    flow = tarflow((4, 4), fast=fast, **SMALL)
    passes: list[int] = []
    for module in flow.modules():
        if type(module).__name__ == "_Block":
            module.register_forward_hook(lambda *_: passes.append(1))
    x = torch.randn(3, 4, 4)
    flow.log_prob(x)
    density = len(passes)
    flow.sample(3)
    assert (density, len(passes) - density) == ((2, 8) if fast == "density" else (8, 2))


def test_blocks_read_the_image_in_turns_from_both_ends() -> None:
    flow = away(tarflow((4, 4), **{**SMALL, "blocks": 1}))
    reads = torch.autograd.functional.jacobian(lambda z: flow.pull(z), torch.randn(4, 4))
    first, last = reads[0], reads[-1]  # tokens on the base side
    assert bool((first[:, :2, 2:] == 0).all() & (first[:, 2:] == 0).all())
    assert bool((last.abs() > 0).any(0).all())
    flow = away(tarflow((4, 4), **SMALL))
    reads = torch.autograd.functional.jacobian(lambda z: flow.pull(z), torch.randn(4, 4))
    assert bool((reads.abs() > 0).any(1).all())  # with two blocks, every token reads every pixel


def test_labels_count_and_batch_mates_do_not() -> None:
    flow, x = away(BUILDS["channels, classes"]()), torch.randn(4, 2, 4, 4)
    values = torch.stack([flow.log_prob(x, torch.tensor(k)) for k in (-1, 0, 1, 2)])
    assert bool((values[:, None] - values)[~torch.eye(4).bool()].abs().gt(1e-4).all())
    labels = torch.tensor([2, -1, 0, 1])
    together = flow.log_prob(x, labels)
    for k in range(4):
        alone = flow.log_prob(x[k : k + 1], labels[k : k + 1])
        assert torch.allclose(alone[0], together[k], rtol=0, atol=1e-11)


def test_noise_and_hidden_labels_belong_to_training() -> None:
    flow, x = away(BUILDS["noise"]()), torch.randn(4, 4, 4)
    labels = torch.tensor([0, 1, 2, 0])
    assert flow.likelihood == "exact"
    assert torch.equal(flow.log_prob(x, labels), flow.log_prob(x, labels))
    flow.train()
    assert flow.likelihood == "bound"
    first, second = (
        nll(flow, x, labels, generator=torch.Generator().manual_seed(s)) for s in (0, 0)
    )
    assert torch.equal(first, second)
    other = nll(flow, x, labels, generator=torch.Generator().manual_seed(1))
    assert bool((first != other).all())
    (noise,) = (part for part in flow.modules() if isinstance(part, GaussianNoise))
    assert noise.scale == 0.1


@every
def test_conditioners_in_bfloat16_give_finite_densities_in_float32(
    build: Callable[[], Flow],
) -> None:
    flow = build()
    x, context = data(flow.eval(), 6)
    exact = away(flow).log_prob(x, context, generator=torch.Generator().manual_seed(0))
    x = x if flow.likelihood == "bound" else x.float()
    flow.float()
    for module in flow.modules():
        if type(module).__name__ == "CausalTransformer":
            module.to(torch.bfloat16)
    context = context if context is None or not context.is_floating_point() else context.float()
    low = flow.log_prob(x, context, generator=torch.Generator().manual_seed(0))
    assert low.dtype == torch.float32
    assert bool(torch.isfinite(low).all())
    if flow.likelihood == "exact":
        assert torch.allclose(low.double(), exact, rtol=0.05, atol=1.0)
    assert bool(torch.isfinite(flow.sample(4, context)).all())
    far = flow.log_prob(torch.full_like(x, 10_000), context)
    assert bool(torch.isfinite(far).all())


def test_a_short_training_learns_classes_and_guided_samples_follow() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = tarflow((2, 2), 2, **{**SMALL, "patch": 1}, label_dropout=0.2)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    entropy = 4 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
    for _ in range(150):
        labels = torch.randint(0, 2, (128,), generator=generator)
        x = 0.3 * torch.randn(128, 2, 2, generator=generator) + (2.0 * labels - 1)[:, None, None]
        loss = nll(flow, x, labels, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flow.eval()
    labels = torch.arange(2).repeat(500)
    x = 0.3 * torch.randn(1000, 2, 2, generator=generator) + (2.0 * labels - 1)[:, None, None]
    known, hidden = (
        flow.log_prob(x, labels).mean(),
        flow.log_prob(x, -torch.ones_like(labels)).mean(),
    )
    assert -known < entropy + 0.25
    assert hidden < known - 0.3  # at best log 2 = 0.69 nats below
    means = flow.sample(200, torch.arange(2), generator=generator).mean((0, 2, 3))
    assert torch.allclose(means, torch.tensor([-1.0, 1.0]), atol=0.15)


def test_bad_arguments_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"give one of them, got noise=0\.1, levels=17"):
        tarflow((4, 4), noise=0.1, levels=17)
    with pytest.raises(DomainError, match="noise is for floating images"):
        tarflow((4, 4), noise=-0.1)
    with pytest.raises(DomainError, match="at least 1 block"):
        tarflow((4, 4), blocks=0)
    with pytest.raises(DomainError, match="patch must divide"):
        tarflow((5, 4))
    with pytest.raises(ShapeError, match="shape must be"):
        tarflow((16,))
