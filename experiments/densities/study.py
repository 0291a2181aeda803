"""Fit the three models to splits of sets of points on a manifold, some splits at a time."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cflow import Flow
from cflow.data import Split
from cflow.errors import DataError
from cflow.field import Field
from cflow.manifold import Compact
from experiments.densities import kernel_density
from experiments.densities.fit import Budget, Shapes, ours, plain, test_nll, windows
from experiments.densities.kernel_density import Kernel
from experiments.densities.table import summary

__all__ = ["SMOKE", "Kind", "Problem", "expect_rows", "study"]

Kind: TypeAlias = Literal["counted", "random rows"]
SMOKE = Budget(steps=6, batch=16, validations=2, validated=20, solver_steps=2)


@dataclass(frozen=True)
class Problem:
    """One split of one set of points.

    Attributes:
        name: Of the set.
        kind: Of the split.
        seed: Of the split, and of the training.
        parts: Points, float64.
        groups: Groups of training and validation points, if kernels are to be weighed by those.
        space: Where the points live.
        field: Makes a field; picklable, like all that follow.
        shapes: Of the windows.
        kernel: Of the kernel density.
        first: Whether its flow is kept and drawn.
    """

    name: str
    kind: Kind
    seed: int
    parts: Split
    groups: tuple[Tensor, Tensor] | None
    space: Compact
    field: Callable[[], Field]
    shapes: Shapes
    kernel: Kernel
    first: bool


Picture: TypeAlias = Callable[[Path, Problem, Flow], None]


def study(
    problems: Sequence[Problem],
    budget: Budget,
    out: Path,
    *,
    settings: dict[str, Any],
    workers: int,
    picture: Picture,
    published: dict[str, str],
    note: str,
) -> dict[str, Any]:
    """Fit all splits, report each as it is done, and write report.json and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"settings": json.loads(json.dumps(settings, default=str))}
    report["results"] = []
    for row in _carried_out(problems, budget, out, workers, picture):
        report["results"].append(row)
        nll = ", ".join(f"{who} {value:.3f}" for who, value in row["nll"].items())
        print(f"{row['set']:12s} {row['split']:12s} seed {row['seed']}: {nll}", flush=True)
        (out / "report.json").write_text(json.dumps(report, indent=1))
    table = summary(report["results"], published, note)
    (out / "table.md").write_text(table)
    print(table)
    return report


def expect_rows(where: str, name: str, rows: int) -> None:
    """Raise where a table is too short to hold anything out."""
    if rows < 50:
        raise DataError(
            f"{where}: {name} has {rows} rows; 50 are the least of which parts can be held out to "
            "validate and to test"
        )


def _carried_out(
    problems: Sequence[Problem], budget: Budget, out: Path, workers: int, picture: Picture
) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (_fitted(problem, budget, out, picture) for problem in problems)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_fitted, each, budget, out, picture) for each in problems]
        yield from (done.result() for done in waiting)


def _fitted(problem: Problem, budget: Budget, out: Path, picture: Picture) -> dict[str, Any]:
    """Fit the three models to one split, and measure them on its test points."""
    torch.set_num_threads(1)
    torch.manual_seed(problem.seed)
    budget = replace(budget, seed=problem.seed)
    space, shapes = problem.space, problem.shapes
    train, validation, test = (part.float() for part in problem.parts)
    law = windows(space, train, validation, shapes, groups=problem.groups, seed=problem.seed)
    mine = ours(space, problem.field(), law, shapes, budget)
    bare = plain(space, problem.field(), train, validation, budget)
    kernels = kernel_density.measure(problem.kernel, problem.parts)
    if problem.first:
        name = f"{problem.name}_{problem.kind.replace(' ', '_')}"
        mine.flow.save(out / f"{name}.safetensors")
        picture(out / f"{name}.png", problem, mine.flow)
    return {
        "set": problem.name,
        "split": problem.kind,
        "seed": problem.seed,
        "rows": [len(part) for part in problem.parts],
        "nll": {
            "ours": test_nll(mine.flow.log_prob, test),
            "plain": test_nll(bare.flow.log_prob, test),
            **{words: value for words, (value, _) in kernels.items() if words == "one width"},
            "windows": test_nll(law.log_prob, test),
            **{words: value for words, (value, _) in kernels.items() if words != "one width"},
        },
        "seconds": {"ours": mine.seconds, "plain": bare.seconds},
    }
