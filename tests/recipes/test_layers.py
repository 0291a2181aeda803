"""The recipes of layers: saved whole, cheap where they say so, one interface both ways."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cflow import Flow, load, nll, recipes
from cflow.errors import DomainError
from cflow.transport import Inverse

SMALL = dict(transforms=2, hidden_features=(8, 8))
BUILDS: dict[str, Callable[..., Flow]] = {
    "nice": lambda c=0, **k: recipes.nice(3, c, **SMALL, **k),
    "realnvp": lambda c=0, **k: recipes.realnvp(3, c, **SMALL, **k),
    "realnvp, lu": lambda c=0, **k: recipes.realnvp(
        3, c, transforms=3, hidden_features=(8,), mixing="lu", **k
    ),
    "flowpp": lambda c=0, **k: recipes.flowpp(3, c, units=2, **SMALL, **k),
    "maf": lambda c=0, **k: recipes.maf(3, c, normalize=True, **SMALL, **k),
    "maf, random": lambda c=0, **k: recipes.maf(3, c, order="random", residual=True, **SMALL, **k),
    "iaf": lambda c=0, **k: recipes.iaf(3, c, **SMALL, **k),
    "nsf": lambda c=0, **k: recipes.nsf(3, c, bins=3, mixing="lu", **SMALL, **k),
    "nsf, coupling": lambda c=0, **k: recipes.nsf(3, c, kind="coupling", bins=3, **SMALL, **k),
    "naf": lambda c=0, **k: recipes.naf(3, c, units=2, **SMALL, **k),
    "umnn": lambda c=0, **k: recipes.umnn(3, c, **SMALL, **k),
    "bernstein": lambda c=0, **k: recipes.bernstein(3, c, degree=4, **SMALL, **k),
    "gaussianization": lambda c=0, **k: recipes.gaussianization(
        3, c, transforms=2, units=3, hidden_features=(8,), **k
    ),
}
every = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
AUTOREGRESSIVE = ("maf", "nsf", "naf", "umnn", "bernstein")


def away(flow: Flow) -> Flow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow.eval()


@every
@pytest.mark.parametrize("fast", ["density", "sample"])
@pytest.mark.parametrize("context", [0, 2])
def test_samples_come_with_their_density_in_either_orientation(
    build: Callable[..., Flow], fast: str, context: int
) -> None:
    torch.manual_seed(0)
    flow = away(build(context, fast=fast))
    c = torch.randn(6, context) if context else None
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(() if context else (6,), c)
        assert torch.allclose(flow.log_prob(x, c), log_prob, rtol=0, atol=1e-7)
        assert torch.allclose(flow.push(flow.pull(x, c), c), x, rtol=0, atol=1e-8)
    if c is not None:
        assert bool((flow.log_prob(x, c + 1) != log_prob).all())


@every
@pytest.mark.parametrize("fast", ["density", "sample"])
def test_the_cheap_direction_is_the_one_that_was_asked_for(
    build: Callable[..., Flow], fast: str
) -> None:
    flow = build(fast=fast)
    inverted = any(isinstance(part, Inverse) for part in flow.transport.modules())
    assert inverted == (fast == "density")


@every
def test_a_flow_starts_as_a_rotation_of_the_base(build: Callable[..., Flow]) -> None:
    """The density of the fresh flow depends on |x| alone, hence is the base's."""
    flow = build().eval()
    x = torch.randn(5, 3)
    assert torch.allclose(flow.log_prob(x), flow.base.log_prob(x), rtol=0, atol=1e-6)


@every
def test_gradients_reach_all_parameters_after_one_step(build: Callable[..., Flow]) -> None:
    torch.manual_seed(0)
    flow = away(build(2)).train()
    nll(flow, torch.randn(8, 3), torch.randn(8, 2)).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_saved_flows_give_the_same_numbers_in_a_fresh_process(tmp_path: Path, forked) -> None:
    """Exact reloading of every recipe, those of images and residual ones included."""
    torch.manual_seed(0)
    flows = {name: away(build(2)).float() for name, build in BUILDS.items()}
    images = {
        "glow": recipes.glow((4, 4), 3, scales=2, steps=1, hidden_channels=4, levels=5),
        "tarflow": recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=2, layers=1, heads=2),
    }
    dense = {
        "residual": recipes.residual(3, 2, transforms=2, hidden_features=(8,)),
        "invertible_densenet": recipes.invertible_densenet(3, 2, transforms=2, growth=4),
    }
    flows |= {name: away(flow).float() for name, flow in images.items()}
    flows |= {name: flow.eval().float() for name, flow in dense.items()}
    given = {}
    for name, flow in flows.items():
        labelled = name in images
        x = torch.randint(0, 5, (4, 4, 4)) if name == "glow" else torch.randn(4, *flow.event_shape)
        x = x.float()
        context = torch.tensor([0, 1, 2, 0]) if labelled else torch.randn(4, 2)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            value = flow.log_prob(x, context, generator=generator)
        flow.save(tmp_path / f"{name}.safetensors")
        given[name] = (x, context, value)
    torch.save(given, tmp_path / "given.pt")
    process = forked.Process(target=same, args=(tmp_path, torch.get_num_threads()))
    process.start()
    process.join()
    assert process.exitcode == 0


def same(folder: Path, threads: int) -> None:
    """Ask saved flows again; sums depend on the threads."""
    torch.set_num_threads(threads)
    for name, (x, context, value) in torch.load(folder / "given.pt").items():
        flow, generator = load(folder / f"{name}.safetensors"), torch.Generator().manual_seed(0)
        with torch.no_grad():
            assert torch.equal(flow.log_prob(x, context, generator=generator), value), name


def test_initialisation_survives_saving_and_is_never_repeated(tmp_path: Path) -> None:
    flow = recipes.realnvp(3, **SMALL)
    flow.initialize(3 + 2 * torch.randn(100, 3))
    flow.save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    before = {name: value.clone() for name, value in again.state_dict().items()}
    again.initialize(torch.randn(100, 3))
    again.log_prob(torch.randn(5, 3))
    again.sample(5)
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())


def test_a_single_feature_needs_no_coupling() -> None:
    for name in ("maf", "nsf", "naf", "bernstein", "gaussianization"):
        flow = getattr(recipes, name)(1, 2, transforms=2, hidden_features=(8,))
        assert away(flow).sample((), torch.randn(5, 2)).shape == (5, 1)
    with pytest.raises(DomainError, match="autoregressive recipe"):
        recipes.realnvp(1)


def test_bad_sizes_are_refused_in_words() -> None:
    for name in AUTOREGRESSIVE:
        with pytest.raises(DomainError, match=name):
            getattr(recipes, name)(3, transforms=0)


@pytest.mark.unchecked
def test_an_unknown_kind_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="kind must be"):
        recipes.nsf(3, kind="spiral")
