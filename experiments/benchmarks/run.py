"""Run a set of figures, print them as a table, and write them to a report."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cflow.errors import DomainError
from experiments.benchmarks.measure import Row, Value
from experiments.benchmarks.settings import Settings

Figures: TypeAlias = Mapping[str, Callable[[Settings], list[Row]]]
Report: TypeAlias = dict[str, Any]


def measure(name: str, figures: Figures, settings: Settings, *, packages: Sequence[str]) -> Report:
    """Measure the figures that are asked for, print them, and write the report after each."""
    unknown = set(settings.only) - figures.keys()
    if unknown:
        raise DomainError(f"--only: expected names of {', '.join(figures)}, got {unknown}")
    out = settings.out or Path(f"runs/{name}_benchmark")
    torch.set_num_threads(settings.size(settings.threads, 1))
    report: Report = {"machine": machine(settings, packages), "settings": asdict(settings)}
    report["settings"]["out"] = str(out)
    report["figures"], report["seconds"] = {}, {}
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'figure':96s} {'ours':>11s} {'judged':>8s} {'spread':>15s} {'wanted':>8s}  peers")
    for figure in settings.only or figures:
        start = time.perf_counter()
        torch.manual_seed(settings.seed)
        rows = figures[figure](settings)
        report["seconds"][figure] = time.perf_counter() - start
        report["figures"][figure] = [row.json() for row in rows]
        show(figure, rows)
        (out / "report.json").write_text(json.dumps(report, indent=2))
        (out / "table.md").write_text(markdown(report))
    missed = [r for rows in report["figures"].values() for r in rows if r["reached"] is False]
    total = sum(report["seconds"].values())
    print(f"\n{len(missed)} figures are not as wanted; {total:.0f} s; {out}/report.json")
    return report


def machine(settings: Settings, packages: Sequence[str]) -> dict[str, Any]:
    """Say where and with what the figures were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": settings.threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
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


def markdown(report: Report) -> str:
    """Return the figures as a table for a page."""
    lines = ["| figure | ours | peers | judged | wanted | reached |", "|---|---|---|---|---|---|"]
    for row in (row for rows in report["figures"].values() for row in rows):
        judged = "" if row["judged"] is None else f"{row['judged']:.3g}"
        if row["spread"] is not None:
            judged += " ({:.2f}..{:.2f})".format(*row["spread"])
        wanted = "" if row["wanted"] is None else "{} {:g}".format(*row["wanted"])
        reached = {None: "", True: "yes", False: "no"}[row["reached"]]
        peers = ", ".join(f"{who} {value(v, row['unit'])}" for who, v in row["peers"].items())
        ours = value(row["ours"], row["unit"])
        lines.append(f"| {row['what']} | {ours} | {peers} | {judged} | {wanted} | {reached} |")
    return "\n".join(lines) + "\n"
