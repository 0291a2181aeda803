"""Rounds of reflow and distillation: closed forms, kills, refusals, and what is left untouched."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.errors import CheckpointError, DomainError
from cflow.field import Field, GaussianMixture
from cflow.matching import (
    FeatureError,
    IndependentCoupling,
    LinearPath,
    PseudoHuber,
    StoredPairs,
    matching,
)
from cflow.metrics import sliced_wasserstein
from cflow.ode import RK4, Euler, Heun
from cflow.samples import by_steps, path_measures
from cflow.train import CosineDecay, Trainer, distil, reflow
from cflow.transport import ODE, Affine, Chain

quick = partial(Trainer, steps=20, batch=32, checkpoint_every=5, ema=0.9, progress=False)


class Killed(Exception):
    """What stands for a kill."""


class LinearField(Field):
    """v = x W', or x W' scaled by the context."""

    def __init__(self, weight: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        v = self.dropout(x) @ self.weight.T
        return v if context is None else v * context


def linear(**options) -> Flow:
    weight = torch.tensor([[0.1, -0.8], [0.5, 0.4]])
    ode = ODE(LinearField(weight, options.pop("dropout", 0.0)), RK4(6))
    return Flow(Gaussian(2), ode, **options)


def weights(flow: Flow) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in flow.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def exact(steps: int = 300) -> partial[Trainer]:
    """A trainer that brings a linear field to its optimum, to about 1e-4."""
    decay = CosineDecay(final=0.001)
    return partial(Trainer, steps=steps, batch=256, lr=0.05, schedule=decay, progress=False)


@pytest.mark.parametrize("online", [False, True])
def test_one_step_of_a_distilled_linear_flow_is_its_matrix_exponential(online: bool) -> None:
    """x1 = exp(W) x0, so the velocity of one step is (exp(W) - 1) x0."""
    flow = linear()
    fast = distil(flow, 2000, online=online, trainer=exact(), progress=False)
    wanted = torch.linalg.matrix_exp(flow.transport.field.weight) - torch.eye(2)
    assert torch.allclose(fast.transport.field.weight, wanted, atol=2e-3)
    assert fast.transport.solver == Euler(1)
    x0 = torch.randn(50, 2)
    assert torch.allclose(fast.push(x0), flow.push(x0), atol=0.02)
    assert not fast.training


@pytest.mark.parametrize("real", [False, True])
def test_reverse_distillation_encodes_in_one_step(real: bool) -> None:
    """x0 = exp(-W) x1 = x1 - v(1, x1), so v = (1 - exp(-W)) x1; pairs from data say the same."""
    flow = linear()
    data = flow.sample(1000) if real else None
    fast = distil(flow, 2000, reverse=True, real=data, share=1.0, trainer=exact(), progress=False)
    wanted = torch.eye(2) - torch.linalg.matrix_exp(-flow.transport.field.weight)
    assert torch.allclose(fast.transport.field.weight, wanted, atol=2e-3)
    x = flow.sample(50)
    assert torch.allclose(fast.pull(x), flow.pull(x), atol=0.02)


def test_distilling_reflowed_conditions_and_parts_around_the_ode() -> None:
    """Conditions scale W; the parts before and after the ODE stay as they are."""
    ode = ODE(LinearField(torch.tensor([[0.5]])), RK4(20))
    flow = Flow(Gaussian(1), Chain(Affine(2.0), ode, Affine(3.0)), context_shape=(1,))
    context = torch.full((500, 1), 0.7)
    fast = distil(flow, 500, context=context, trainer=exact(), progress=False)
    x0 = torch.randn(20, 1)
    assert torch.allclose(fast.push(x0, context[:20]), 6 * x0 * torch.tensor(0.35).exp(), atol=0.05)


def ring() -> GaussianMixture:
    angle = torch.arange(3) * 2 * torch.pi / 3
    return GaussianMixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.3)


def trained() -> Flow:
    """A flow matched on independent pairs from a normal law to three components."""
    law = ring()
    flow = recipes.cnf(2, hidden_features=(64, 64), frequencies=3, solver=Heun(15))

    def loss(model: Flow, row: Tensor, *, generator: torch.Generator) -> Tensor:
        x1 = law.sample(len(row), generator=generator)
        path, coupling = LinearPath(), IndependentCoupling()
        return matching(model.transport.field, path, coupling, x1, generator=generator)

    Trainer(
        flow, loss, steps=400, batch=256, lr=4e-3, schedule=CosineDecay(20), ema=0.99,
        progress=False,
    ).fit(torch.zeros(256, 1))  # fmt: skip
    return flow.eval()


def test_two_rounds_straighten_and_move_mass_no_further() -> None:
    """Exact rectification raises no transport cost; a trained one may by 2 percent here.

    Independent pairs of these laws cost |x0|^2 + |x1|^2 = 2 + 4.18 on average.
    """
    flow = trained()
    rounds = reflow(
        flow,
        2000,
        rounds=2,
        trainer=partial(Trainer, steps=250, batch=256, lr=2e-3, schedule=CosineDecay(20),
                        ema=0.99, progress=False),
        progress=False,
    )  # fmt: skip
    x0 = torch.randn(2000, 2)
    measures = [path_measures(model, x0, steps=50) for model in (flow, *rounds)]
    costs = [m.transport_cost.item() for m in measures]
    assert costs[0] < 0.8 * (2 + 4.18)
    assert costs[1] < 1.02 * costs[0]
    assert costs[2] < 1.02 * costs[1]
    bends = [m.straightness.item() for m in measures]
    assert bends[1] < 0.25 * bends[0]
    assert bends[2] < 0.25 * bends[0]

    data = ring().sample(1000)
    distance = lambda x: sliced_wasserstein(x, data).item()
    before, after = (by_steps(model, distance, n=1000, steps=(1,)) for model in (flow, rounds[0]))
    assert after[1] < 0.5 * before[1]


def killing(at: int, trainer: partial[Trainer] = quick) -> partial:
    """Make trainers whose losses are killed at the given call of all."""
    calls = 0

    def make(model: nn.Module, loss, *, folder) -> Trainer:
        def counted(*args, **options) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return loss(*args, **options)

        return trainer(model, counted, folder=folder)

    return partial(make)


def test_a_killed_run_goes_on_and_gives_every_bit_of_a_whole_one(tmp_path: Path) -> None:
    """Killed in both trainings and in the making of the second pairs."""
    flow = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
    run = partial(reflow, flow, 60, rounds=2, chunk=20, progress=False)
    whole = run(folder=tmp_path / "whole", trainer=quick)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        run(folder=folder, trainer=killing(13))
    with pytest.raises(Killed):
        run(folder=folder, trainer=killing(30))  # 10 to go, validated, then in the second round
    assert (folder / "round_1/flow.safetensors").exists()
    assert not (folder / "round_2/flow.safetensors").exists()
    note = folder / "round_2/pairs/pairs.json"
    state = json.loads(note.read_text())
    note.write_text(json.dumps({**state, "done": 1}))  # as if killed after the first chunk
    killed = run(folder=folder, trainer=quick)
    assert all(equal(weights(a), weights(b)) for a, b in zip(whole, killed, strict=True))
    assert files(folder) == files(tmp_path / "whole")


def test_finished_rounds_are_read_back_and_more_may_follow(tmp_path: Path) -> None:
    flow = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
    run = partial(reflow, flow, 60, folder=tmp_path, progress=False)
    (first,) = run(trainer=quick)
    (again,) = run(trainer=killing(1))  # nothing is trained
    assert equal(weights(first), weights(again))
    assert not again.training
    one, two = run(rounds=2, trainer=quick)
    assert equal(weights(first), weights(one))
    assert not equal(weights(one), weights(two))


def test_other_work_in_the_folder_is_refused(tmp_path: Path) -> None:
    flow = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
    run = partial(distil, flow, 60, folder=tmp_path, trainer=quick, progress=False)
    run()
    with pytest.raises(CheckpointError, match=r"times was StepTimes\(steps=1, .*, now StepTimes"):
        run(steps=2)
    with pytest.raises(CheckpointError, match=r"error was SquaredError\(\), now PseudoHuber"):
        run(error=PseudoHuber())
    with pytest.raises(CheckpointError, match=r"seed was 0, now 1"):
        run(seed=1)
    with pytest.raises(CheckpointError, match=r"solver was Euler\(steps=4\), now Heun"):
        run(solver=Heun(2))
    other = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
    with pytest.raises(CheckpointError, match=r"\(another teacher\)"):
        distil(other, 60, folder=tmp_path, trainer=quick, progress=False)
    run()


@pytest.mark.parametrize("name", ["checkpoint.pt", "flow.safetensors"])
def test_the_folder_of_another_training_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"belongs to another training, as there is no"):
        distil(linear(), 60, folder=tmp_path, trainer=quick, progress=False)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_mistake_leaves_no_trace_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="takes no context"):
        distil(linear(), 60, context=torch.ones(60, 1), folder=tmp_path, progress=False)
    distil(linear(), 60, folder=tmp_path, trainer=quick, progress=False)


def test_the_teacher_stays_as_it_is_and_dropout_comes_back() -> None:
    flow = linear(dropout=0.5).train()
    before = weights(flow)
    shares: set[tuple[bool, float]] = set()

    def make(model: Flow, loss, *, folder) -> Trainer:
        def seen(model: Flow, *args, **options) -> Tensor:
            shares.add((model.training, model.transport.field.dropout.p))
            return loss(model, *args, **options)

        return quick(model, seen, folder=folder)

    (student,) = reflow(flow, 60, trainer=make, progress=False)
    assert shares == {(True, 0.0), (False, 0.0)}  # in steps and in validations
    assert student.transport.field.dropout.p == 0.5
    assert not student.training
    assert equal(before, weights(flow))
    assert not equal(before, weights(student))
    assert all(module.training for module in flow.modules())
    assert flow.transport.field.weight.grad is None


def test_real_pairs_are_mixed_in_and_stored(tmp_path: Path) -> None:
    flow = linear()
    data = torch.full((40, 2), 5.0)
    found: list[Tensor] = []

    def make(model: Flow, loss, *, folder) -> Trainer:
        def seen(model: Flow, x0: Tensor, x1: Tensor, **options) -> Tensor:
            if model.training:
                found.append(x1)
            return loss(model, x0, x1, **options)

        return quick(model, seen, folder=folder)

    run = partial(reflow, flow, 60, real=data, share=0.25, trainer=make, progress=False)
    run(folder=tmp_path)
    assert all((x1 == 5).all(1).sum() == 8 for x1 in found)
    assert {name.split("/")[1] for name in files(tmp_path) if "npy" in name} == {
        "pairs", "real", "held",
    }  # fmt: skip
    found.clear()
    run(online=True)
    assert all((x1 == 5).all(1).sum() == 8 for x1 in found)
    with pytest.raises(DomainError, match="share must lie above 0 and at most at 1"):
        run(share=0.0)


def test_an_online_teacher_stores_only_what_is_held_out(tmp_path: Path) -> None:
    reflow(linear(), 60, online=True, folder=tmp_path / "a", trainer=quick, progress=False)
    assert [name for name in files(tmp_path / "a") if "npy" in name] == [
        "round_1/held/x0.npy", "round_1/held/x1.npy",
    ]  # fmt: skip
    reflow(linear(), 60, online=True, held=0, folder=tmp_path / "b", trainer=quick, progress=False)
    assert not [name for name in files(tmp_path / "b") if "npy" in name]


def test_rounds_differ_in_their_noise_and_steps_in_their_times(tmp_path: Path) -> None:
    flow = linear()
    with torch.no_grad():
        flow.transport.field.weight.zero_()  # so that x1 = x0 in every round
    still = partial(Trainer, steps=1, lr=1e-9, batch=32, progress=False)
    reflow(flow, 60, rounds=2, folder=tmp_path, trainer=still, progress=False)
    parts = [StoredPairs(tmp_path / f"round_{k}" / name).tensors(slice(None))[0]
             for k in (1, 2) for name in ("pairs", "held")]  # fmt: skip
    rows = torch.cat(parts)
    assert len(rows.unique(dim=0)) == len(rows) == 126

    seen: set[float] = set()

    class Watched(LinearField):
        def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
            if self.training:
                seen.update(t.tolist())
            return super().forward(t, x, context)

    watched = Flow(Gaussian(2), ODE(Watched(torch.zeros(2, 2)), Euler(1)))
    distil(watched, 60, steps=4, trainer=quick, progress=False)
    assert seen == {0.0, 0.25, 0.5, 0.75}
    seen.clear()
    distil(watched, 60, steps=4, reverse=True, trainer=quick, progress=False)
    assert seen == {0.25, 0.5, 0.75, 1.0}


def test_options_out_of_range_are_refused() -> None:
    flow = linear()
    with pytest.raises(DomainError, match="rounds must be at least 1"):
        reflow(flow, 60, rounds=0)
    with pytest.raises(DomainError, match="n must be positive and held not negative"):
        reflow(flow, 60, held=-1)
    with pytest.raises(DomainError, match="feature error compares points at the data"):
        distil(flow, 60, reverse=True, error=FeatureError(torch.tanh))
    with pytest.raises(DomainError, match="exactly one ODE"):
        distil(Flow(Gaussian(2), Affine(2.0)), 60)
