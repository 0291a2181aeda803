"""The ODE engine beside torchode, torchdiffeq, flow_matching and zuko, in one run.

    python -m experiments.benchmarks.ode                      # half an hour or more on two cores
    python -m experiments.benchmarks.ode --only easy stiff    # some figures
    python -m experiments.benchmarks.ode --smoke              # every path, figures meaningless

Times are medians of interleaved rounds (a b c a b c ...), figures are ratios of such medians, with
the quartiles of the ratio over the rounds. The table says what was wanted of each and whether it
was reached; everything lands in runs/ode_benchmark/report.json.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
import tyro

from cflow.errors import DomainError
from experiments.benchmarks.ode import (
    adaptive,
    gradients,
    independence,
    likelihood,
    overhead,
    training,
)
from experiments.benchmarks.ode.measure import Row, Value
from experiments.benchmarks.ode.settings import Settings

FIGURES: dict[str, Callable[[Settings], list[Row]]] = {
    "overhead": overhead.network,
    "single": overhead.single,
    "easy": adaptive.easy,
    "stiff": adaptive.stiff,
    "independence": independence.independence,
    "gradients": gradients.gradients,
    "training": training.training,
    "likelihood": likelihood.likelihood,
}
PACKAGES = ("torch", "torchode", "torchdiffeq", "flow_matching", "zuko", "numpy")


def main(settings: Settings) -> dict[str, Any]:
    unknown = set(settings.only) - FIGURES.keys()
    if unknown:
        raise DomainError(f"--only: expected names of {', '.join(FIGURES)}, got {unknown}")
    torch.set_num_threads(settings.size(settings.threads, 1))
    report: dict[str, Any] = {"machine": machine(settings), "settings": asdict(settings)}
    report["settings"]["out"] = str(settings.out)
    report["figures"], report["seconds"] = {}, {}
    settings.out.mkdir(parents=True, exist_ok=True)
    print(f"{'figure':96s} {'ours':>11s} {'judged':>8s} {'spread':>15s} {'wanted':>8s}  peers")
    for name in settings.only or FIGURES:
        start = time.perf_counter()
        torch.manual_seed(settings.seed)
        rows = FIGURES[name](settings)
        report["seconds"][name] = time.perf_counter() - start
        report["figures"][name] = [row.json() for row in rows]
        show(name, rows)
        (settings.out / "report.json").write_text(json.dumps(report, indent=2))
    missed = [r for rows in report["figures"].values() for r in rows if r["reached"] is False]
    total = sum(report["seconds"].values())
    print(f"\n{len(missed)} figures are not as wanted; {total:.0f} s; {settings.out}/report.json")
    return report


def machine(settings: Settings) -> dict[str, Any]:
    """Say where and with what the figures were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": settings.threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def show(name: str, rows: list[Row]) -> None:
    """Print the rows of one figure, and below them what was noted beside."""
    print(f"\n{name}")
    for row in rows:
        judged = "" if row.judged is None else f"{row.judged:.3g}"
        spread = "" if row.spread is None else f"{row.spread[0]:.3g}..{row.spread[1]:.3g}"
        wanted = "" if row.wanted is None else f"{row.wanted[0]} {row.wanted[1]:g}"
        verdict = {None: "   ", True: "yes", False: "NO "}[row.reached]
        peers = ", ".join(f"{who} {value(v, row.unit)}" for who, v in row.peers.items())
        print(
            f"  {row.what:90s} {verdict} {value(row.ours, row.unit):>11s} {judged:>8s} "
            f"{spread:>15s} {wanted:>8s}  {peers}"
        )
    for line in dict.fromkeys(line for row in rows for line in row.detail):
        print(f"    {line}")
    sys.stdout.flush()


def value(v: Value, unit: str) -> str:
    if isinstance(v, str):
        return v
    if unit == "s":
        return f"{v * 1e6:.0f} us" if v < 1e-3 else f"{v * 1e3:.1f} ms"
    return f"{v:.3g} {unit}".strip() if unit != "rows" else f"{v:.0f}"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
