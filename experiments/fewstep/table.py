"""The tables and the picture of the study."""

import statistics
from pathlib import Path
from typing import Any

from experiments.fewstep.jobs import PROBLEMS


def said(found: dict[str, Any]) -> str:
    """Say in a line how one study went."""
    rows = {name: row["distances"] for name, row in found["rows"].items()}
    return f"{found['problem']}, seed {found['seed']}: floor {found['floor']:.4f}, {rows}"


def written(found: list[dict[str, Any]]) -> str:
    """Return the tables: quality against evaluations, and how straight the paths are."""
    lines: list[str] = []
    for name in [name for name in PROBLEMS if any(f["problem"] == name for f in found)]:
        mine = [f for f in found if f["problem"] == name]
        lines += [f"### {name}, {mine[0]['unit']}, {len(mine)} seeds", ""]
        lines += [f"Floor {spread([f['floor'] for f in mine])}.", ""]
        counts = ("0", "1", "2", "4", "8", "100")
        head = ["model", *("layers" if k == "0" else f"{k} evaluations" for k in counts)]
        head += ["4, calibrated", "transport cost", "straightness"]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for model in mine[0]["rows"]:
            rows = [f["rows"][model] for f in mine]
            cells = [model]
            for k in counts:
                values = [shown(model, row["distances"]).get(k) for row in rows]
                cells.append("" if None in values else spread(values))
            for group, key in (
                ("calibrated", "distance"),
                ("paths", "transport cost"),
                ("paths", "straightness"),
            ):
                there = model != "distilled" and group in rows[0]
                cells.append(spread([row[group][key] for row in rows]) if there else "")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def shown(model: str, distances: dict[Any, float]) -> dict[str, float]:
    """Return distances by numbers of evaluations, as strings, as JSON has them.

    A distilled flow is right at its own step alone.
    """
    found = {str(key): value for key, value in distances.items()}
    return {"1": found["1"]} if model == "distilled" else found


def spread(values: list[Any]) -> str:
    """Return mean and standard deviation over seeds."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.4f}"


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Draw quality against evaluations, a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in PROBLEMS if any(f["problem"] == name for f in found)]
    models = list(dict.fromkeys(model for name in names for model in _models(found, name)))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure_, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        mine = [f for f in found if f["problem"] == name]
        floor = statistics.mean(f["floor"] for f in mine)
        axis.axhline(floor, color="0.6", linewidth=1, linestyle="--", label="floor")
        for model in _models(found, name):
            by_count: dict[float, float] = {}
            for key in shown(model, mine[0]["rows"][model]["distances"]):
                values = [shown(model, f["rows"][model]["distances"])[key] for f in mine]
                by_count[max(1.0, float(key))] = statistics.mean(values)
            lone = len(by_count) == 1
            axis.plot(
                *zip(*sorted(by_count.items()), strict=True),
                marker="D" if lone else "o",
                markersize=5 if lone else 3,
                color=f"C{models.index(model)}",
                linewidth=1,
                label=model,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.set_ylabel(mine[0]["unit"], fontsize=8)
        axis.tick_params(which="both", labelsize=7)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    axes.flat[0].legend(fontsize=6)
    figure_.savefig(path, dpi=130)
    plt.close(figure_)


def _models(found: list[dict[str, Any]], name: str) -> list[str]:
    return list(next(f for f in found if f["problem"] == name)["rows"])
