"""What each recipe costs and gives on one table: the figures behind docs/choosing.md.

    python -m experiments.choosing            # about half an hour on two cores
    python -m experiments.choosing --smoke    # the same road in seconds

Every recipe is trained by maximum likelihood on the same fold of the same table for the same number
of steps, with the same trainer, on one thread. Reported are the test log-likelihood of the best
validation, the time of its training, parameters, the memory of one training step beyond the
weights (`cflow.testing.peak_bytes`), and the time of `log_prob` and of `sample` for 1000 points.
Everything lands in runs/choosing/report.json, the table also in runs/choosing/table.md.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from cflow import Flow, nll, recipes
from cflow.data import tables
from cflow.ode import RK4
from cflow.testing import peak_bytes
from cflow.train import CosineDecay, Trainer
from experiments.benchmarks.measure import interleave

HIDDEN = (128, 128)
RECIPES: dict[str, Callable[[int], Flow]] = {
    "nice": lambda d: recipes.nice(d, hidden_features=HIDDEN),
    "realnvp": lambda d: recipes.realnvp(d, hidden_features=HIDDEN),
    "maf": lambda d: recipes.maf(d, hidden_features=HIDDEN),
    "iaf": lambda d: recipes.iaf(d, transforms=5, hidden_features=HIDDEN),
    "flowpp": lambda d: recipes.flowpp(d, hidden_features=HIDDEN),
    "nsf, coupling": lambda d: recipes.nsf(
        d, kind="coupling", transforms=8, hidden_features=HIDDEN, normalize=True
    ),
    "nsf, autoregressive": lambda d: recipes.nsf(d, hidden_features=HIDDEN),
    "naf": lambda d: recipes.naf(d, transforms=3, hidden_features=HIDDEN),
    "umnn": lambda d: recipes.umnn(d, transforms=3, hidden_features=HIDDEN),
    "bernstein": lambda d: recipes.bernstein(d, transforms=3, hidden_features=HIDDEN),
    "gaussianization": lambda d: recipes.gaussianization(d),
    "residual": lambda d: recipes.residual(d, transforms=6, hidden_features=HIDDEN),
    "invertible_densenet": lambda d: recipes.invertible_densenet(d, transforms=6),
    "exact_cnf": lambda d: recipes.exact_cnf(d, hidden_features=HIDDEN, solver=RK4(4)),
    "ffjord": lambda d: recipes.ffjord(d, hidden_features=HIDDEN, solver=RK4(4)),
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/choosing")
    table: str = "parkinsons"
    fold: int = 1
    recipes: tuple[str, ...] = tuple(RECIPES)
    steps: int = 1000  # optimiser steps
    batch: int = 256
    lr: float = 2e-3
    points: int = 1000  # of the timed calls
    repeats: int = 5
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, table="red", steps=3, batch=32, points=16, repeats=2)
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    split = tables.fold(tables.load(settings.table), settings.fold)
    train, validation, test = (part.float() for part in split)
    report: dict[str, Any] = {
        "settings": asdict(settings) | {"out": str(settings.out)},
        "results": {},
    }
    for name in settings.recipes:
        report["results"][name] = measure(name, train, validation, test, settings)
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{name:22s} {report['results'][name]}", flush=True)
    (settings.out / "table.md").write_text(table(report["results"]))
    return report


def measure(
    name: str, train: Tensor, validation: Tensor, test: Tensor, settings: Settings
) -> dict[str, Any]:
    torch.manual_seed(settings.seed)
    flow = RECIPES[name](train.shape[1])
    flow.initialize(train)
    batch = train[: settings.batch]
    generator = Generator().manual_seed(settings.seed)
    memory = peak_bytes(lambda: nll(flow, batch, generator=generator).mean().backward())
    start = time.perf_counter()
    Trainer(
        flow,
        nll,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=20, final=0.02),
        clip=5.0,
        ema=0.99,
        validate_every=50,
        seed=settings.seed,
        progress=False,
    ).fit(train, validation)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        value = flow.log_prob(test, generator=generator)
        points = flow.sample(settings.points, generator=generator)
        calls = {
            "log_prob": lambda: flow.log_prob(points, generator=generator),
            "sample": lambda: flow.sample(settings.points, generator=generator),
        }
        clock = interleave(calls, settings.repeats)
    return {
        "likelihood": flow.likelihood,
        "log_prob": value.mean().item(),
        "error": value.std().item() / len(value) ** 0.5,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "memory": memory,
        **{f"{name}_seconds": statistics.median(times) for name, times in clock.items()},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| recipe | likelihood | test log p, nats | training | parameters | memory of a step | "
        "`log_prob` of 1000 | `sample` of 1000 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        lines.append(
            f"| `{name}` | {found['likelihood']} | {found['log_prob']:.2f} +- {found['error']:.2f} "
            f"| {found['seconds']:.0f} s | {found['parameters'] / 1e3:.0f} k "
            f"| {found['memory'] / 2**20:.0f} MiB | {1e3 * found['log_prob_seconds']:.1f} ms "
            f"| {1e3 * found['sample_seconds']:.1f} ms |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
