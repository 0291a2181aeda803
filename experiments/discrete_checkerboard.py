"""A checkerboard of tokens: bounds against a floor that is known, and few steps before and after.

    python -m experiments.discrete_checkerboard            # about 25 minutes on two cores
    python -m experiments.discrete_checkerboard --smoke    # the same road in seconds

Two tokens of 128 values; every other square of a 4 x 4 board holds all of the mass, so that no
model can bound -log p below log(8192) / 2 = 4.505 nats per token. Wanted: 0.05 above it at most.
Rows: masks along kappa = t; uniform tokens along kappa = t^2, the problem of flow_matching's
notebook, by the cross-entropy, by our generalised KL, and by the peer's own loss with the same
network, steps and batches; and along the schedule of least kinetic energy. Each posterior is
measured along two paths: the mixture, whose bound stays below for uniform tokens however good the
posterior is, and the noising turned back, where it need not. Then samples in 1 to 64 steps: the
share that lies on the board, and the total variation over cells of 4 x 4 values, before and after
training on the pairs that the flow itself makes (`--pairs`).

Everything lands in runs/discrete_checkerboard/: report.json, board.png, an offline wandb run.

Source: Gat et al. (2024), arXiv 2407.15595; the peer's settings: vocabulary 128, uniform source,
kappa = t^2, batch 4096, 30001 steps, generalised KL 5.3 to 6.4 per token as stored there; Yoo et
al. (2025), Rectified discrete flow, arXiv 2507.15897.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.data import tokens as board
from cflow.field import LinearSchedule, PathSchedule, PolynomialSchedule
from cflow.jump import (
    GeneralisedKL,
    JumpFlow,
    KineticSchedule,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    NoisingPath,
    Posterior,
    TokenMLP,
    jump_matching,
    negative_elbo,
    rectified_matching,
    token_pairs,
)
from cflow.matching import Stratified, UniformTimes
from cflow.plots.figure import figure_of, save_figure
from cflow.train import CosineDecay, Trainer, WandbMonitor

SIZE, CELLS = 128, 8192
FLOOR = math.log(CELLS) / 2  # nats per token
WANTED = 0.05
SQUARE = PolynomialSchedule(2.0)
LATE = Stratified(UniformTimes(0.0, 0.999))  # where the peer stops


@dataclass(frozen=True)
class Method:
    """A base, a schedule and a loss."""

    base: Callable[[], TokenBase]
    schedule: PathSchedule
    loss: str


METHODS = {
    "masks": Method(lambda: MaskTokens(2, SIZE), LinearSchedule(), "bound"),
    "uniform": Method(lambda: UniformTokens(2, SIZE), SQUARE, "cross-entropy"),
    "uniform, KL": Method(lambda: UniformTokens(2, SIZE), SQUARE, "generalised KL"),
    "uniform, kinetic": Method(
        lambda: UniformTokens(2, SIZE), KineticSchedule(1 / SIZE), "cross-entropy"
    ),
    "uniform, flow_matching's loss": Method(
        lambda: UniformTokens(2, SIZE), SQUARE, "flow_matching"
    ),
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/discrete_checkerboard")
    methods: tuple[str, ...] = tuple(METHODS)
    hidden: tuple[int, ...] = (256, 256, 256)
    embedding: int = 64
    optimizer_steps: int = 4000
    points: int = 200_000  # training points
    batch: int = 1024
    lr: float = 2e-3
    ema: float = 0.999
    tested: int = 2000  # points that the bound is measured on
    repeats: int = 256  # moments for each
    drawn: int = 200_000  # samples
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    pairs: int = 400_000  # of the flow's own, for the second training
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    hidden=(16,), embedding=4, optimizer_steps=3, points=500, batch=64, tested=16, repeats=4,
    drawn=500, steps=(1, 4), pairs=128, threads=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-checkerboard", folder=settings.out, settings=shown)
    report: dict[str, Any] = {"settings": shown, "floor": FLOOR, "rows": {}}
    panels: dict[str, Tensor] = {}
    for name in settings.methods:
        if METHODS[name].loss == "flow_matching" and find_spec("flow_matching") is None:
            print(f"{name}: left out, flow_matching is not installed")
            continue
        flow, row = fit(name, settings, monitor)
        report["rows"][name] = row | bounds(flow, settings)
        report["rows"][name]["sampled"] = sampled(flow, settings)
        panels[f"{name}, 8 steps"] = counts(draw(flow, 8, settings))
        say(name, report["rows"][name])
        if name == "uniform" and settings.pairs:
            again, row = rectified(flow, settings, monitor)
            report["rows"]["uniform, rectified"] = row | {"sampled": sampled(again, settings)}
            panels["uniform, 1 step"] = counts(draw(flow, 1, settings))
            panels["rectified, 1 step"] = counts(draw(again, 1, settings))
            say("uniform, rectified", report["rows"]["uniform, rectified"])
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    picture(panels, settings.out / "board.png")
    monitor.finish()
    return report


def build(method: Method, settings: Settings) -> JumpFlow:
    base = method.base()
    network = TokenMLP(
        2, base.states, SIZE, embedding=settings.embedding, hidden_features=settings.hidden
    )
    return JumpFlow(base, NetworkPosterior(network, base, MixturePath(method.schedule)))


def fit(name: str, settings: Settings, monitor: WandbMonitor) -> tuple[JumpFlow, dict[str, Any]]:
    method = METHODS[name]
    torch.manual_seed(settings.seed)
    flow = build(method, settings)
    losses: dict[str, Callable[..., Tensor]] = {
        "bound": negative_elbo,
        "cross-entropy": jump_matching,
        "generalised KL": partial(jump_matching, loss=GeneralisedKL(), times=LATE),
        "flow_matching": theirs,
    }
    loss = losses[method.loss]
    generator = Generator().manual_seed(settings.seed)
    data = board.discrete_checkerboard(settings.points, generator=generator)
    return flow, trained(flow, loss, (data,), settings, monitor, name)


def trained(
    flow: JumpFlow,
    loss: Callable[..., Tensor],
    data: tuple[Tensor, ...],
    settings: Settings,
    monitor: WandbMonitor,
    name: str,
) -> dict[str, Any]:
    began = time.perf_counter()
    Trainer(
        flow,
        loss,
        steps=settings.optimizer_steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=50),
        ema=settings.ema,
        monitor=monitor.stage(name),
        seed=settings.seed,
        progress=False,
    ).fit(data)
    return {"seconds": time.perf_counter() - began}


def theirs(flow: nn.Module, x1: Tensor, *, generator: Generator) -> Tensor:
    """Give flow_matching's generalised KL for the same network, path and times."""
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler

    assert isinstance(flow, JumpFlow)
    assert isinstance(flow.rates, Posterior)
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(n=2.0))
    x0 = flow.base.sample((len(x1),), generator=generator)
    t = torch.rand(len(x1), generator=generator) * 0.999
    point = path.sample(t=t, x_0=x0, x_1=x1)
    logits = flow.rates.logits(t, point.x_t, None)
    loss = MixturePathGeneralizedKL(path=path, reduction="none")
    return loss(logits=logits, x_1=x1, x_t=point.x_t, t=t).mean(-1)


def rectified(
    flow: JumpFlow, settings: Settings, monitor: WandbMonitor
) -> tuple[JumpFlow, dict[str, Any]]:
    """Train a flow like the first on the pairs that it makes in many steps."""
    generator = Generator().manual_seed(settings.seed)
    x0, x1 = token_pairs(
        flow, settings.pairs, sampler=MixtureSteps(max(settings.steps)), generator=generator
    )
    torch.manual_seed(settings.seed)
    again = build(METHODS["uniform"], settings)
    again.load_state_dict(flow.state_dict())
    row = trained(again, rectified_matching, (x1, x0), settings, monitor, "rectified")
    return again, row


def bounds(flow: JumpFlow, settings: Settings) -> dict[str, Any]:
    """Measure minus the bound in nats per token along both paths."""
    x = board.discrete_checkerboard(settings.tested, generator=Generator().manual_seed(1))
    assert isinstance(flow.rates, Posterior)
    assert isinstance(flow.rates.path, MixturePath)
    turned = flow.rates.along(NoisingPath.of(flow.base, flow.rates.path.schedule))
    found = {}
    for name, rates in (("mixture", flow.rates), ("noising", turned)):
        generator = Generator().manual_seed(settings.seed)
        one = flow.with_rates(rates)
        with torch.no_grad():
            value = torch.stack(
                [one.elbo(x, generator=generator) for _ in range(settings.repeats)]
            ).mean(0)
        each = -value / 2
        error = each.std().item() / len(each) ** 0.5
        found[name] = {"nats": each.mean().item(), "error": error}
    return found


def draw(flow: JumpFlow, steps: int, settings: Settings) -> Tensor:
    generator = Generator().manual_seed(settings.seed)
    return flow.sample(settings.drawn, sampler=MixtureSteps(steps), generator=generator)


def sampled(flow: JumpFlow, settings: Settings) -> list[dict[str, float]]:
    rows = []
    for steps in settings.steps:
        x = draw(flow, steps, settings)
        on = torch.isfinite(board.discrete_checkerboard_log_prob(x)).double().mean().item()
        p = counts(x) / len(x)
        real = board.discrete_checkerboard(len(x), generator=Generator().manual_seed(2))
        q = counts(real) / len(x)
        rows.append({"steps": steps, "on": on, "apart": 0.5 * (p - q).abs().sum().item()})
    return rows


def counts(x: Tensor) -> Tensor:
    """Count samples in cells of 4 x 4 values, `(32, 32)`."""
    cell = x // 4
    return torch.bincount(cell[:, 0] * 32 + cell[:, 1], minlength=1024).double().view(32, 32)


def say(name: str, row: dict[str, Any]) -> None:
    parts = [
        f"{path} {row[path]['nats'] - FLOOR:+.4f} +- {row[path]['error']:.4f}"
        for path in ("mixture", "noising")
        if path in row
    ]
    parts += [
        f"{r['steps']} steps: {r['on']:.3f} on, {r['apart']:.3f} apart" for r in row["sampled"]
    ]
    print(f"{name}: above the floor: {'; '.join(parts)} ({row['seconds']:.0f} s)", flush=True)


def picture(panels: dict[str, Tensor], path: Path) -> None:
    figure = figure_of((2.2 * len(panels), 2.4))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for (name, count), ax in zip(panels.items(), axes, strict=True):
        ax.imshow(count.T.numpy(), origin="lower", cmap="Blues", vmin=0)
        ax.set_title(name, fontsize=7)
        ax.set_xticks([])
        ax.set_yticks([])
    save_figure(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Settings))
