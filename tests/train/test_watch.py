"""Watches: what they see is right, they raise the alarm, and the training never feels them."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cflow import Flow, nll, recipes
from cflow.base import Gaussian
from cflow.errors import DomainError, TrainingError
from cflow.nets import MLP
from cflow.train import (
    LayerStatistics,
    Reconstruction,
    ScaleSaturation,
    Trainer,
    WandbMonitor,
    Watch,
    for_images,
    for_inference,
    for_tables,
)
from cflow.transport import (
    Affine,
    AffineMap,
    Chain,
    CouplingLayer,
    Dequantize,
    Inverse,
    Layer,
    Logit,
)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def flow_of(scale: float = 0.3) -> Flow:
    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,), dropout=0.1)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=scale)
    return flow.eval()


def all_watches() -> list[Watch]:
    x = torch.randn(50, 2)
    return [LayerStatistics(x), Reconstruction(x), ScaleSaturation(x)]


def test_a_watched_training_ends_bit_for_bit_as_an_unwatched_one() -> None:
    data, weights, histories = torch.randn(200, 2), [], []
    noisy = lambda flow, x, *, generator: nll(
        flow, x + 0.1 * torch.randn(x.shape, generator=generator) + 0.1 * torch.randn_like(x)
    )
    watches = all_watches()
    for watch in ((), watches):
        torch.manual_seed(1)
        flow = flow_of()
        trainer = Trainer(
            flow, noisy, steps=13, batch=50, validate_every=3, watch=watch, progress=False
        )
        histories.append(trainer.fit(data).history)
        weights.append([p.detach().clone() for p in flow.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    seen = [entry for entry in histories[1] if "reconstruction" in entry]
    assert [entry["step"] for entry in seen] == [3, 6, 9, 12, 13]
    assert {"saturated_scales", "ladj/0 inverse CouplingLayer/mean"} <= seen[0].keys()
    assert histories[0] == [entry for entry in histories[1] if entry not in seen]


def test_modes_and_random_state_are_left_as_they_were() -> None:
    from cflow.train.watch import observe

    flow = flow_of().train()
    flow.transport.eval()
    watches = all_watches()
    state = torch.get_rng_state()
    found = observe(watches, flow, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert flow.training
    assert not any(m.training for m in flow.transport.modules())
    assert len(found) > 3
    drawing = lambda model, *, generator: {"noise": torch.randn(()).item()}
    observe([drawing], flow, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_layer_statistics_sum_to_the_log_determinant() -> None:
    flow, x = flow_of(), torch.randn(64, 2)
    with torch.no_grad():
        figures = LayerStatistics(x)(flow, generator=seeded())
        state, _ = flow.pull_state(x)
    assert state.ladj is not None
    means = [value for name, value in figures.items() if name.endswith("/mean")]
    assert len(means) == 4  # two couplings and two ActNorms
    assert sum(means) == pytest.approx(state.ladj.mean().item())
    known = Flow(Gaussian(2), Chain(Chain(Affine(2.0)), Affine(torch.tensor([1.0, -4.0]))))
    found = LayerStatistics(x)(known, generator=seeded())
    assert found["ladj/0 Affine/mean"] == pytest.approx(-2 * math.log(2))
    assert found["ladj/1 Affine/max"] == pytest.approx(math.log(4))
    assert found["ladj/1 Affine/std"] == 0


class Leaky(Layer):
    """A map whose pull is off by a known error."""

    def __init__(self, error: float) -> None:
        super().__init__(event_dim=0)
        self.error = error

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool):
        return x + self.error, None

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool):
        return y, None


def test_reconstruction_warns_and_then_ends_the_training() -> None:
    x = torch.randn(10, 2)
    look = lambda error, **options: Reconstruction(x, **options)(
        Flow(Gaussian(2), Chain(Leaky(error))), generator=seeded()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(1e-6)["reconstruction"] == pytest.approx(1e-6)
        assert look(1e-4, scale=100.0)["reconstruction"] == pytest.approx(1e-6)
    with pytest.warns(UserWarning, match=r"errs by 0\.0001, above 1e-05"):
        look(1e-4)
    with pytest.raises(TrainingError, match=r"errs by 0\.01, above 0\.001"):
        look(1e-2)
    with pytest.raises(TrainingError, match="errs by nan"):
        look(math.nan)
    trainer = Trainer(
        Flow(Gaussian(2), Chain(Leaky(1.0), CouplingLayer([True, False], MLP(1, 2)))),
        nll,
        steps=9,
        validate_every=4,
        watch=[Reconstruction(x)],
        progress=False,
    )
    with pytest.raises(TrainingError, match="errs by"):
        trainer.fit(x)


def test_reconstruction_leaves_the_dequantisation_out() -> None:
    part = CouplingLayer([True, False], MLP(1, 2))
    flow = Flow(Gaussian(2), Chain(part, Inverse(Logit()), Dequantize(5)))
    figure = Reconstruction(torch.randint(5, (30, 2)))(flow, generator=seeded())
    assert 0 < figure["reconstruction"] < 1e-12


def test_saturated_scales_are_counted() -> None:
    layer = CouplingLayer([True, False], MLP(1, 2, hidden_features=()), AffineMap(bound=2.0))
    flow, x = Flow(Gaussian(2), Chain(layer)), torch.linspace(-3, 3, 101)[:, None].expand(101, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.0)
    assert ScaleSaturation(x)(flow, generator=seeded())["saturated_scales"] == 0
    next(p for p in layer.parameters() if p.shape == (2, 1)).data.fill_(5.0)
    # |2 tanh(5 x / 2)| > 1.9 where |x| > artanh(0.95) 2 / 5 = 0.7327, 25 steps of 0.03 on a side
    share = ScaleSaturation(x)(flow, generator=seeded())["saturated_scales"]
    assert share == pytest.approx((x[:, 0].abs() > 0.7327).double().mean().item())
    assert 0.7 < share < 0.8
    assert layer.univariate == AffineMap(bound=2.0)  # as it was


def test_watches_refuse_what_they_cannot_see() -> None:
    with pytest.raises(DomainError, match="no layer with an AffineMap"):
        ScaleSaturation(torch.zeros(1, 2))(Flow(Gaussian(2), Affine()), generator=seeded())
    with pytest.raises(DomainError, match="watches a Flow, got Linear"):
        LayerStatistics(torch.zeros(1, 2))(nn.Linear(1, 1), generator=seeded())
    with pytest.raises(DomainError, match="alarm must be positive"):
        Reconstruction(torch.zeros(1, 2), alarm=0.0)


def test_figures_reach_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monitor = WandbMonitor("watched", folder=tmp_path)
    sent: list[dict[str, float]] = []
    record = monitor.record
    monkeypatch.setattr(monitor, "record", lambda values: (sent.append(values), record(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(
            flow_of(),
            nll,
            steps=4,
            validate_every=2,
            watch=all_watches(),
            monitor=monitor,
            progress=False,
        ).fit(torch.randn(50, 2))
        monitor.finish()
    assert sum("reconstruction" in values for values in sent) == 2
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_presets_have_their_settings() -> None:
    flow = flow_of()
    images = for_images(flow, examples=640, epochs=20)
    assert (images.steps, images.batch, images.clip) == (200, 64, 1.0)
    rates = [images.lr * images.schedule.factor(k, images.steps) for k in (49, 50, 200)]
    assert rates == pytest.approx([1e-3 * 50 / 51, 1e-3, 1e-4])
    tables = for_tables(flow, examples=2560, epochs=4)
    assert (tables.steps, tables.batch, tables.lr, tables.validate_every) == (40, 256, 5e-4, 10)
    inference = for_inference(flow, Gaussian(2).log_prob, steps=3)
    assert inference.lr == 1e-3
    assert inference.fit(torch.zeros(1)).step == 3
    with pytest.raises(DomainError, match="examples must be positive"):
        for_tables(flow, examples=0)
