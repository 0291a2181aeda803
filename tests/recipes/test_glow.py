"""Glow: shapes, classes, initialisation that is saved, temperature, and errors in words."""

from pathlib import Path

import pytest
import torch

import cflow
from cflow import Flow, recipes
from cflow.errors import DomainError
from cflow.export import Sampler
from cflow.nets import ConstantMaps, ConvNet
from cflow.transport import ActNorm, Conditioned, Inverse

SMALL = {"scales": 2, "steps": 2, "hidden_channels": 8, "levels": 17}


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 17, shape)


def perturbed(flow: Flow) -> Flow:
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (3, 4, 4), (8, 4), (28, 28), (3, 5, 5)])
def test_images_of_one_or_three_channels_and_odd_sides(shape: tuple[int, ...]) -> None:
    scales = 3 if shape == (28, 28) else 2
    flow = recipes.glow(shape, scales=scales, steps=1, hidden_channels=4, levels=17)
    x = images(6, *shape)
    flow.initialize(x)
    flow = perturbed(flow)
    assert flow.event_shape == shape
    assert flow.base.event_shape == (torch.Size(shape).numel(),)
    assert flow.likelihood == "bound"
    assert bool(torch.isfinite(flow.log_prob(x)).all())
    latent = flow.pull(x)
    assert torch.equal(flow.push(latent), x.to(latent.dtype))
    sample = flow.sample(2)
    assert sample.shape == (2, *shape)
    assert bool(((sample >= 0) & (sample <= 16) & (sample == sample.floor())).all())


@pytest.mark.parametrize("fast", ["density", "sample"])
def test_both_orientations_are_exact_inverses(fast) -> None:
    flow = perturbed(recipes.glow((4, 4), **SMALL, fast=fast))
    inverted = [m for m in flow.modules() if isinstance(m, Inverse)]
    assert len(inverted) == (5 if fast == "density" else 1)  # four convolutions and the sigmoid
    logits = Flow(flow.base, flow.transport[:-2])  # the continuous part
    x = torch.randn(3, 4, 4)
    assert torch.allclose(logits.push(logits.pull(x)), x, rtol=0, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(logits.pull, x[0]).reshape(16, 16)
    expected = logits.base.log_prob(logits.pull(x[0])) + torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(logits.log_prob(x[0]), expected, rtol=0, atol=1e-10)


def test_classes_condition_every_scale_and_the_top() -> None:
    flow = perturbed(recipes.glow((4, 4), 3, **SMALL))
    x, labels = images(5, 4, 4), torch.tensor([0, 1, 2, 1, 0])
    assert flow.context_shape == ()
    seed = lambda: torch.Generator().manual_seed(0)
    here = flow.log_prob(x, labels, generator=seed())
    there = flow.log_prob(x, (labels + 1) % 3, generator=seed())
    assert bool((here != there).all())
    single = flow.log_prob(x, torch.tensor(1), generator=seed())
    assert torch.allclose(single[[1, 3]], here[[1, 3]])
    assert flow.sample(2, labels).shape == (2, 5, 4, 4)
    assert isinstance(flow.transport, Conditioned)
    steered = {n for n, p in flow.named_parameters() if "context" in n}
    assert len(steered) == 6  # two steps at each of two scales, a prior, the top
    assert len(flow.state_dict()) == len({*flow.state_dict()} - {"transport.encoder.eye"})
    with pytest.raises(IndexError):
        flow.log_prob(x, labels + 1)
    with pytest.raises(DomainError, match="needs a context"):
        flow.log_prob(x)


@pytest.mark.parametrize("context", [(2,), (2, 4, 4), (2, 8, 8)], ids=str)
def test_vectors_and_maps_as_context(context: tuple[int, ...]) -> None:
    flow = perturbed(recipes.glow((3, 4, 4), context_shape=context, **SMALL))
    x, given = images(5, 3, 4, 4), torch.randn(5, *context)
    seed = lambda: torch.Generator().manual_seed(0)
    here = flow.log_prob(x, given, generator=seed())
    there = flow.log_prob(x, given + 1, generator=seed())
    assert bool((here != there).all())
    flow.initialize(x, given)
    assert flow.sample(2, given).shape == (2, 5, 3, 4, 4)


def test_networks_in_bfloat16_and_far_points_keep_densities_finite() -> None:
    flow = perturbed(recipes.glow((3, 4, 4), 3, **SMALL)).float()
    x, labels = images(5, 3, 4, 4), torch.tensor([0, 1, 2, 1, 0])
    seed = lambda: torch.Generator().manual_seed(0)
    exact = flow.log_prob(x, labels, generator=seed())
    for part in flow.modules():
        if isinstance(part, ConvNet | ConstantMaps):
            part.to(torch.bfloat16)
    low = flow.log_prob(x, labels, generator=seed())
    assert low.dtype == torch.float32
    assert torch.allclose(low, exact, rtol=0.02)
    continuous = Flow(flow.base, flow.transport.transport[0], context_shape=(3,))
    far = 1e4 * torch.randn(5, 3, 4, 4, dtype=torch.float32)
    assert bool(torch.isfinite(continuous.log_prob(far, torch.eye(5, 3))).all())


def test_initialised_once_and_never_again_even_in_a_fresh_process(tmp_path: Path, forked) -> None:
    flow = recipes.glow((4, 4), 3, **SMALL)
    x, labels = images(50, 4, 4), torch.randint(0, 3, (50,))
    flow.initialize(x, labels)
    norms = [m for m in flow.modules() if isinstance(m, ActNorm)]
    assert len(norms) == 4
    assert all(bool(m.fitted) for m in norms)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.initialize(x // 2, labels)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    flow.save(tmp_path / "glow.safetensors")
    torch.save((x, labels), tmp_path / "data.pt")
    process = forked.Process(target=initialize_again, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    expected = flow.push(torch.linspace(-1, 1, 16), labels[:5])
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)
    again = cflow.load(tmp_path / "glow.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())


def initialize_again(folder: Path) -> None:
    flow = cflow.load(folder / "glow.safetensors")
    x, labels = torch.load(folder / "data.pt")
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.train().initialize(x // 2, labels)
    flow.log_prob(x, labels)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    noise = torch.linspace(-1, 1, 16, dtype=torch.float64)
    torch.save(flow.push(noise, labels[:5]), folder / "out.pt")


def test_initialisation_normalises_what_leaves_each_scale() -> None:
    """ActNorm last in the pull order of an identity coupling: unit spread at the base."""
    flow = recipes.glow((4, 4), scales=1, steps=1, hidden_channels=4, levels=17)
    x = torch.randint(3, 14, (2000, 4, 4))
    flow.initialize(x, generator=torch.Generator().manual_seed(0))
    latent = flow.pull(x, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(latent.mean(), torch.tensor(0.0), atol=1e-9)
    by_channel = latent.unflatten(-1, (4, 4)).movedim(1, 0).flatten(1)
    assert torch.allclose(
        torch.linalg.matrix_norm(torch.cov(by_channel)), torch.tensor(2.0), atol=0.1
    )


def test_no_temperature_gives_the_means_without_any_draw() -> None:
    flow = perturbed(recipes.glow((4, 4), 3, **SMALL))
    labels = torch.tensor([0, 2])
    cold = flow.push(0.0 * flow.base.sample((2,)), labels)
    assert torch.equal(cold, flow.push(0.0 * flow.base.sample((2,)), labels))
    assert not torch.equal(cold, flow.push(flow.base.sample((2,)), labels))


def test_a_step_of_training_lowers_the_loss() -> None:
    flow = recipes.glow((4, 4), **SMALL)
    x = images(64, 4, 4) // 4
    flow.initialize(x)
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = -flow.log_prob(x, generator=torch.Generator().manual_seed(0)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


@pytest.mark.unchecked
def test_a_sampler_of_labelled_images_exports() -> None:
    flow = perturbed(recipes.glow((4, 4), 3, **SMALL))
    inputs = {"noise": torch.randn(4, 16), "context": torch.tensor([0, 1, 2, 0])}
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(Sampler(flow).eval(), (), inputs, dynamic_shapes=shapes).module()
    noise, labels = torch.randn(7, 16), torch.randint(0, 3, (7,))
    assert torch.equal(program(noise=noise, context=labels), flow.push(noise, labels))


def test_what_makes_no_glow_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"glow: needs a shape \(channels, height, width\)"):
        recipes.glow((4,))
    with pytest.raises(DomainError, match=r"shape \(1, 5, 5\) has one channel"):
        recipes.glow((5, 5))
    with pytest.raises(
        DomainError, match=r"must be \(n,\) or \(n, height, width\), and not go with"
    ):
        recipes.glow((4, 4), 3, context_shape=(2,))
    with pytest.raises(DomainError, match="needs one scale"):
        recipes.glow((4, 4), scales=0)
