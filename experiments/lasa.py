"""Handwritten motions from their start: a flow over whole curves, on demonstrations held out.

    python -m experiments.lasa            # about three minutes on two cores
    python -m experiments.lasa --smoke    # the same road in seconds

A motion of the LASA set is a curve of 64 points in the plane from a start to the origin. One field
for all 30 shapes, conditioned on the shape and the start, is trained by flow matching on six
demonstrations of each; from the start of the seventh it draws motions. Every demonstration is held
out once. What flows is how a curve departs from the mean one of its shape, moved to the same start
(all of the shift at the start, less and less until the goal); departures are divided by their mean
size in the shape and written in their first 24 principal components, each of unit variance. So a
drawn motion begins and ends where it has to, and is smooth. In training the start that the field is
told is blurred, so that six starts fill a region. Reported are means over shapes and folds of

    dtw    mean distance along the best warping of time between motion and demonstration, mm
    swept  area between the two, taken at equal shares of their durations, cm^2
    start  distance from the start that was asked for, mm;   goal  distance from the origin, mm

for motions drawn from the flow ("flow"), for the one of zero noise ("flow, central"), and without
a field for the mean of the demonstrations ("mean"), for the nearest one moved to the start as above
("nearest") or as a whole ("nearest, rigid"), and for all six, averaged ("any"). "flow" belongs
beside "any": a motion drawn at random is as far from the held-out one as another demonstration is,
unless the start tells more. "flow, central" belongs beside "mean" and "nearest". No published
figure is known for this protocol: dynamical systems learned on the set are scored on demonstrations
that they saw.

The archive has to lie in the folder named by CFLOW_DATA. Everything lands in runs/lasa/:
report.json, table.md, motions.png, an offline wandb run.

Source: Khansari-Zadeh and Billard (2011), IEEE Transactions on Robotics 27, and (2014), Robotics
and Autonomous Systems 62 (swept error area); Sakoe and Chiba (1978), dynamic time warping.
"""

import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.data import lasa
from cflow.field import MLPField
from cflow.matching import IndependentCoupling, LinearPath, matching
from cflow.ode import Heun
from cflow.train import CosineDecay, Trainer, WandbMonitor
from cflow.transport import ODE

MEASURES = ("dtw", "swept", "start", "goal")
ROWS = ("flow", "flow, central", "mean", "nearest", "nearest, rigid", "any")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/lasa")
    shapes: tuple[str, ...] = lasa.SHAPES
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)  # demonstrations held out
    points: int = 64  # of a motion, evenly spaced in time
    modes: int = 24  # principal components of departures
    blur: float = 0.3  # of the start that the field is told, in units of the starts' spread
    hidden: tuple[int, ...] = (192, 192, 192)
    steps: int = 4000  # optimiser steps
    batch: int = 128
    lr: float = 1e-3
    drawn: int = 16  # motions for each start
    solver_steps: int = 24  # of Heun's method
    workers: int = 2  # processes, one core each
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    shapes=("Angle", "Sshape"), folds=(0, 1), points=16, modes=4, hidden=(32,), steps=10, batch=8,
    drawn=2, solver_steps=2, workers=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    lasa.load(settings.shapes[0])  # says at once where there is no archive
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-lasa", folder=settings.out, settings=shown)
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        results = []
        for fold in pool.map(run, [(settings, held) for held in settings.folds]):
            results.append(fold)
            stage = monitor.stage(f"held out {fold['held']}")
            for figures in fold["history"]:
                stage.log({k: v for k, v in figures.items() if k != "step"}, int(figures["step"]))
            means = fold["means"]
            print(
                f"demonstration {fold['held']} held out: dtw "
                + ", ".join(f"{row} {means[row]['dtw']:.2f}" for row in ROWS)
                + f" mm, {fold['seconds']:.0f} s",
                flush=True,
            )
    table = {
        row: {m: spread([fold["means"][row][m] for fold in results]) for m in MEASURES}
        for row in ROWS
    }
    shapes = {
        shape: {
            row: statistics.mean(fold["shapes"][shape][row] for fold in results) for row in ROWS
        }
        for shape in settings.shapes
    }
    kept = statistics.mean(fold["kept"] for fold in results)
    report = {"settings": shown, "kept": kept, "table": table, "dtw of shapes": shapes}
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    (settings.out / "table.md").write_text(markdown(table))
    picture(results[0], settings)
    monitor.record({f"{row}/{m}": table[row][m][0] for row in ROWS for m in MEASURES})
    monitor.finish()
    print(markdown(table))
    return report


def motions(settings: Settings) -> Tensor:
    """Return all demonstrations, `(shapes, 7, points, 2)`, in millimetres."""
    index = torch.linspace(0, lasa.POINTS - 1, settings.points).round().long()
    found = [lasa.load(shape).positions[:, index] for shape in settings.shapes]
    return torch.stack(found).float()


def moved(curves: Tensor, starts: Tensor) -> Tensor:
    """Move curves `(*batch, points, 2)` to other starts, by a shift that fades until the goal."""
    fading = torch.linspace(1, 0, curves.shape[-2])[:, None]
    return curves + fading * (starts - curves[..., 0, :])[..., None, :]


class Departures:
    """Write curves as whitened departures from the mean curve of their shape, and back.

    Args:
        seen: The demonstrations that may be used, `(shapes, 6, points, 2)`.
        modes: Principal components that are kept.
    """

    def __init__(self, seen: Tensor, modes: int) -> None:
        self.mean = seen.mean(1)
        self.spread = seen[:, :, 0].std(1, correction=0).mean(-1)  # of the starts, millimetres
        raw = seen - moved(self.mean[:, None], seen[:, :, 0])
        self.size = raw.square().mean((1, 2, 3)).sqrt()  # of departures, for each shape
        rows = (raw / self.size[:, None, None, None]).flatten(0, 1).flatten(1)
        _, weights, basis = torch.linalg.svd(rows, full_matrices=False)
        self.kept = (weights[:modes].square().sum() / weights.square().sum()).item()
        self.basis = weights[:modes, None] / len(rows) ** 0.5 * basis[:modes]
        self.codes = rows @ torch.linalg.pinv(self.basis)

    def context(self, starts: Tensor, shape: Tensor) -> Tensor:
        """Return conditions: the start in units of the starts' spread, and which shape it is."""
        away = (starts - self.mean[shape, 0]) / self.spread[shape, None]
        return torch.cat([away, torch.nn.functional.one_hot(shape, len(self.mean)).float()], -1)

    def curves(self, codes: Tensor, starts: Tensor, shape: Tensor) -> Tensor:
        """Return the curves of codes `(*batch, n, modes)` for n starts and shapes."""
        departures = (codes @ self.basis).unflatten(-1, (-1, 2)) * self.size[shape, None, None]
        return moved(self.mean[shape], starts) + departures


def fit(departures: Departures, seen: Tensor, settings: Settings) -> tuple[Flow, list[Any]]:
    """Train a flow on the codes of demonstrations, given their starts and shapes."""
    torch.manual_seed(settings.seed)
    shapes, each = seen.shape[:2]
    shape = torch.arange(shapes).repeat_interleave(each)
    context = departures.context(seen[:, :, 0].flatten(0, 1), shape)
    modes = departures.codes.shape[1]
    field = MLPField(modes, 2 + shapes, hidden_features=settings.hidden, residual=True)

    def loss(model: MLPField, x: Tensor, context: Tensor, *, generator: Generator) -> Tensor:
        blur = torch.zeros_like(context)
        blur[:, :2] = settings.blur * torch.randn(len(x), 2, generator=generator)
        return matching(
            model,
            LinearPath(),
            IndependentCoupling(),
            x,
            context=context + blur,
            generator=generator,
        )

    trained = Trainer(
        field,
        loss,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=100),
        ema=0.999,
        log_every=100,
        seed=settings.seed,
        progress=False,
    ).fit((departures.codes, context))
    transport = ODE(field, Heun(steps=settings.solver_steps))
    flow = Flow(Gaussian(modes), transport, context_shape=(2 + shapes,))
    return flow, trained.history


def run(job: tuple[Settings, int]) -> dict[str, Any]:
    settings, held = job
    torch.set_num_threads(1)
    began = time.perf_counter()
    curves = motions(settings)
    truth, starts, shape = curves[:, held], curves[:, held, 0], torch.arange(len(curves))
    seen = curves[:, [k for k in range(curves.shape[1]) if k != held]]
    departures = Departures(seen, settings.modes)
    flow, history = fit(departures, seen, settings)
    context = departures.context(starts, shape)
    generator = Generator().manual_seed(settings.seed + 1)
    drawn = flow.sample(settings.drawn, context, generator=generator)
    with torch.no_grad():
        central = flow.push(torch.zeros(len(curves), *flow.event_shape), context)
    nearest = seen[shape, (starts[:, None] - seen[:, :, 0]).norm(dim=-1).argmin(1)]
    found = {
        "flow": departures.curves(drawn, starts, shape),
        "flow, central": departures.curves(central[None], starts, shape),
        "mean": moved(departures.mean, starts)[None],
        "nearest": moved(nearest, starts)[None],
        "nearest, rigid": (nearest + (starts - nearest[:, 0])[:, None])[None],
        "any": moved(seen, starts[:, None]).transpose(0, 1),
    }
    figures = {name: measured(x, truth) for name, x in found.items()}
    return {
        "held": held,
        "kept": departures.kept,
        "history": history,
        "seconds": time.perf_counter() - began,
        "means": {
            name: {m: values.mean().item() for m, values in figures[name].items()} for name in ROWS
        },
        "shapes": {
            shape: {name: figures[name]["dtw"][:, k].mean().item() for name in ROWS}
            for k, shape in enumerate(settings.shapes)
        },
        "curves": {"seen": seen, "truth": truth, **{k: found[k] for k in ROWS[:2]}},
    }


def measured(found: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Compare motions `(n, shapes, points, 2)` with one truth for each shape; millimetres."""
    truth = truth.expand_as(found)
    return {
        "dtw": warped_distance(found, truth),
        "swept": swept_area(found, truth) / 100,
        "start": (found[..., 0, :] - truth[..., 0, :]).norm(dim=-1),
        "goal": found[..., -1, :].norm(dim=-1),
    }


def warped_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean distance along the best warping of time, `(*batch,)`.

    Of all monotone ways through the table of distances d(x_i, y_j) from the first pair to the last,
    the one with the least sum counts; the sum is divided by the number of its pairs.
    """
    return warped(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"))


def warped(far: Tensor) -> Tensor:
    """Return the mean over the monotone way through tables of distances whose sum is least.

    Args:
        far: Distances of each point of one motion to each of the other, `(*batch, n, m)`.
    """
    none = torch.full(far.shape[:-2], torch.inf)
    above = [(none, none)] * (far.shape[-1] + 1)  # the row before: least sum and its pairs
    above[0] = (torch.zeros_like(none), torch.zeros_like(none))
    for i in range(far.shape[-2]):
        row = [(none, none)]
        for j in range(far.shape[-1]):
            total, pairs = above[j]
            for other, length in (above[j + 1], row[j]):
                pairs = torch.where(other < total, length, pairs)
                total = torch.minimum(total, other)
            row.append((total + far[..., i, j], pairs + 1))
        above = row
    total, pairs = above[-1]
    return total / pairs


def swept_area(x: Tensor, y: Tensor) -> Tensor:
    """Return the area between curves with points at the same times, `(*batch,)`.

    Each tetragon (x_t, x_t+1, y_t+1, y_t) counts as its two triangles along the diagonal from x_t.
    """

    def triangle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        (p, q), (r, s) = (b - a).unbind(-1), (c - a).unbind(-1)
        return 0.5 * (p * s - q * r).abs()

    x0, x1, y0, y1 = x[..., :-1, :], x[..., 1:, :], y[..., :-1, :], y[..., 1:, :]
    return (triangle(x0, x1, y1) + triangle(x0, y1, y0)).sum(-1)


def spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(table: dict[str, dict[str, tuple[float, float]]]) -> str:
    lines = ["| motion | dtw, mm | swept, cm^2 | start, mm | goal, mm |", "|---|---|---|---|---|"]
    for row, figures in table.items():
        cells = [f"{figures[m][0]:.2f} +- {figures[m][1]:.2f}" for m in MEASURES]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(fold: dict[str, Any], settings: Settings) -> None:
    """Draw the motions of the first fold: demonstrations seen, held out, and drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = fold["curves"]
    columns = min(6, len(settings.shapes))
    rows = -(-len(settings.shapes) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.2 * columns, 2.2 * rows + 0.5), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for k, shape in enumerate(settings.shapes):
        axis = axes.flat[k]
        several = [
            ("demonstrations seen", curves["seen"][k], dict(color="0.75", linewidth=1)),
            ("drawn", curves["flow"][:8, k], dict(color="tab:blue", linewidth=0.6)),
            ("zero noise", curves["flow, central"][:, k], dict(color="tab:orange", linewidth=1.6)),
            ("held out", curves["truth"][k : k + 1], dict(color="black", linewidth=1.2, ls="--")),
        ]
        for label, lines, style in several:
            for n, line in enumerate(lines):
                axis.plot(*line.T, **style, label=label if n == 0 else None)
        axis.scatter(*curves["truth"][k, 0], s=12, color="black", zorder=3)
        axis.set_title(shape.replace("_", " "), fontsize=8)
        axis.set_aspect("equal", adjustable="datalim")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / (2.2 * rows + 0.5), 1, 1))
    figure.savefig(settings.out / "motions.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
