"""The training loop: it learns, resumes bit for bit, stops in words, and loses nothing."""

import time
import warnings
from itertools import pairwise
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch
from killed_training import main as train
from torch import Tensor, nn

from cflow import archive, nll, recipes
from cflow.errors import CheckpointError, DomainError, ShapeError, TrainingError
from cflow.ode import RK4
from cflow.train import (
    ConstantRate,
    CosineDecay,
    PolynomialDecay,
    Trainer,
    WandbMonitor,
)
from cflow.train.batches import batches


def target(n: int = 400) -> Tensor:
    return torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(n, 2)


def small(**options) -> Trainer:
    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
    return Trainer(flow, nll, **{"steps": 20, "batch": 50, "progress": False, **options})


def test_a_flow_learns_the_entropy_of_its_data() -> None:
    """N(m, 0.5^2) in two dimensions has entropy 1 + log(2 pi) - 2 log 2 = 1.4516 nats."""
    trainer = small(steps=300, batch=200, lr=1e-2, ema=0.95, validate_every=50)
    trainer.model.initialize(target())
    result = trainer.fit(target(4000), target(4000))
    assert result.best_value == pytest.approx(1.4516, abs=0.08)
    assert not trainer.model.training


def checkpoint_step(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


def start(folder: Path, forked: ForkServerContext, *, slow: bool = False) -> ForkServerProcess:
    """Train in a process of its own, from where the folder stands."""
    process = forked.Process(target=train, args=(str(folder),), kwargs={"slow": slow})
    process.start()
    return process


def finish(folder: Path, forked: ForkServerContext) -> dict[str, Tensor]:
    """Train to the end and return the weights."""
    process = start(folder, forked)
    process.join()
    assert process.exitcode == 0
    return archive.read(folder / "flow.safetensors")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, forked: ForkServerContext) -> dict[str, Tensor]:
    """The weights of a training that nobody disturbed."""
    return finish(tmp_path_factory.mktemp("whole"), forked)


@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    kills: int, whole: dict[str, Tensor], forked: ForkServerContext, tmp_path: Path
) -> None:
    for k in range(kills):
        process = start(tmp_path, forked, slow=True)
        deadline = time.monotonic() + 60
        while checkpoint_step(tmp_path) < 30 + 30 * k and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.013 * k)  # anywhere between two checkpoints, or within one
        assert process.is_alive(), "the run ended before it could be killed"
        process.kill()
        process.join()
    assert 30 <= checkpoint_step(tmp_path) < 200
    resumed = finish(tmp_path, forked)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    data = target()
    trainer = small(folder=tmp_path)
    assert trainer.fit(data).step == 20
    weights = [p.clone() for p in trainer.model.parameters()]
    again = small(folder=tmp_path)
    assert again.fit(data).step == 20
    assert all(torch.equal(a, b) for a, b in zip(weights, again.model.parameters(), strict=True))


def test_resuming_under_other_settings_warns(tmp_path: Path) -> None:
    data = target()
    small(folder=tmp_path).fit(data)
    with pytest.warns(UserWarning, match="resuming a training with other settings"):
        assert small(folder=tmp_path, steps=30).fit(data).step == 30


def test_the_first_bad_loss_stops_with_its_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def breaks(flow, x: Tensor, *, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        return nll(flow, x) * (float("nan") if calls == 13 else 1.0)

    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
    trainer = Trainer(flow, breaks, steps=20, folder=tmp_path, checkpoint_every=5, progress=False)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 12; .*checkpoint\.pt"):
        trainer.fit(target())
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 10
    assert all(bool(torch.isfinite(w).all()) for w in kept["model"].values())
    assert trainer.fit(target()).step == 20  # and it can go on from there


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    layer = nn.Linear(1, 1)
    bad_slope = lambda model, x, *, generator: torch.sqrt(model(x).square() * 0.0)
    with pytest.raises(TrainingError, match="the gradient's norm is nan at step 0"):
        Trainer(layer, bad_slope, steps=2, progress=False).fit(torch.ones(4, 1))
    assert bool(torch.isfinite(layer.weight).all())


def test_a_validation_that_is_not_finite_stops_too() -> None:
    layer = nn.Linear(1, 1)
    loss = lambda model, x, *, generator: model(x).square() + (0.0 if model.training else torch.inf)
    with pytest.raises(TrainingError, match="the validation loss is inf at step 3"):
        Trainer(layer, loss, steps=9, validate_every=3, progress=False).fit(
            torch.ones(4, 1), torch.ones(4, 1)
        )


def test_patience_ends_the_training_and_the_best_weights_stay() -> None:
    """Steps that only make it worse: the loss trained is the negative of the one validated."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)

    def loss(model: nn.Module, x: Tensor, *, generator: torch.Generator) -> Tensor:
        sign = -1.0 if model.training else 1.0
        return sign * (model.weight - 0.5).square().sum() * torch.ones(len(x))

    trainer = Trainer(
        layer, loss, steps=1000, lr=0.05, validate_every=10, patience=3, progress=False
    )
    result = trainer.fit(torch.ones(8, 1), torch.ones(8, 1))
    assert result.stopped_early
    assert result.step == 40
    assert result.best_step == 10


def test_averaged_weights_are_kept_where_there_is_no_validation() -> None:
    first, averaged = small(steps=5, lr=0.1), small(steps=5, lr=0.1, ema=0.9)
    averaged.model.load_state_dict(first.model.state_dict())
    data = target()
    first.fit(data)
    averaged.fit(data)
    gaps = [
        (a - b).abs().max()
        for a, b in zip(first.model.parameters(), averaged.model.parameters(), strict=True)
    ]
    assert max(gaps) > 1e-3


def test_contexts_and_datasets_train_as_well() -> None:
    flow = recipes.realnvp(2, 3, transforms=2, hidden_features=(8,))
    x, c = target(), torch.randn(400, 3)
    pairs = torch.utils.data.TensorDataset(x, c)
    for data in ((x, c), pairs):
        result = Trainer(flow, nll, steps=9, batch=150, validate_every=3, progress=False).fit(
            data, data
        )
        assert result.step == 9
        assert result.best_value is not None
    tensors, items = batches((x, c), 64, seed=0, start=3), batches(pairs, 64, seed=0, start=3)
    for _ in range(8):
        assert all(torch.equal(a, b) for a, b in zip(next(tensors), next(items), strict=True))


def test_every_epoch_sees_every_example_once() -> None:
    source = batches(torch.arange(100), 10, seed=4)
    epochs = [torch.cat([next(source)[0] for _ in range(10)]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(100)) for epoch in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (CosineDecay(warmup=10, final=0.1), 0.1),
        (PolynomialDecay(warmup=10, power=2.0, final=0.1), 0.1),
        (ConstantRate(warmup=10), 1.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_schedules_rise_then_fall(schedule, end: float) -> None:
    factors = [schedule.factor(k, 100) for k in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(end)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_the_rate_the_optimiser_sees_follows_the_schedule() -> None:
    trainer = small(steps=40, log_every=1, lr=0.01, schedule=CosineDecay(warmup=4))
    rates = [entry["rate"] for entry in trainer.fit(target()).history]
    assert rates == pytest.approx([0.01 * trainer.schedule.factor(k, 40) for k in range(40)])


def test_a_second_fit_starts_at_the_full_rate_again() -> None:
    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.01)
    trainer = Trainer(
        flow, nll, steps=5, log_every=1, optimizer=optimizer, schedule=CosineDecay(), progress=False
    )
    first = [entry["rate"] for entry in trainer.fit(target()).history]
    assert [entry["rate"] for entry in trainer.fit(target()).history] == first
    assert first[0] == 0.01


def test_bad_input_is_refused_in_words(tmp_path: Path) -> None:
    bad = target()
    bad[7, 1] = torch.nan
    with pytest.raises(DomainError, match=r"data must be finite, got nan at index \(7, 1\)"):
        small().fit(bad)
    with pytest.raises(DomainError, match="validation"):
        small().fit(target(), bad)
    with pytest.raises(ShapeError, match="data is empty"):
        small().fit(torch.zeros(0, 2))
    with pytest.raises(ShapeError, match="one length"):
        small().fit((target(400), torch.zeros(399, 1)))
    with pytest.raises(DomainError, match="steps must be positive"):
        small(steps=0)
    with pytest.raises(DomainError, match="ema must lie in"):
        small(ema=1.0)
    frozen = small()
    frozen.model.requires_grad_(requires_grad=False)
    with pytest.raises(DomainError, match="no parameter that requires a gradient"):
        frozen.fit(target())
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        small(folder=tmp_path / "file" / "run").fit(target())


def test_checkpoints_that_do_not_fit_are_refused_and_kept(tmp_path: Path) -> None:
    small(folder=tmp_path).fit(target())
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    other = Trainer(recipes.realnvp(2, transforms=3), nll, folder=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="weights of another model"):
        other.fit(target())
    with pytest.raises(CheckpointError, match="holds an earlier training"):
        small(folder=tmp_path).fit(target(), resume=False)
    with pytest.raises(CheckpointError, match="without averaged weights"):
        small(folder=tmp_path, ema=0.9).fit(target())
    assert path.read_bytes() == whole
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
            small(folder=tmp_path).fit(target())
        assert path.read_bytes() == broken


class Bomb:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (Path("/tmp/cflow-was-here").touch, ())


def test_a_checkpoint_cannot_execute_anything(tmp_path: Path) -> None:
    torch.save({"step": 1, "model": Bomb(), "optimizer": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        small(folder=tmp_path).fit(target())
    assert not Path("/tmp/cflow-was-here").exists()


def test_wandb_records_offline_without_an_account(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monitor = WandbMonitor("cflow-test", folder=tmp_path)
    small(monitor=monitor.stage("first"), log_every=5).fit(target())
    monitor.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_wandb_failure_never_ends_a_training(tmp_path: Path, monkeypatch) -> None:
    import wandb

    def fails(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(wandb, "init", fails)
    with pytest.warns(UserWarning, match="wandb init failed.*no space left"):
        monitor = WandbMonitor("cflow-test", folder=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small(monitor=monitor, log_every=5).fit(target()).step == 20

    class Broken:
        def log(self, *args, **kwargs):
            raise ConnectionError("gone")

    monkeypatch.setattr(wandb, "init", lambda **options: Broken())
    monitor = WandbMonitor("cflow-test", folder=tmp_path)
    with pytest.warns(UserWarning, match="wandb log failed.*gone"):
        assert small(monitor=monitor, log_every=5).fit(target()).step == 20


def test_wandb_can_be_disabled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = WandbMonitor("cflow-test", folder=tmp_path)
        assert small(monitor=monitor, log_every=5).fit(target()).step == 20
        monitor.finish()
    assert not list(tmp_path.glob("wandb/offline-run-*"))


def test_field_evaluations_are_reported_where_the_loss_solves_an_ode() -> None:
    flow = recipes.exact_cnf(2, hidden_features=(8, 8), solver=RK4(3), blocks=2)
    trainer = Trainer(flow, nll, steps=2, batch=50, log_every=1, progress=False)
    history = trainer.fit(target(100), target(100)).history
    steps = [figures for figures in history if "loss" in figures]
    assert [(figures["nfe_forward"], figures["nfe_backward"]) for figures in steps] == [(24, 0)] * 2
    assert all("nfe_forward" not in figures for figures in small(steps=2).fit(target()).history)
    regression = Trainer(flow, lambda f, x, generator: f.base.log_prob(x) + sum(
        p.sum() for p in f.parameters()
    ), steps=1, batch=50, progress=False)  # fmt: skip
    assert all("nfe_forward" not in figures for figures in regression.fit(target()).history)


def test_a_training_whose_time_is_up_ends_as_if_its_steps_were_over(
    tmp_path: Path, monkeypatch
) -> None:
    """The clock is told, not awaited: each look at it finds a second gone."""
    ticks = iter(range(1000))
    monkeypatch.setattr("cflow.train.loop.now", lambda: float(next(ticks)))
    options = {"folder": tmp_path, "time_limit": 5.0, "checkpoint_every": 100, "steps": 12}
    result = small(**options).fit(target(), target())
    assert result.step == 5
    assert not result.stopped_early
    assert [f["step"] for f in result.history if "validation" in f] == [5]
    assert checkpoint_step(tmp_path) == 5
    assert small(**options).fit(target(), target()).step == 10  # the whole time again
    assert small(**options).fit(target(), target()).step == 12
    with pytest.raises(DomainError, match="time_limit must be positive"):
        small(time_limit=0.0)


def test_the_rate_falls_with_the_clock_where_it_ends_the_training(monkeypatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("cflow.train.loop.now", lambda: float(next(ticks)))
    schedule = PolynomialDecay(final=0.2)
    trainer = small(steps=10_000, time_limit=4.0, schedule=schedule, lr=1.0, log_every=1)
    rates = [f["rate"] for f in trainer.fit(target()).history]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4])
