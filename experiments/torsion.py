"""Flows on tori: torsion angles of RNA, of your own table, and of protein backbones.

    python -m experiments.torsion                          # about 40 minutes on two cores
    python -m experiments.torsion --table angles.tsv       # your own angles, in degrees
    python -m experiments.torsion --parts ramachandran     # the three known densities
    python -m experiments.torsion --smoke                  # the same road in seconds

RNA, seven angles of a residue: three models on random rows, the published protocol, and on the
split that counts, which holds out whole structures; see `experiments/earth.py`. Figures are test
negative log-likelihoods in nats and radians (uniform: 12.865).

Ramachandran, two angles of an amino acid, in three classes whose densities are known tables: a flow
by matching on fresh draws, and one of circular splines by maximum likelihood. The figure is the
divergence E[log p - log q] over new draws, wanted below 0.03 nats.

Everything lands in runs/torsion/: report.json, ramachandran.json, table.md, flows, Ramachandran
plots.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, nll, plots, recipes
from cflow.base import ManifoldUniform
from cflow.data import ramachandran, random_split, torsion
from cflow.errors import CflowError
from cflow.field import Field, PeriodicField
from cflow.manifold import Torus
from cflow.matching import GeodesicCost, GeodesicPath, OTCoupling, matching
from cflow.ode import RK4
from cflow.samples import log_probs
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE
from experiments.densities.fit import Budget, Shapes, field_of
from experiments.densities.kernel_density import TORUS
from experiments.densities.study import SMOKE, Kind, Problem, expect_rows, study

PUBLISHED = {"rna": "-5.20 +- 0.07"}  # Chen and Lipman (2024), arXiv 2302.03660, random rows
SHAPES = Shapes(
    round=(0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5),
    stretched=(0.1, 0.2, 0.35),
    widened=1.3,
    weighed=0,
)
WANTED = 0.03
CLASSES = ("general", "proline", "preproline")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/torsion")
    parts: tuple[Literal["rna", "ramachandran"], ...] = ("rna", "ramachandran")
    table: Path | None = None  # a table of angles in degrees, in place of both
    kinds: tuple[Kind, ...] = ("counted", "random rows")
    seeds: tuple[int, ...] = (5, 6)  # of the splits; settings were chosen on those of 0 and 1
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    frequencies: int = 3  # waves of each angle that the field sees
    budget: Budget = field(default_factory=Budget)
    classes: tuple[str, ...] = CLASSES
    steps: int = 20_000  # of a field's training on known densities
    spline_steps: int = 8000
    tested: int = 20_000  # draws that judge there
    workers: int = 2
    smoke: bool = False


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(
            settings, hidden=(8,), budget=SMOKE, seeds=(5,), workers=1, steps=6,
            spline_steps=6, tested=50, classes=CLASSES[1:2],
        )  # fmt: skip
    report: dict[str, Any] = {}
    if settings.table is not None or "rna" in settings.parts:
        report = study(
            list(problems(settings)),
            settings.budget,
            settings.out,
            settings=asdict(settings),
            workers=settings.workers,
            picture=partial(picture, size=8 if settings.smoke else 60),
            published={} if settings.table else PUBLISHED,
            note=f"uniform: {math.log(2 * math.pi):.3f} for each angle",
        )
    if settings.table is None and "ramachandran" in settings.parts:
        report["ramachandran"] = known_densities(settings)
    return report


def problems(settings: Settings) -> Iterator[Problem]:
    """Give the splits that are to be fitted."""
    path = settings.table
    name = "rna" if path is None else path.stem
    angles, names = torsion.load() if path is None else torsion.read(path)
    expect_rows("torsion", name, len(angles))
    for kind in settings.kinds:
        if kind == "counted" and not names:
            print(f"{name}: no column of groups, so rows are split at random alone", flush=True)
            continue
        for seed in settings.seeds:
            counted = kind == "counted"
            parts = torsion.counted(path, seed=seed) if counted else random_split(angles, seed=seed)
            if settings.smoke:
                parts = type(parts)(*(part[:100] for part in parts))
            new = partial(periodic, angles.shape[1], settings.hidden, settings.frequencies)
            first = seed == settings.seeds[0]
            yield Problem(name, kind, seed, parts, None, Torus(), new, SHAPES, TORUS, first)


def periodic(features: int, hidden: tuple[int, ...], frequencies: int) -> Field:
    """Return a field of angles that is zero at the start, so that the flow starts as its base."""
    net = PeriodicField(features, hidden_features=hidden, frequencies=frequencies)
    last = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


def picture(path: Path, problem: Problem, flow: Flow, *, size: int) -> None:
    """Draw the first two angles of the test points and of as many samples."""
    test = problem.parts[2].float()
    drawn = flow.sample(len(test), generator=Generator().manual_seed(0))
    pairs = {"test points": test[:, :2], "samples of the flow": drawn[:, :2]}
    plots.ramachandran(path, pairs, labels=("first angle", "second angle"), size=size)


def known_densities(settings: Settings) -> list[dict[str, Any]]:
    """Fit two flows to each class, and say how far they lie above the exact entropy."""
    settings.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in settings.classes:
        density = ramachandran.load(name)
        panels: dict[str, Callable[[Tensor], Tensor] | Tensor] = {
            f"{name}: exact": lambda x, density=density: density.log_prob(x.double())
        }
        for model, fit in {"field": matched, "splines": likeliest}.items():
            start = time.monotonic()
            flow = fit(density, settings)
            seconds = time.monotonic() - start
            x = density.sample(settings.tested, generator=Generator().manual_seed(12_345))
            log_q = log_probs(flow, x.float(), batch=500).double()
            gap = density.log_prob(x) - log_q
            row = {
                "class": name, "model": model, "entropy": density.entropy,
                "kl": gap.mean().item(), "error": gap.std().item() / len(gap) ** 0.5,
                "test_nll": -log_q.mean().item(), "seconds": seconds,
                "reached": gap.mean().item() < WANTED,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:11s} {model:8s} KL {row['kl']:.4f} +- {row['error']:.4f} nats (wanted "
                f"below {WANTED}), {seconds:.0f} s",
                flush=True,
            )
            panels[model] = flow.log_prob
            flow.save(settings.out / f"{name}_{model}.safetensors")
        plots.ramachandran(settings.out / f"{name}.png", panels, size=8 if settings.smoke else 180)
        (settings.out / "ramachandran.json").write_text(json.dumps(rows, indent=1))
    return rows


def matched(density: ramachandran.Density, settings: Settings) -> Flow:
    """Match a field from the uniform law to fresh draws, along geodesics between coupled ends."""
    torch.manual_seed(0)
    space = Torus()
    net = PeriodicField(2, frequencies=8, hidden_features=(8,) if settings.smoke else (192,) * 4)
    flow = Flow(ManifoldUniform(space, 2), ODE(net, RK4(24), manifold=space))
    path, coupling = GeodesicPath(space), OTCoupling(cost=GeodesicCost(space))

    def loss(model: nn.Module, rows: Tensor, *, generator: Generator) -> Tensor:
        assert isinstance(model, Flow)
        x1 = density.sample(len(rows), generator=generator).float()
        x0 = model.base.sample((len(rows),), generator=generator)
        return matching(field_of(model), path, coupling, x1, x0=x0, generator=generator)

    return _trained(flow, loss, settings, settings.steps, 256)


def likeliest(density: ramachandran.Density, settings: Settings) -> Flow:
    """Fit circular splines to fresh draws by maximum likelihood."""
    torch.manual_seed(0)
    hidden = (8,) if settings.smoke else (128, 128)
    flow = recipes.torus_nsf(2, transforms=4, bins=32, frequencies=8, hidden_features=hidden)

    def loss(model: nn.Module, rows: Tensor, *, generator: Generator) -> Tensor:
        assert isinstance(model, Flow)
        return nll(model, density.sample(len(rows), generator=generator).float())

    return _trained(flow, loss, settings, settings.spline_steps, 512)


def _trained(
    flow: Flow, loss: Callable[..., Tensor], settings: Settings, steps: int, batch: int
) -> Flow:
    trainer = Trainer(
        flow,
        loss,
        steps=steps,
        batch=8 if settings.smoke else batch,
        lr=1e-3,
        schedule=CosineDecay(warmup=min(100, steps // 10), final=0.01),
        ema=0.999,
        progress=False,
    )
    trainer.fit(torch.zeros(10_000, 1))  # rows only count: every batch is drawn anew
    return flow.eval()


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except CflowError as error:
        sys.exit(f"error: {error}")
