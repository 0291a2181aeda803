"""The table of a study: means over the splits, with their standard deviation."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["summary"]


def summary(rows: Sequence[Mapping[str, Any]], published: Mapping[str, str], note: str) -> str:
    """Return a table of test negative log-likelihoods in nats, a row for each set and split."""
    models = list(rows[0]["nll"])
    head = ["set", "split", "splits", *models, "published", "s a fit"]
    lines = [f"Test negative log-likelihood in nats ({note}).", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, kind in dict.fromkeys((row["set"], row["split"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["split"]) == (name, kind)]
        cells = [name, kind, str(len(mine))]
        best = min(models[:3], key=lambda model: statistics.mean(r["nll"][model] for r in mine))
        for model in models:
            values = [row["nll"][model] for row in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            shown = f"{statistics.mean(values):.3f} +- {spread:.3f}"
            cells.append(f"**{shown}**" if model == best else shown)
        cells.append(published.get(name, "") if kind == "random rows" else "")
        cells.append(f"{statistics.mean(row['seconds']['ours'] for row in mine):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
