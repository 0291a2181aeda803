"""Flows of tokens as recipes: what they build, and files that give them back bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import cflow
from cflow import Flow, JumpFlow
from cflow.base import MaskTokens, UniformTokens
from cflow.errors import CheckpointError, DomainError
from cflow.field import (
    CosineSchedule,
    FunctionSchedule,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    PathSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.jump import KineticSchedule, MixturePath, MixtureSteps, negative_elbo
from cflow.recipes import maf, token_mlp, token_transformer

SMALL: dict[str, Any] = dict(width=8, layers=1, heads=2, steps=3)
FLOWS: dict[str, Callable[[], JumpFlow]] = {
    "transformer": lambda: token_transformer(4, 5, **SMALL),
    "transformer, labels": lambda: token_transformer(4, 5, 3, base="uniform", **SMALL),
    "transformer, vectors": lambda: token_transformer(4, 5, context=2, timed=True, **SMALL),
    "mlp": lambda: token_mlp((2, 2), 5, hidden_features=(8,), steps=3),
    "mlp, vectors": lambda: token_mlp(
        3, 5, 2, base="uniform", embedding=4, schedule=PolynomialSchedule(3.0), steps=3
    ),
}
each_flow = pytest.mark.parametrize("name", FLOWS)


def spread(flow: JumpFlow) -> JumpFlow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow


def context_of(flow: JumpFlow, n: int) -> Tensor | None:
    if flow.context_shape is None:
        return None
    return torch.randn(n, *flow.context_shape) if flow.context_shape else torch.arange(n) % 3


def seeded() -> Generator:
    return Generator().manual_seed(0)


@each_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_file_gives_the_flow_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    flow = spread(FLOWS[name]()).to(dtype).eval()
    flow.save(tmp_path / "flow.safetensors")
    again = cflow.load(tmp_path / "flow.safetensors", JumpFlow)
    assert not any(part.training for part in again.modules())
    assert again.recipe is not None
    assert flow.recipe is not None
    assert again.recipe.describe() == flow.recipe.describe()
    context = context_of(flow, 6)
    shape = 6 if context is None else ()
    x = flow.sample(shape, context, generator=seeded())
    assert torch.equal(again.sample(shape, context, generator=seeded()), x)
    bounds = [each.elbo(x, context, generator=seeded()) for each in (flow, again)]
    assert torch.equal(*bounds)
    flow.save(tmp_path / "twice.safetensors")
    files = [(tmp_path / f"{each}.safetensors").read_bytes() for each in ("flow", "twice")]
    assert files[0] == files[1]


@each_flow
def test_flows_have_gradients_everywhere_that_count(name: str) -> None:
    flow = spread(FLOWS[name]())
    x, context = torch.randint(5, (8, *flow.event_shape)), context_of(flow, 8)
    negative_elbo(flow, x, context, generator=seeded()).mean().backward()
    still = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_what_is_built_is_what_was_asked_for() -> None:
    masked, uniform = token_mlp(3, 5), token_mlp(3, 5, base="uniform", steps=7)
    assert isinstance(masked.base, MaskTokens)
    assert isinstance(uniform.base, UniformTokens)
    assert (masked.sampler, uniform.sampler) == (MixtureSteps(64), MixtureSteps(7))
    assert masked.rates.path == MixturePath(LinearSchedule())
    assert (masked.event_shape, masked.base.vocabulary, masked.context_shape) == ((3,), 5, None)
    assert token_transformer(4, 5, 3, **SMALL).context_shape == ()
    assert token_transformer(4, 5, context=2, **SMALL).context_shape == (2,)


@pytest.mark.parametrize(
    ("options", "timed"),
    [
        ({}, False),
        ({"timed": True}, True),
        ({"base": "uniform"}, True),
        ({"base": "uniform", "timed": False}, False),
        ({"classes": 3}, False),
    ],
    ids=str,
)
def test_masks_need_no_time(options: dict[str, Any], timed: bool) -> None:
    flow = spread(token_transformer(4, 5, **options, **SMALL))
    x, context = flow.base.sample((2,)), context_of(flow, 2)
    early, late = (flow.rates.logits(torch.full((2,), t), x, context) for t in (0.1, 0.9))
    assert torch.equal(early, late) is not timed


SCHEDULES: list[PathSchedule] = [
    LinearSchedule(),
    PolynomialSchedule(1.5),
    CosineSchedule(),
    VPSchedule(0.2, 10.0),
    LinearVPSchedule(),
    LipmanSchedule(0.1),
    KineticSchedule(0.2),
]


def test_schedules_are_options(tmp_path: Path) -> None:
    for schedule in SCHEDULES:
        token_mlp(1, 3, hidden_features=(4,), schedule=schedule).save(tmp_path / "flow")
        again = cflow.load(tmp_path / "flow", JumpFlow)
        assert again.rates.path == MixturePath(schedule)
    own = FunctionSchedule(lambda t: t, lambda t: 1 - t)
    with pytest.raises(DomainError, match="FunctionSchedule cannot be saved as data"):
        token_mlp(1, 3, schedule=own).save(tmp_path / "flow")


@pytest.mark.unchecked
def test_files_of_the_other_kind_are_refused_in_words(tmp_path: Path) -> None:
    token_mlp(2, 3, hidden_features=(4,)).save(tmp_path / "tokens")
    maf(2, transforms=1, hidden_features=(4,)).save(tmp_path / "points")
    with pytest.raises(CheckpointError, match=r"holds a JumpFlow, .*by load\(path, JumpFlow\)"):
        cflow.load(tmp_path / "tokens")
    with pytest.raises(CheckpointError, match=r"holds a Flow, not a JumpFlow; .*by load\(path\)"):
        cflow.load(tmp_path / "points", JumpFlow)
    assert type(cflow.load(tmp_path / "points")) is Flow
    with pytest.raises(CheckpointError, match="weights of another model"):
        cflow.load(tmp_path / "points", into=token_mlp(2, 3))


def test_flows_that_no_recipe_built_are_filled(tmp_path: Path) -> None:
    flow = spread(token_mlp(2, 3, hidden_features=(4,))).with_sampler(MixtureSteps(2))
    flow.save(tmp_path / "flow")
    with pytest.raises(CheckpointError, match="no recipe built this flow"):
        cflow.load(tmp_path / "flow", JumpFlow)
    other = token_mlp(2, 3, hidden_features=(4,))
    assert cflow.load(tmp_path / "flow", into=other) is other
    for a, b in zip(flow.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a file again with another recipe in its header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["cflow"])
    change(header["recipe"])
    save_file(tensors, path, metadata={"cflow": json.dumps(header)})


def test_damaged_and_unknown_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow"
    for change, words in (
        (lambda found: found.update(name="no_such"), "unknown recipe 'no_such'"),
        (lambda found: found["arguments"].update(depth=3), "does not take its"),
        (
            lambda found: found["arguments"].update(schedule={"option": "open", "fields": {}}),
            "unknown option 'open'",
        ),
        (lambda found: found["arguments"].update(vocabulary=4), "another model"),
    ):
        token_mlp(2, 3, hidden_features=(4,)).save(path)
        rewritten(path, change)
        with pytest.raises(CheckpointError, match=words):
            cflow.load(path, JumpFlow)
    token_mlp(2, 3).save(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="truncated"):
        cflow.load(path, JumpFlow)


@pytest.mark.unchecked
def test_a_base_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow"
    token_mlp(2, 3, hidden_features=(4,)).save(path)
    rewritten(path, lambda found: found["arguments"].update(base="masks"))
    with pytest.raises(DomainError, match="base must be 'mask' or 'uniform', got 'masks'"):
        cflow.load(path, JumpFlow)


def test_sizes_out_of_range_are_refused() -> None:
    for call in (
        lambda: token_mlp(0, 5),
        lambda: token_mlp(2, 0),
        lambda: token_mlp(2, 5, steps=0),
        lambda: token_transformer(4, 5, 3, context=2, **SMALL),
        lambda: token_transformer(4, 5, width=9, layers=1, heads=2),
    ):
        with pytest.raises(DomainError):
            call()
