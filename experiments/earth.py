"""Flows on the sphere for where the earth erupts, shakes and burns; and for events of your own.

    python -m experiments.earth                              # all sets, an hour on two cores
    python -m experiments.earth --csv whales.csv             # your own latitudes and longitudes
    python -m experiments.earth --sets volcano --seeds 5     # one split of one set
    python -m experiments.earth --smoke                      # the same road in seconds

Two protocols. Random rows, the published one, splits each set at random, and many places stand in
two parts: on it a spike on every training row does best, so its figures say little. The split that
counts keeps no place twice and holds out whole blocks of ten degrees. On each three models: a
von Mises-Fisher kernel density of the training points, whose width is that of the best validation;
a plain continuous flow, matched from the uniform law without coupling; and ours, see
`experiments/densities/fit.py`, on an equal budget of steps. Figures are negative log-likelihoods
of test points in nats, against the area of the unit sphere (uniform: 2.531).

Everything lands in runs/earth/: report.json, table.md, a flow and a map of the world for each set.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from cflow import Flow, plots
from cflow.data import earth, random_split
from cflow.data.grouped import blocks
from cflow.errors import CflowError
from cflow.field import Field, MLPField, TangentField
from cflow.manifold import Sphere
from experiments.densities.fit import Budget, Shapes
from experiments.densities.kernel_density import SPHERE
from experiments.densities.study import SMOKE, Kind, Problem, expect_rows, study

SEEDS = (5, 6, 7, 8, 9)  # of the splits; all settings were chosen on those of seeds 0 to 4
PUBLISHED = {  # Riemannian flow matching, Chen and Lipman (2024), arXiv 2302.03660, random rows
    "volcano": "-7.93 +- 1.67",
    "earthquake": "-0.28 +- 0.08",
    "fire": "-1.86 +- 0.11",
}
SHAPES = Shapes(
    round=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.06, 0.12, 0.25, 0.5),
    stretched=(0.03, 0.06, 0.1, 0.2),
)
UNIFORM = math.log(4 * math.pi)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/earth")
    sets: tuple[str, ...] = tuple(PUBLISHED)
    csv: Path | None = None  # a table of latitudes and longitudes, in place of the sets
    kinds: tuple[Kind, ...] = ("counted", "random rows")
    seeds: tuple[int, ...] = SEEDS
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    budget: Budget = field(default_factory=Budget)
    workers: int = 2  # splits that are fitted at a time, each in one thread
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    return study(
        list(problems(settings)),
        SMOKE if settings.smoke else settings.budget,
        settings.out,
        settings=asdict(settings),
        workers=1 if settings.smoke else settings.workers,
        picture=partial(picture, size=12 if settings.smoke else 180),
        published={} if settings.csv else PUBLISHED,
        note=f"uniform: {UNIFORM:.3f}",
    )


def problems(settings: Settings) -> Iterator[Problem]:
    """Give the splits that are to be fitted."""
    if settings.csv is not None:
        given = {settings.csv.stem: earth.read(settings.csv)}
    else:
        given = {name: earth.load(name) for name in settings.sets}
    for name, degrees in given.items():
        expect_rows("earth", name, len(degrees))
        if settings.smoke:
            degrees = degrees[:: max(1, len(degrees) // 300)]
        seeds = settings.seeds[:1] if settings.smoke else settings.seeds
        for kind in settings.kinds:
            for seed in seeds:
                yield problem(name, kind, seed, degrees, settings)


def problem(name: str, kind: Kind, seed: int, degrees: Tensor, settings: Settings) -> Problem:
    groups = None
    if kind == "counted":
        parts = earth.counted(degrees, seed=seed)
        groups = (blocks(earth.to_degrees(parts[0])), blocks(earth.to_degrees(parts[1])))
    else:
        parts = random_split(earth.to_sphere(degrees), seed=seed)
    hidden = (8,) if settings.smoke else settings.hidden
    first = seed == settings.seeds[0]
    new = partial(tangent, hidden)
    return Problem(name, kind, seed, parts, groups, Sphere(), new, SHAPES, SPHERE, first)


def tangent(hidden: tuple[int, ...]) -> Field:
    """Return a tangent field that is zero at the start, so that the flow starts as its base."""
    net = MLPField(3, hidden_features=hidden)
    last = [part for part in net.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return TangentField(net, Sphere())


def picture(path: Path, problem: Problem, flow: Flow, *, size: int) -> None:
    """Draw the density of the flow on the globe, and the events of two parts."""
    train, _, test = (part.float() for part in problem.parts)
    title = f"{problem.name}, {problem.kind}: density of the flow"
    plots.globe(path, flow.log_prob, {"train": train, "test": test}, title=title, size=size)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except CflowError as error:
        sys.exit(f"error: {error}")
