"""Flows along UNet and DiT: densities, contexts and their null values, files, training, export."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cflow import Flow, load, nll
from cflow.errors import DomainError, ShapeError
from cflow.export import Sampler, export_pt2
from cflow.field import DiTField, Exact, Field, UNetField
from cflow.matching import ContextDropout, IndependentCoupling, LinearPath, matching
from cflow.ode import RK4, Backsolve, Checkpoint, Euler
from cflow.recipes import dit, unet
from cflow.state import State
from cflow.train.average import averaged

UNET: dict[str, Any] = dict(
    width=4, multipliers=(1,), blocks=1, attention=(0,), heads=2, time_scale=1.0
)
DIT: dict[str, Any] = dict(width=8, layers=2, heads=2, time_scale=1.0)
FIELDS: dict[str, Callable[..., Field]] = {
    "unet": lambda shape, *given, **options: UNetField(shape, *given, **UNET, **options),
    "dit": lambda shape, *given, **options: DiTField(shape, *given, **DIT, **options),
}
RECIPES: dict[str, Callable[..., Flow]] = {
    "unet": lambda shape, *given, **options: unet(shape, *given, **UNET, **options),
    "dit": lambda shape, *given, **options: dit(shape, *given, **DIT, **options),
}
CONTEXTS: dict[str, dict[str, Any]] = {
    "none": {},
    "labels": {"classes": 3},
    "vectors": {"context": 2},
    "sequences": {"tokens": 2},
}
each_field = pytest.mark.parametrize("build", FIELDS.values(), ids=FIELDS.keys())
each_recipe = pytest.mark.parametrize("build", RECIPES.values(), ids=RECIPES.keys())
each_context = pytest.mark.parametrize("kind", CONTEXTS)


def away(part: Any, std: float = 0.2) -> Any:
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=std)
    return part.eval()


def context_of(kind: str, *batch: int) -> Tensor | None:
    if kind == "labels":
        return torch.randint(0, 3, batch)
    if kind == "none":
        return None
    return torch.randn(*batch, 2) if kind == "vectors" else torch.randn(*batch, 5, 2)


@each_field
@each_context
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 2)], ids=str)
def test_fields_take_any_batch_axes_and_know_no_mates(
    build: Callable[..., Field], kind: str, batch: tuple[int, ...]
) -> None:
    field = away(build((2, 4, 4), **CONTEXTS[kind]))
    t, x, context = torch.rand(batch), torch.randn(*batch, 2, 4, 4), context_of(kind, *batch)
    v = field(t, x, context)
    assert v.shape == x.shape
    for index in itertools.product(*map(range, batch)):
        alone = field(t[index], x[index], None if context is None else context[index])
        assert torch.allclose(alone, v[index], rtol=0, atol=1e-12)


@each_field
@pytest.mark.parametrize("kind", ["labels", "vectors", "sequences"])
def test_contexts_count_and_their_null_is_none(build: Callable[..., Field], kind: str) -> None:
    field = away(build((1, 4, 4), **CONTEXTS[kind]))
    t, x, context = torch.rand(4), torch.randn(4, 1, 4, 4), context_of(kind, 4)
    assert context is not None
    null = torch.full_like(context, field.null)
    assert torch.allclose(field(t, x, null), field(t, x), rtol=0, atol=1e-12)
    assert field.null == (3 if kind == "labels" else 0.0)
    gap = (field(t, x, context) - field(t, x)).abs()
    assert bool((gap > 1e-9).all())  # in every pixel
    assert bool((field(t / 2, x, context) - field(t, x, context) != 0).all())


@each_field
def test_it_starts_at_rest_and_training_reaches_every_parameter(
    build: Callable[..., Field],
) -> None:
    for kind in ("labels", "sequences"):
        field = build((1, 4, 4), **CONTEXTS[kind])
        optimizer = torch.optim.Adam(field.parameters(), 1e-2)
        x1, context = torch.randn(16, 1, 4, 4), context_of(kind, 16)
        if kind == "labels":
            context = torch.arange(16) % 4  # the null label among them
        assert torch.equal(field(torch.rand(16), x1, context), torch.zeros_like(x1))
        for _ in range(4):  # zeros stand in a row: the last layer, then the gates, then the rest
            loss = matching(field, LinearPath(), IndependentCoupling(), x1, context=context)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        for name, parameter in field.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


@each_field
def test_the_exact_divergence_is_the_trace_of_the_jacobian(build: Callable[..., Field]) -> None:
    field = away(build((1, 4, 4), 3))
    t, x, labels = torch.rand(2), torch.randn(2, 1, 4, 4), torch.tensor([2, 3])
    div = Exact()(field, t, x, labels, None).div
    for k in range(2):
        at = lambda z, k=k: field(t[k], z, labels[k])
        jacobian = torch.autograd.functional.jacobian(at, x[k]).reshape(16, 16)
        assert torch.allclose(div[k], jacobian.trace(), rtol=0, atol=1e-10)
        assert div[k].abs() > 1e-4


@each_recipe
def test_log_prob_is_base_plus_log_determinant_of_the_whole(build: Callable[..., Flow]) -> None:
    flow = away(build((1, 4, 4), 3, solver=RK4(6), divergence=Exact()))
    x, labels = torch.randn(1, 1, 4, 4), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.pull(z, labels), x)
    expected = flow.base.log_prob(flow.pull(x, labels))
    expected = expected + torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet
    assert torch.allclose(flow.log_prob(x, labels), expected, rtol=0, atol=1e-5)
    assert (expected - flow.base.log_prob(x)).abs() > 1e-3


@each_recipe
@pytest.mark.parametrize("kind", ["none", "labels", "vectors", "sequences", "levels", "grey"])
def test_it_survives_a_file(build: Callable[..., Flow], kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "labels": {"classes": 3},
        "vectors": {"context_shape": (2,)},
        "sequences": {"context_shape": (5, 2)},
        "levels": {"levels": 17},
    }.get(kind, {})
    shape = (4, 4) if kind in ("grey", "levels") else (2, 4, 4)
    flow = away(build(shape, **options, solver=RK4(2), dropout=0.1))
    context = context_of(kind, 3) if kind in CONTEXTS else None
    x = torch.randint(17, (3, *shape)) if kind == "levels" else torch.randn(3, *shape)
    flow.save(tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    noise = lambda: torch.Generator().manual_seed(0)
    value = flow.log_prob(x, context, generator=noise())
    assert torch.equal(again.log_prob(x, context, generator=noise()), value)
    assert torch.equal(
        again.sample((3,) if context is None else (), context, generator=noise()),
        flow.sample((3,) if context is None else (), context, generator=noise()),
    )
    assert flow.likelihood == ("bound" if kind == "levels" else "estimate")
    assert flow.event_shape == shape


@each_recipe
def test_the_bound_counts_the_scale_and_the_levels(build: Callable[..., Flow]) -> None:
    """At rest the flow is the base on [-1, 1]: each grey level is 2 / levels wide there."""
    flow, images = build((4, 4), levels=17, solver=Euler(1)), torch.randint(17, (5, 4, 4))
    x1 = flow.transport[1:].pull(State(images), generator=torch.Generator().manual_seed(0)).x
    expected = flow.base.log_prob(x1) + 16 * math.log(2 / 17)
    value = flow.log_prob(images, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(value, expected, rtol=0, atol=1e-10)
    assert flow.likelihood == "bound"


@each_recipe
def test_what_the_field_learns_from_lies_behind_the_ode(build: Callable[..., Flow]) -> None:
    flow = build((4, 4), levels=17)
    images = torch.randint(17, (5, 4, 4))
    x1 = flow.transport[1:].pull(State(images)).x
    assert x1.shape == (5, 1, 4, 4)
    assert bool((x1 >= -1).all() & (x1 <= 1).all())
    assert torch.equal(flow.transport[1:].push(State(x1)).x, images.to(x1.dtype))
    flow.with_solver(RK4(2)).log_prob(images).sum().backward()


@each_recipe
def test_adjoints_give_the_gradient_of_the_loss_with_labels(build: Callable[..., Flow]) -> None:
    flow, x = away(build((1, 2, 2), 3, solver=RK4(3))), torch.randn(2, 1, 2, 2)
    labels = torch.tensor([0, 2])
    gradients = []
    adjoints = (Checkpoint(), Backsolve())
    for one in (flow, *(flow.with_solver(adjoint=adjoint) for adjoint in adjoints)):
        flow.zero_grad()
        nll(one, x, labels, generator=torch.Generator().manual_seed(0)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    expected, checkpointed, solved_back = gradients
    scale = expected.abs().max().item()
    assert torch.allclose(checkpointed, expected, rtol=0, atol=1e-9 * scale)
    assert torch.allclose(solved_back, expected, rtol=0, atol=1e-3 * scale)


def test_a_short_training_learns_classes_and_all_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = dit((1, 2, 2), 2, patch=1, solver=Euler(8), **{**DIT, "width": 16})
    field = flow.transport.field
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    average = averaged(field, 0.95)
    for _ in range(150):
        labels = torch.randint(0, 2, (64,), generator=generator)
        x1 = 0.3 * torch.randn(64, 1, 2, 2, generator=generator)
        x1 = x1 + (2.0 * labels - 1)[:, None, None, None]
        loss = matching(
            field,
            LinearPath(),
            IndependentCoupling(),
            x1,
            context=labels,
            dropout=ContextDropout(0.2, null=field.null),
            generator=generator,
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        average.update_parameters(field)
    field.load_state_dict(average.module.state_dict())
    flow.eval()
    labels = torch.arange(3)  # and none
    x = flow.sample(400, labels, generator=generator)
    means = x.mean((0, 2, 3, 4))
    assert torch.allclose(means, torch.tensor([-1.0, 1.0, 0.0]), atol=0.2)
    assert x[:, 2].mean((1, 2, 3)).abs().mean() > 0.7  # either class, not their middle


@pytest.mark.unchecked
@each_recipe
def test_fields_compile_and_samplers_export(build: Callable[..., Flow], tmp_path: Path) -> None:
    flow = away(build((1, 2, 2), 3, solver=Euler(1))).float()
    field, labels = flow.transport.field, torch.tensor([0, 3, -1])
    t, x = torch.rand(3, dtype=torch.float32), torch.randn(3, 1, 2, 2, dtype=torch.float32)
    if isinstance(field, UNetField):
        traced = torch.compile(field, fullgraph=True, backend="aot_eager")
        assert torch.allclose(traced(t, x, labels), field(t, x, labels), rtol=0, atol=1e-5)
    else:  # the divergence runs the field, its attention under vjp, within the graph
        rates = lambda t, x: Exact()(field, t, x, labels, None).div
        once = torch.compile(rates, fullgraph=True, backend="aot_eager")
        assert torch.allclose(once(t, x), rates(t, x), rtol=0, atol=1e-5)
    assert export_pt2(Sampler(flow), tmp_path / "s.pt2", context=labels) < 1e-4


def test_low_precision_weights_take_points_of_float32() -> None:
    for build in RECIPES.values():
        flow = away(build((1, 4, 4), 3, solver=RK4(2), divergence=Exact()))
        x, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 3])
        exact = flow.log_prob(x, labels)
        flow.float().transport.field.to(torch.bfloat16)
        low = flow.log_prob(x.float(), labels)
        assert low.dtype == torch.float32
        assert torch.allclose(low.double(), exact, rtol=0, atol=0.3)


def test_bad_arguments_are_refused_in_words() -> None:
    t, x = torch.rand(2), torch.randn(2, 1, 4, 4)
    for name, build in FIELDS.items():
        where = "UNetField" if name == "unet" else "DiTField"
        with pytest.raises(ShapeError, match=rf"{where}: x must end in shape \(1, 4, 4\)"):
            build((1, 4, 4))(t, torch.zeros(2, 3, 4, 4))
        with pytest.raises(DomainError, match="between 0 and 2, or be 3 for none, got 5"):
            build((1, 4, 4), 3)(t, x, torch.tensor([0, 5]))
        with pytest.raises(ShapeError, match=r"a sequence \(2, 'any', 2\), got \(2, 5, 3\)"):
            build((1, 4, 4), tokens=2)(t, x, torch.zeros(2, 5, 3))
        with pytest.raises(ShapeError, match=r"a sequence \(2, 'any', 2\), got \(2, 0, 2\)"):
            build((1, 4, 4), tokens=2)(t, x, torch.zeros(2, 0, 2))
        with pytest.raises(DomainError, match="give one of classes=3, context=2, tokens=0"):
            build((1, 4, 4), 3, context=2)
        with pytest.raises(ShapeError, match=r"shape must be \(channels, height, width\)"):
            build((4, 4))
        with pytest.raises(DomainError, match=rf"{where}: sizes must be positive"):
            build((0, 4, 4))
    with pytest.raises(DomainError, match="patch must divide height and width, got patch=2"):
        dit((1, 4, 5), **DIT)
    for name, recipe in RECIPES.items():
        with pytest.raises(DomainError, match=rf"{name}: shape must be .* got \(16,\)"):
            recipe((16,))
        with pytest.raises(DomainError, match=rf"{name}: context_shape must be .* classes=3"):
            recipe((4, 4), 3, context_shape=(2,))
        with pytest.raises(DomainError, match=rf"{name}: context_shape must be"):
            recipe((4, 4), context_shape=(2, 3, 4))
        with pytest.raises(ShapeError, match="x must end in shape"):
            recipe((4, 4)).log_prob(torch.zeros(2, 4, 5))
