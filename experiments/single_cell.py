"""Cells between snapshots: predict a time that was left out, and all times from the first.

    python -m experiments.single_cell            # 6 to 18 minutes on two cores
    python -m experiments.single_cell --smoke    # the same road in seconds

Four sets of cells seen at a few times (`cflow.data.single_cell`). One field over all of time, the
snapshots at k / K in [0, 1], learns to carry each snapshot to the next one that it sees. Two
settings, both scored by the exact 1-Wasserstein distance (W1) between predicted and observed cells,
all of them, in the units of the files:

    left out   each inner snapshot in turn is left out of training; the one before it is pushed on
               to its time (gaussian_10d has no inner time)
    all in     training sees all; the first snapshot is pushed to each later time

Coordinates are shifted, and divided by one number for training: the pooled standard deviation of
the snapshots seen. Plans are those of the file's own geometry, for nothing is whitened. Transport
is balanced: the growth in numbers that these sets also have is disregarded.

Rows: "independent", "ot" and "spline" couple minibatches of neighbouring snapshots at random, by
optimal transport with straight lines, and in chains of optimal plans with cubic splines through all
snapshots seen; "sf2m" learns velocity and score of Brownian bridges between optimal pairs, and is
pushed by its flow, "sf2m sde" by its stochastic process; "torchcfm ot" takes pairs and targets from
that package (ExactOptimalTransportConditionalFlowMatcher), with the same network, start, optimiser,
steps and batches. Without training: "previous", the snapshot before; "interpolation", McCann's
displacement interpolation between both neighbours by the exact plan of all cells (left out only);
"halves", the distance between two random halves of the observed snapshot: near it, chance reigns.
Expect "ot", "sf2m" and "torchcfm ot" beside each other and, with a time left out, beside
"interpolation", which they learn; what separates them from "halves" is what snapshots do not tell.

No published row is confirmed for these sets and splits; those of Tong et al. are of embryoid
bodies. Everything lands in runs/single_cell/: report.json, table.md, cells.png, an offline wandb
run.

Source: Tong et al. (2020), TrajectoryNet, arXiv 2002.04461 (leaving a time out); Tong et al.
(2024), arXiv 2302.00482, and 2307.03672 (SF2M, here with exact plans); Zhang et al. (2025), arXiv
2410.00844 (the sets).
"""

import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Generator

from cflow.data import single_cell
from cflow.matching.exact import network_simplex
from cflow.metrics import wasserstein
from cflow.train import WandbMonitor
from experiments.single_cell_methods import Case, Cells, fit, load, push


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/single_cell")
    sets: tuple[str, ...] = tuple(single_cell.SETS)
    methods: tuple[str, ...] = ("independent", "ot", "spline", "sf2m", "torchcfm ot")
    seeds: tuple[int, ...] = (1, 2, 3)  # seed 0 chose the learning rate
    hidden: tuple[int, ...] = (64, 64, 64)
    steps: int = 1000  # optimiser steps
    batch: int = 96  # cells of each snapshot in a step
    lr: float = 5e-3  # at 2e-3 the bridges of some sets are not learned in so few steps
    sigma: float = 0.1  # blur of the paths, in units of the pooled deviation
    diffusion: float = 0.3  # of the bridges, in these units over all of time
    solver_steps: int = 40  # of RK4, and of Euler-Maruyama for each snapshot
    workers: int = 2  # processes, one core each
    smoke: bool = False  # a few steps of everything
    cells: int | None = None  # of each snapshot at most


SMOKE: dict[str, Any] = dict(
    sets=("simulation_gene_data", "gaussian_10d"), seeds=(0, 1), hidden=(16,), steps=3, batch=16,
    solver_steps=2, workers=1, cells=60,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-single-cell", folder=settings.out, settings=shown)
    cases = [
        Case(name, left)
        for name in settings.sets
        for left in (*range(1, len(single_cell.SETS[name].cells) - 1), None)
    ]
    jobs = [
        (case, method, seed, settings)
        for seed in settings.seeds
        for case in cases
        for method in ("floors", *settings.methods)
        if method != "floors" or seed == settings.seeds[0]
    ]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        for done in pool.map(run, jobs):
            for row in done:
                record(monitor, row)
                rows.append(row)
                print(described(row), flush=True)
            write({"settings": shown, "rows": [bare(row) for row in rows]}, settings)
    table = summary(rows)
    report = {"settings": shown, "rows": [bare(row) for row in rows], "table": table}
    write(report, settings)
    (settings.out / "table.md").write_text(markdown(table))
    picture(rows, settings.out / "cells.png", settings.cells)
    monitor.finish()
    print(markdown(table))
    return report


def run(job: tuple[Case, str, int, Settings]) -> list[dict[str, Any]]:
    case, method, seed, settings = job
    torch.set_num_threads(1)
    began = time.perf_counter()
    cells = load(case, settings.cells)
    if method == "floors":
        return floors(case, cells)
    model, history = fit(cells, method, seed, settings)
    row = {"case": case, "seed": seed, "seconds": time.perf_counter() - began, "history": history}
    a, b = (0, len(cells.times) - 1) if case.left is None else (case.left - 1, case.left)
    rows = []
    for name, found in push(model, cells, a, b, settings).items():
        w1 = {
            k: cells.scale * wasserstein(x, cells.snapshots[k], order=1).item()
            for k, x in enumerate(found, start=a + 1)
        }
        shown = found[-1].numpy() if seed == settings.seeds[0] else None  # for the picture
        rows.append(row | {"method": method + name, "w1": w1, "cells": shown})
    return rows


def floors(case: Case, cells: Cells) -> list[dict[str, Any]]:
    """Score what needs no training."""
    inner = case.left is not None
    wanted = [case.left] if case.left is not None else range(1, len(cells.times))
    row = {"case": case, "seed": None, "seconds": 0.0, "history": [], "cells": None}
    return [
        row | {"method": name, "w1": {k: cells.scale * floor(name, cells, k) for k in wanted}}
        for name in ("previous", *(["interpolation"] if inner else []), "halves")
    ]


def floor(name: str, cells: Cells, k: int) -> float:
    x = cells.snapshots[k]
    if name == "previous":
        return wasserstein(cells.snapshots[k - 1], x, order=1).item()
    if name == "halves":
        order = torch.randperm(len(x), generator=Generator().manual_seed(0))
        one, other = x[order].tensor_split(2)
        return wasserstein(one, other, order=1).item()
    before, after = cells.snapshots[k - 1], cells.snapshots[k + 1]
    plan = torch.from_numpy(
        network_simplex("interpolation", torch.cdist(before, after).square().double().numpy())
    )
    i, j = plan.nonzero(as_tuple=True)
    a, t, b = (cells.times[n] for n in (k - 1, k, k + 1))
    s = (t - a) / (b - a)
    between = (1 - s) * before[i] + s * after[j]
    return wasserstein(between, x, order=1, weights=(plan[i, j], None)).item()


def described(row: dict[str, Any]) -> str:
    case = row["case"]
    what = "all in" if case.left is None else f"{case.left} left out"
    seed = "" if row["seed"] is None else f" seed {row['seed']}"
    found = ", ".join(f"{k}: {value:.4f}" for k, value in row["w1"].items())
    return f"{case.name}, {what}, {row['method']}{seed}: W1 {found} ({row['seconds']:.0f} s)"


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the report keeps of a row."""
    kept = {k: v for k, v in row.items() if k not in ("case", "history", "cells")}
    return row["case"]._asdict() | kept


def record(monitor: WandbMonitor, row: dict[str, Any]) -> None:
    case, name = row["case"], f"{row['method']}/{row['seed']}"
    stage = monitor.stage(f"{case.name}/{case.left}/{name}")
    for figures in row["history"]:
        stage.log({k: v for k, v in figures.items() if k != "step"}, int(figures["step"]))
    monitor.record({f"w1/{case.name}/{case.left}/{k}/{name}": v for k, v in row["w1"].items()})


def write(report: dict[str, Any], settings: Settings) -> None:
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds: one entry for each case, time and method."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        for k, w1 in row["w1"].items():
            values.setdefault((*row["case"], k, row["method"]), []).append(w1)
    return [
        {
            "set": name,
            "left": left,
            "time": k,
            "method": method,
            "w1": statistics.mean(found),
            "spread": statistics.stdev(found) if len(found) > 1 else 0.0,
        }
        for (name, left, k, method), found in values.items()
    ]


def markdown(table: list[dict[str, Any]]) -> str:
    """Write one table for times left out and one for all in; a column is a set and a time."""
    text = ""
    for title, kept in (("left out", False), ("all in", True)):
        mine = [entry for entry in table if (entry["left"] is None) == kept]
        columns = list(dict.fromkeys((entry["set"], entry["time"]) for entry in mine))
        cells = {(e["method"], e["set"], e["time"]): e for e in mine}
        text += f"W1, {title}\n\n| | "
        text += " | ".join(f"{name} {k}" for name, k in columns)
        text += " |\n|---" + "|---" * len(columns) + "|\n"
        for method in dict.fromkeys(entry["method"] for entry in mine):
            line = []
            for column in columns:
                entry = cells.get((method, *column))
                spread = f" +- {entry['spread']:.3f}" if entry and entry["spread"] else ""
                line.append(f"{entry['w1']:.3f}{spread}" if entry else "")
            text += f"| {method} | {' | '.join(line)} |\n"
        text += "\n"
    return text


def picture(rows: list[dict[str, Any]], path: Path, most: int | None) -> None:
    """Draw observed snapshots, and the cells predicted by the first seed at the last time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = {(row["case"], row["method"]): row["cells"] for row in rows if row["cells"] is not None}
    cases = [case for case in dict.fromkeys(row["case"] for row in rows) if shown_case(case)]
    methods = [method for case, method in known if case == cases[0]]
    shape = len(cases), 1 + len(methods)
    figure, axes = plt.subplots(*shape, figsize=(2.1 * shape[1], 2.2 * shape[0]), squeeze=False)
    for i, case in enumerate(cases):
        cells = load(case, most)
        target = len(cells.times) - 1 if case.left is None else case.left
        pooled = torch.cat(cells.snapshots)
        plane = torch.eye(2)
        if pooled.shape[1] > 2:  # the first two principal components
            plane = torch.linalg.svd(pooled - pooled.mean(0), full_matrices=False)[2][:2].T
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(cells.times)))
        for k, x in enumerate(cells.snapshots):
            axes[i, 0].scatter(*(x @ plane).T, s=1, color=colours[k], label=f"time {k}")
        title = "all in" if case.left is None else f"time {case.left} left out"
        axes[i, 0].set_title(f"{case.name.replace('_', ' ')}\n{title}", fontsize=7)
        axes[i, 0].legend(fontsize=5, markerscale=3, frameon=False)
        limits = axes[i, 0].get_xlim(), axes[i, 0].get_ylim()
        for j, method in enumerate(methods, start=1):
            found = torch.from_numpy(known[case, method]) @ plane
            axes[i, j].scatter(*(cells.snapshots[target] @ plane).T, s=1, color="0.75")
            axes[i, j].scatter(*found.T, s=1, color="tab:red", alpha=0.6)
            axes[i, j].set(xlim=limits[0], ylim=limits[1])
            axes[i, j].set_title(f"{method}, time {target}", fontsize=7)
        for axis in axes[i]:
            axis.set(xticks=[], yticks=[])
    figure.suptitle("left: observed; others: grey observed, red predicted", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shown_case(case: Case) -> bool:
    """Whether a case is drawn: one time left out of each set, and sets without inner times."""
    inner = len(single_cell.SETS[case.name].cells) - 2
    return case.left == (inner + 1) // 2 if inner else True


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
