"""Adaptive solving of a batch: 1000 easy samples, and the same with one stiff mate among them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cflow.field import Field
from cflow.ode import Dopri5, Solution, Tsit5
from experiments.benchmarks.measure import (
    Row,
    Seconds,
    contest,
    counted,
    fastest,
    interleave,
)
from experiments.benchmarks.ode.peers import Torchode, torchdiffeq_dopri5
from experiments.benchmarks.ode.problems import RATE, Mated, Perceptron, broadcasting, marked
from experiments.benchmarks.settings import Settings

TOLERANCE = 1e-5
GAIN = 1.5  # of the weights: three steps of Dopri5 at this tolerance, in every solver
OURS = {"Dopri5": Dopri5(TOLERANCE, TOLERANCE), "Tsit5": Tsit5(TOLERANCE, TOLERANCE)}


@torch.no_grad()
def easy(settings: Settings) -> list[Row]:
    """Solve 1000 samples that need three steps each."""
    x = torch.randn(settings.size(1000, 20), 2)
    field = Mated(Perceptron(2, gain=GAIN))
    seconds, counts, errors, _ = _race(field, x, marked(len(x), last=False), settings.rounds(2))
    rival = fastest(seconds, "torchode", "torchdiffeq")
    what, detail = f"{len(x)} easy samples at {TOLERANCE:g}", _detail(counts, errors)
    return [
        contest(f"{what}: {name}", seconds, name, against=rival, wanted=1.0, detail=detail)
        for name in OURS
    ]


@torch.no_grad()
def stiff(settings: Settings) -> list[Row]:
    """Add one sample that needs hundreds of steps."""
    x = torch.randn(settings.size(1000, 8) + 1, 2)
    field = Mated(Perceptron(2, gain=GAIN), rate=settings.size(RATE, 50.0))
    mask = marked(len(x), last=True)
    seconds, counts, errors, solved = _race(field, x, mask, settings.rounds(0.2))
    rival, detail = fastest(seconds, "torchode", "torchdiffeq"), _detail(counts, errors)
    rows = []
    for name, solver in OURS.items():
        faster = contest(name, seconds, name, against=rival, faster=True)
        rows.append(
            Row(
                f"{len(x) - 1} easy samples and a stiff one, seconds: {name}",
                faster.ours,
                faster.peers,
                "s",
                float(faster.ours),
                None,
                ("<=", 0.5),
                (*detail, f"{name} is {faster.judged:.0f} times as fast as {rival}"),
            )
        )
        rows += _company(name, solver, field, x, mask, solved[name], counts[name])
    return rows


def _company(
    name: str,
    solver: Dopri5 | Tsit5,
    field: Field,
    x: Tensor,
    mask: Tensor,
    together: Solution,
    counts: tuple[int, int],
) -> list[Row]:
    """Hold the solve with the stiff mate against one without it and against single samples."""
    counting, count = counted(field)
    alone = [
        solver.solve(counting, x[k : k + 1], 0.0, 1.0, args=(mask[k : k + 1],))
        for k in range(len(x))
    ]
    apart = solver.solve(field, x[:-1], 0.0, 1.0, args=(mask[:-1],))
    lonely = torch.cat([s.y for s in alone])
    same = (together.nfe[:-1] == apart.nfe).double().mean().item()
    nfe = torch.cat([s.nfe for s in alone])
    same_alone = (together.nfe == nfe).double().mean().item()
    change = (together.y[:-1] - apart.y).abs().max().item()
    change_alone = (together.y[:-1] - lonely[:-1]).abs().max().item()
    excess = counts[1] / count.rows
    return [
        Row(
            f"rows evaluated over rows that the samples need alone: {name}",
            counts[1],
            {"alone": count.rows},
            "rows",
            excess,
            None,
            ("<=", 1.2),
        ),
        Row(
            f"share of easy samples with equal step counts, with and without the mate: {name}",
            same,
            {},
            "",
            same,
            None,
            (">=", 1.0),
            (
                f"{name}: largest change of an easy sample, with and without the mate "
                f"{change:.1e}, in the batch and alone {change_alone:.1e}; share with equal step "
                f"counts in the batch and alone {same_alone:.4f}",
            ),
        ),
    ]


def _race(
    field: Mated, x: Tensor, mask: Tensor, rounds: int
) -> tuple[Seconds, dict[str, tuple[int, int]], dict[str, float], dict[str, Any]]:
    """Time all solvers; count calls and rows; measure errors of the easy rows against float64."""
    easy_rows = ~mask[:, 0]
    double = copy.deepcopy(field).double()
    fine = Dopri5(1e-10, 1e-10, max_steps=100_000)
    kept = x[easy_rows].double()
    truth = fine.solve(double, kept, 0.0, 1.0, args=(mask[easy_rows],)).y

    def runs(f: Callable[..., Tensor]) -> dict[str, Callable[[], Any]]:
        shared = broadcasting(f, mask)
        torchode = Torchode(lambda t, y: f(t, y, mask), TOLERANCE)
        ours = {
            name: lambda solver=solver: solver.solve(f, x, 0.0, 1.0, args=(mask,))
            for name, solver in OURS.items()
        }
        return ours | {
            "torchode": lambda: torchode(x, 1.0),
            "torchdiffeq": lambda: torchdiffeq_dopri5(shared, x, 1.0, TOLERANCE),
        }

    counts, errors, solved = {}, {}, {}
    for name in runs(field):
        counting, count = counted(field)
        solved[name] = runs(counting)[name]()
        counts[name] = (count.calls, count.rows)
        y = _points(solved[name])
        errors[name] = (y[easy_rows] - truth).abs().max().item()
    seconds = interleave(runs(field), rounds, warm_up=int(rounds > 3))
    return seconds, counts, errors, solved


def _points(solved: Any) -> Tensor:
    if isinstance(solved, Tensor):
        return solved
    return solved.y if isinstance(solved, Solution) else solved.ys[:, 0]


def _detail(counts: dict[str, tuple[int, int]], errors: dict[str, float]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {calls} calls, {rows} rows, largest error of an easy row {errors[name]:.1e}"
        for name, (calls, rows) in counts.items()
    )
