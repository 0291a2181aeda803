"""Log-likelihoods of fields trained by flow matching, on laws whose entropy is known.

    python -m experiments.likelihood            # about fifteen minutes on one core
    python -m experiments.likelihood --smoke    # the same road in seconds

A field of 3 x 256 regresses the velocity of the linear path on independent pairs, and again with
each target averaged over the batch, which takes most of the noise out of it (`--methods ot` is for
optimal transport in the batch). No likelihood enters the training; afterwards `flow.log_prob`
solves the ODE with the exact divergence. The figure is the Kullback-Leibler divergence
E[log p(x) - log q(x)] in nats over new points, with its standard error: the test negative
log-likelihood minus the entropy. Wanted: at most 0.03 on eight Gaussians, 0.10 on the checkerboard,
0.05 on scikit-learn's moons at their own scale (noise 0.1, entropy 1.008).

Everything lands in runs/likelihood/: report.json, densities.png, an offline wandb run.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from cflow import Flow, recipes
from cflow.data import toy
from cflow.matching import Coupling, IndependentCoupling, LinearPath, OTCoupling, matching
from cflow.ode import Dopri5
from cflow.train import CosineDecay, Trainer, WandbMonitor

LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "eight_gaussians": toy.eight_gaussians_log_prob,
    "checkerboard": toy.checkerboard_log_prob,
    "moons_unscaled": toy.moons_unscaled_log_prob,
}
WANTED = {"eight_gaussians": 0.03, "checkerboard": 0.10, "moons_unscaled": 0.05}
METHODS: dict[str, tuple[Coupling, bool]] = {  # the coupling, and whether targets are averaged
    "independent": (IndependentCoupling(), False),
    "averaged": (IndependentCoupling(), True),
    "ot": (OTCoupling(), False),
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/likelihood")
    laws: tuple[str, ...] = tuple(LAWS)
    methods: tuple[str, ...] = ("independent", "averaged")
    hidden: tuple[int, ...] = (256, 256, 256)
    frequencies: int = 8  # of time
    steps: int = 16_000  # optimiser steps
    batch: int = 512
    lr: float = 6e-3
    ema: float = 0.999
    tested: int = 10_000  # points that judge
    tolerance: float = 1e-5  # of the solve that gives the likelihood, absolute and relative
    threads: int = 1  # more do not pay at this size
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, steps=5, batch=64, tested=40, hidden=(16, 16))
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "results": {}}
    monitor = WandbMonitor("cflow-likelihood", folder=settings.out, settings=shown)
    trained: dict[tuple[str, str], Flow] = {}
    for law in settings.laws:
        for name in settings.methods:
            flow, figures = fit(law, name, settings, monitor)
            trained[law, name] = flow
            report["results"][f"{law}, {name}"] = figures
            (settings.out / "report.json").write_text(json.dumps(report, indent=1))
            print(
                f"{law:16s} {name:12s} NLL - entropy {figures['kl']:.4f} +- {figures['error']:.4f} "
                f"nats (wanted {WANTED[law]}), solver {figures['solver']:.1e}, "
                f"{figures['seconds']:.0f} s",
                flush=True,
            )
    picture(trained, settings)
    monitor.finish()
    return report


def fit(
    law: str, method: str, settings: Settings, monitor: WandbMonitor
) -> tuple[Flow, dict[str, float]]:
    torch.manual_seed(settings.seed)
    flow = recipes.cnf(
        2,
        hidden_features=settings.hidden,
        frequencies=settings.frequencies,
        solver=Dopri5(rtol=settings.tolerance, atol=settings.tolerance),
    )
    draw, (coupling, averaged) = toy.TOYS[law], METHODS[method]

    def loss(model: Any, row: Tensor, *, generator: Generator) -> Tensor:
        x = draw(len(row), generator=generator)
        field = model.transport.field
        return matching(field, LinearPath(), coupling, x, marginal=averaged, generator=generator)

    start = time.perf_counter()
    Trainer(
        flow,
        loss,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=100),
        ema=settings.ema,
        monitor=monitor.stage(f"{law}/{method}"),
        log_every=100,
        seed=settings.seed,
        progress=False,
    ).fit(torch.zeros(settings.batch, 1))  # only counts: every batch is drawn anew
    seconds = time.perf_counter() - start
    x = draw(settings.tested, generator=Generator().manual_seed(settings.seed + 1))
    with torch.no_grad():
        found = torch.cat([flow.log_prob(part) for part in x.split(2000)])
        few = x[:500]
        finer = flow.with_solver(Dopri5(rtol=1e-7, atol=1e-7)).log_prob(few)
    gap = LAWS[law](x) - found
    return flow, {
        "kl": gap.mean().item(),
        "error": gap.std().item() / math.sqrt(len(gap)),
        "nll": -found.mean().item(),
        "solver": (finer - found[: len(few)]).mean().abs().item(),  # of the mean, tighter tolerance
        "seconds": seconds,
    }


def coarse(flow: Flow, x: Tensor) -> Tensor:
    """Return log-likelihoods that are good enough for a picture."""
    quick = flow.with_solver(Dopri5(rtol=1e-3, atol=1e-3))
    return torch.cat([quick.log_prob(part) for part in x.split(5000)])


def picture(trained: dict[tuple[str, str], Flow], settings: Settings) -> None:
    """Draw the density of each law above those of the flows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = ("truth", *settings.methods)
    size = (2.6 * len(settings.laws), 2.6 * len(rows))
    figure, axes = plt.subplots(len(rows), len(settings.laws), figsize=size, squeeze=False)
    for j, law in enumerate(settings.laws):
        low, high = (-1.6, 2.6) if law == "moons_unscaled" else (-4.5, 4.5)
        side = torch.linspace(low, high, 12 if settings.smoke else 120)
        grid = torch.cartesian_prod(side, side)
        peak = LAWS[law](grid).max().exp().item()
        for i, name in enumerate(rows):
            with torch.no_grad():
                log_p = LAWS[law](grid) if name == "truth" else coarse(trained[law, name], grid)
            density = log_p.exp().reshape(len(side), len(side)).T
            box = (low, high, low, high)
            axes[i, j].imshow(density, origin="lower", extent=box, vmin=0, vmax=peak)
            axes[i, j].set_title(f"{law.replace('_', ' ')}: {name}", fontsize=8)
            axes[i, j].set_axis_off()
    figure.tight_layout()
    figure.savefig(settings.out / "densities.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
