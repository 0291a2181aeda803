"""Text by jumps: a masked flow of characters, its bound in nats, samples, infilling, guidance.

    python -m experiments.text            # 30 minutes of training on two cores, 15 of looks
    python -m experiments.text --smoke    # the same road in seconds
    python -m experiments.text --weights runs/text/flow.safetensors    # looks alone

A transformer learns tiny Shakespeare (1115394 characters, alphabet 65) from masks: windows of 256
characters from the first 90 %, all tokens masked at t = 0, the loss is the bound itself. The figure
is minus the bound in nats per character on the last 10 %, cut into windows that know nothing of
each other. Wanted: 2.0, aiming at 1.85. Beside it stand a small autoregressive transformer on a GPU
(1.47, recalled of nanoGPT) and n-gram models of the same split, which this script fits.

Then 8 to 256 steps draw windows, whose letters, trigrams and words are held against the text;
windows with a gap are filled; and a predictor that counts characters steers towards changes of the
speaker. No choice was made on the last 10 %: weights are the last ones, and the curve is a look.

Everything lands in runs/text/: report.json, flow.safetensors, samples.txt, curve.png, an offline
wandb run.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import JumpFlow, load, recipes
from cflow.data import text
from cflow.jump import negative_elbo
from cflow.plots.figure import COLOURS, figure_of, save_figure
from cflow.train import CosineDecay, Trainer, WandbMonitor, muon
from experiments.text_looks import fill, ngrams, steer, steps


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/text")
    weights: Path | None = None  # of an earlier training, which is then left out
    file: Path | None = None  # a text of one's own instead
    minutes: float = 30.0  # of training
    optimizer_steps: int = 100_000  # at most
    length: int = 256  # characters of a window
    batch: int = 16  # windows in a step
    width: int = 256
    layers: int = 6
    heads: int = 4
    lr: float = 0.02  # of matrices, by Muon
    rest: float = 3e-3  # of everything else, by AdamW
    repeats: int = 16  # moments for each window of the bound
    look_every: int = 250  # optimiser steps between points of the curve
    looked: int = 64  # windows of each
    drawn: int = 64  # windows for each number of steps
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    bfloat16: bool = True  # products of matrices in half precision
    compiled: bool = True  # for training; needs a C++ compiler
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    optimizer_steps=3, batch=4, width=16, layers=1, heads=2, length=32, repeats=2, look_every=2,
    looked=4, drawn=4, steps=(2, 4), compiled=False, threads=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    corpus = text.shakespeare() if settings.file is None else text.read(settings.file)
    train, test = corpus.train, corpus.test
    if settings.smoke:
        train, test = train[:4000], test[:400]
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    report: dict[str, Any] = {"settings": shown}
    windows = text.windows(test, settings.length)
    weights = settings.weights or settings.out / "flow.safetensors"
    if settings.weights is None:
        flow = build(len(corpus.vocabulary), settings)
        report["training"] = fit(flow, train, windows, settings, shown)
        flow.save(weights)
    flow = load(weights, JumpFlow)
    report["parameters"] = sum(p.numel() for p in flow.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        report["bound"] = bound(flow, windows, settings)
        report["ngrams"] = ngrams(train, test, len(corpus.vocabulary))
        write(report, settings)
        report["steps"] = steps(flow, corpus, train, test, settings)
        report["infilling"] = fill(flow, corpus, windows, settings)
        report["guidance"] = steer(flow, corpus, train, settings)
    write(report, settings)
    return report


def build(vocabulary: int, settings: Settings) -> JumpFlow:
    return recipes.token_transformer(
        settings.length,
        vocabulary,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
    )


def fit(
    flow: JumpFlow, train: Tensor, windows: Tensor, settings: Settings, shown: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on all windows of the text, wherever they begin."""
    if settings.compiled:
        flow.rates.get_submodule("network").compile()
    monitor = WandbMonitor("cflow-text", folder=settings.out, settings=shown)
    curve: list[dict[str, float]] = []
    began = time.perf_counter()

    def look(model: nn.Module, *, generator: Generator) -> dict[str, float]:
        value = loss(model, windows[: settings.looked], generator=generator, settings=settings)
        point = {"seconds": time.perf_counter() - began, "bound": value.mean().item()}
        curve.append(point)
        print(f"{point['seconds']:6.0f} s  {point['bound']:.3f} nats per character", flush=True)
        return {"test_bound": point["bound"]}

    trainer = Trainer(
        flow,
        partial(loss, settings=settings),
        steps=settings.optimizer_steps,
        batch=settings.batch,
        optimizer=muon(flow, lr=settings.lr, rest=settings.rest),
        schedule=CosineDecay(warmup=50, final=0.02),
        clip=1.0,
        validate_every=settings.look_every,
        watch=(look,),
        monitor=monitor,
        seed=settings.seed,
        time_limit=60 * settings.minutes,
        progress=False,
    )
    result = trainer.fit(train.unfold(0, settings.length, 1))
    monitor.finish()
    picture(curve, settings)
    return {"steps": result.step, "seconds": time.perf_counter() - began, "curve": curve}


def loss(flow: nn.Module, x: Tensor, *, generator: Generator, settings: Settings) -> Tensor:
    """Give minus the bound in nats per character, with products in half precision."""
    assert isinstance(flow, JumpFlow)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        return negative_elbo(flow, x, generator=generator)


def bound(flow: JumpFlow, windows: Tensor, settings: Settings) -> dict[str, float]:
    """Measure minus the bound in nats per character over all windows, and its standard error."""
    generator = Generator().manual_seed(settings.seed)
    began, values = time.perf_counter(), []
    with torch.no_grad():
        for rows in windows.split(64):
            passes = [flow.elbo(rows, generator=generator) for _ in range(settings.repeats)]
            values.append(torch.stack(passes).mean(0))
    each = -torch.cat(values) / settings.length
    mean, error = each.mean().item(), (each.std() / len(each) ** 0.5).item()
    print(f"bound {mean:.4f} +- {error:.4f} nats per character over {len(each)} windows")
    return {
        "nats": mean,
        "error": error,
        "windows": len(each),
        "seconds": time.perf_counter() - began,
    }


def picture(curve: list[dict[str, float]], settings: Settings) -> None:
    """Draw the bound against the time of training."""
    figure = figure_of((5, 3.2))
    ax = figure.subplots()
    ax.plot([p["seconds"] / 60 for p in curve], [p["bound"] for p in curve], color=COLOURS[0])
    ax.axhline(2.0, color="0.6", linestyle="--", linewidth=1)
    ax.set_xlabel("minutes of training on two cores")
    ax.set_ylabel("minus the bound, nats per character")
    save_figure(figure, settings.out / "curve.png")


def write(report: Mapping[str, Any], settings: Settings) -> None:
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
