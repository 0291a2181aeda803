"""Handwritten motions on the sphere: where the hand is at which phase, with likelihoods.

    python -m experiments.lasa_sphere            # about six minutes on one core
    python -m experiments.lasa_sphere --smoke    # the same road in seconds

Motions of the LASA set are wrapped on the sphere S^2: their plane is the tangent plane at the north
pole, where the goal lies, scaled so that the farthest point is `reach` radians away, and the
exponential map takes them down. A flow learns the law of the position given the shape and the phase
s in [0, 1], the share of the duration that is over. As all motions end in the same point, where a
likelihood has no bound, positions are blurred by wrapped normal noise of `blur` radians, in
training and in test; no law can come below `floor` nats on average. Five demonstrations of each
shape train, one chooses the weights, one is held out, in several folds. Reported are means over
folds and their spread:

    nll       mean -log q of blurred positions of the held-out motion, nats by the area of the
              sphere (uniform law: 2.53): of the flow, and of a wrapped normal for each phase, whose
              mean and covariance are those of the five demonstrations ("of six": and of the one
              that chooses). Few motions do not tell how wide a law is: the flow learns the laws of
              several widths, a condition; the normals may be widened, and smoothed over phases;
              the widths of both are the best for the demonstration that chooses the weights
    distance  of a motion from the held-out one: mean over equal phases, degrees
    dtw       the same along the best warping of time, degrees

A motion of the flow is one base point pushed at all phases: the law is learned phase by phase, so
that motions follow from the flow's smoothness, not from data. "drawn" takes random base points and
belongs beside "any", one of the five demonstrations; "central" takes the middle of the base and
belongs beside "mean", the mean of the five.

Then the flow of the first fold is straightened, and distilled to one step (`cflow.train.reflow` and
`distil`). For a few steps of Euler's method along geodesics stand the 2-Wasserstein distance from
samples to those of a fine solve of the first flow, mean over conditions, in degrees ("floor": that
of two such sets), and the largest | |x| - 1 | of the samples.

The archive has to lie in the folder named by CFLOW_DATA. Everything lands in runs/lasa_sphere/:
report.json, table.md, motions.png, weights, an offline wandb run.

Source: Khansari-Zadeh and Billard (2011), IEEE Transactions on Robotics 27; Braun et al. (2024),
Riemannian flow matching policy, arXiv 2403.10672, for motions of this set on the sphere, whose
figures are of another task.
"""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow
from cflow.base import VonMisesFisher
from cflow.data import lasa
from cflow.field import MLPField, TangentField
from cflow.matching import GeodesicPath, IndependentCoupling, matching
from cflow.ode import RK4, Euler
from cflow.train import CosineDecay, Trainer, WandbMonitor, distil, reflow
from cflow.transport import ODE
from experiments import lasa_sphere_laws as laws
from experiments.lasa_sphere_laws import SPACE, blurred

POLE = torch.tensor([0.0, 0.0, 1.0])
MOTIONS = ("drawn", "any", "central", "mean")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/lasa_sphere")
    shapes: tuple[str, ...] = ("Angle", "GShape", "Sshape", "Leaf_1", "Sine", "Worm")
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)  # demonstrations held out
    points: int = 100  # of a motion, evenly spaced in time
    reach: float = 1.4  # radians
    blur: float = 0.02  # radians
    concentration: float = 4.0  # of the base, a von Mises-Fisher law about the pole
    waves: int = 6  # of the phase that the field sees
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 4000  # optimiser steps
    batch: int = 256
    lr: float = 3e-3
    validations: int = 12
    solver_steps: int = 16  # of RK4
    drawn: int = 16  # motions of each shape
    pairs: int = 20_000  # that the flow makes to be straightened
    reflow_steps: int = 4000  # optimiser steps
    reflow_lr: float = 1e-3
    few: tuple[int, ...] = (1, 2, 4, 8)  # steps of Euler's method
    compared: int = 8  # phases of each shape at which samples are compared
    samples: int = 256  # of each
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    shapes=("Angle", "Sshape"), folds=(0, 1), points=12, hidden=(16,), steps=8, batch=16,
    validations=1, solver_steps=2, drawn=2, pairs=40, reflow_steps=4, few=(1, 2), compared=2,
    samples=8,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    curves = motions(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-lasa-sphere", folder=settings.out, settings=shown)
    results: list[dict[str, Any]] = []
    flows = []
    for held in settings.folds:
        flow, found = run(curves, held, settings, monitor)
        flows.append(flow)
        results.append(found)
        print(
            f"demonstration {held} held out: nll {found['nll']['flow']:.3f}, wrapped normals "
            f"{found['nll']['wrapped normals']:.3f} nats, {found['seconds']:.0f} s",
            flush=True,
        )
    width = results[0]["width"]
    taught, few = straightened(flows[0], width, settings)
    for name, flow in taught.items():
        flow.save(settings.out / f"{name}.safetensors")

    def over(*keys: str) -> tuple[float, float]:
        return spread(
            [reduce(lambda part, key: part[key], keys, cast(Any, found)) for found in results]
        )

    report = {
        "settings": shown,
        "floor": 1 + math.log(2 * math.pi * settings.blur**2),
        "nll": {row: over("nll", row) for row in results[0]["nll"]},
        "motions": {
            row: {m: over("motions", row, m) for m in ("distance", "dtw")} for row in MOTIONS
        },
        "few steps": few,
        "off": max(found["off"] for found in results),
        "widths": [found["width"] for found in results],
        "seconds": [found["seconds"] for found in results],
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    table = markdown(report)
    (settings.out / "table.md").write_text(table)
    titles = (f"flow, {settings.solver_steps} steps of RK4", "distilled, 1 step of Euler")
    shown_flows = dict(zip(titles, (taught["flow"], taught["distilled"]), strict=True))
    picture(settings.out / "motions.png", shown_flows, curves, width, settings)
    monitor.record({"nll": report["nll"]["flow"][0], "dtw": report["motions"]["central"]["dtw"][0]})
    monitor.finish()
    print(table)
    return report


def motions(settings: Settings) -> Tensor:
    """Return all demonstrations on the sphere, `(shapes, 7, points, 3)`."""
    index = torch.linspace(0, lasa.POINTS - 1, settings.points).round().long()
    flat = torch.stack([lasa.load(shape).positions[:, index] for shape in settings.shapes]).float()
    flat = settings.reach * flat / flat.norm(dim=-1).amax((1, 2))[:, None, None, None]
    return SPACE.expmap(POLE.expand(*flat.shape[:-1], 3), nn.functional.pad(flat, (0, 1)))


def told(shape: Tensor, phase: Tensor, settings: Settings) -> Tensor:
    """Return what a flow is told: which shape it is, waves of the phase, and a width, 0 as yet."""
    k = math.pi * torch.arange(1, settings.waves + 1)
    waves = [phase[..., None], (k * phase[..., None]).sin(), (k * phase[..., None]).cos()]
    one = nn.functional.one_hot(shape, len(settings.shapes)).float()
    return torch.cat([one, *waves, torch.zeros_like(phase)[..., None]], -1)


def at_width(context: Tensor, width: Tensor | float) -> Tensor:
    """Return conditions with a width in radians."""
    filled = (
        torch.as_tensor(width, dtype=context.dtype).expand(context.shape[:-1]) / laws.WIDTHS[-1]
    )
    return torch.cat([context[..., :-1], filled[..., None]], -1)


def all_told(settings: Settings) -> Tensor:
    """Return the conditions of all points of a motion of each shape, `(shapes, points, n)`."""
    shape = torch.arange(len(settings.shapes))[:, None].expand(-1, settings.points)
    return told(shape, torch.linspace(0, 1, settings.points).expand(shape.shape), settings)


def run(
    curves: Tensor, held: int, settings: Settings, monitor: WandbMonitor
) -> tuple[Flow, dict[str, Any]]:
    """Fit a flow with one demonstration held out, and compare."""
    began = time.perf_counter()
    count = curves.shape[1]
    chooser = (held + 1) % count
    train = curves[:, [k for k in range(count) if k not in (held, chooser)]]
    seen = curves[:, [k for k in range(count) if k != held]]
    flow = fit(train, curves[:, chooser], settings, monitor.stage(f"held out {held}"))
    seconds = time.perf_counter() - began
    generator = Generator().manual_seed(settings.seed + 1)
    truth = curves[:, held]
    tested, chosen = (
        blurred(x, settings.blur, generator) for x in (truth, curves[:, chooser])
    )  # fmt: skip
    width, log_q = widened(flow, chosen, tested, settings)
    choice = laws.widths(train, chosen, settings.blur)
    normals = {
        name: laws.wrapped_normals(x, tested, *choice, blur=settings.blur)
        for name, x in {"wrapped normals": train, "wrapped normals of six": seen}.items()
    }
    base = flow.base.sample((settings.drawn,), generator=generator)
    found = {
        "drawn": pushed(flow, base, width, settings),
        "any": train.transpose(0, 1),
        "central": pushed(flow, POLE[None], width, settings),
        "mean": laws.mean(train)[None],
    }
    return flow, {
        "nll": {name: -log_p.mean().item() for name, log_p in {"flow": log_q, **normals}.items()},
        "motions": {name: laws.measured(x, truth) for name, x in found.items()},
        "off": max((found[k].norm(dim=-1) - 1).abs().max().item() for k in ("drawn", "central")),
        "width": width,
        "seconds": seconds,
    }


@torch.no_grad()
def widened(flow: Flow, chosen: Tensor, tested: Tensor, settings: Settings) -> tuple[float, Tensor]:
    """Return the width that is best for one demonstration, and log densities of the other at it."""
    context = all_told(settings)
    likely = lambda width: flow.log_prob(chosen, at_width(context, width)).mean().item()
    width = max(laws.WIDTHS, key=likely)
    return width, flow.log_prob(tested, at_width(context, width))


def fit(train: Tensor, chooser: Tensor, settings: Settings, monitor: Any) -> Flow:
    """Match a field from a cap about the pole to blurred points of demonstrations."""
    torch.manual_seed(settings.seed)
    context = at_width(all_told(settings), 0.04)  # at which the weights are chosen
    length = context.shape[-1]
    net = MLPField(3, length, hidden_features=settings.hidden, residual=True)
    base = VonMisesFisher(3, mean=POLE, concentration=settings.concentration, learned=False)
    transport = ODE(TangentField(net, SPACE), RK4(settings.solver_steps), manifold=SPACE)
    flow = Flow(base, transport, context_shape=(length,))

    def loss(model: nn.Module, x: Tensor, given: Tensor, *, generator: Generator) -> Tensor:
        assert isinstance(model, Flow)
        if not model.training:
            return -model.log_prob(blurred(x, settings.blur, generator), given)
        width = laws.WIDTHS[-1] * torch.rand(len(x), 1, generator=generator)
        x1 = blurred(x, (settings.blur**2 + width**2).sqrt(), generator)
        assert isinstance(model.transport, ODE)
        return matching(
            model.transport.field,
            GeodesicPath(SPACE),
            IndependentCoupling(),
            x1,
            x0=model.base.sample((len(x1),), generator=generator),
            context=at_width(given, width[:, 0]),
            generator=generator,
        )

    rows = lambda x: (
        x.reshape(-1, 3),
        context[:, None].expand(*x.shape[:-1], length).reshape(-1, length),
    )
    Trainer(
        flow,
        loss,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(100, settings.steps // 4), final=0.02),
        ema=0.998,
        validate_every=max(1, settings.steps // settings.validations),
        monitor=monitor,
        log_every=100,
        seed=settings.seed,
        progress=False,
    ).fit(rows(train), rows(chooser[:, None]))
    return flow.eval()


@torch.no_grad()
def pushed(flow: Flow, base: Tensor, width: float, settings: Settings) -> Tensor:
    """Return motions `(n, shapes, points, 3)` of base points `(n, 3)`."""
    context = at_width(all_told(settings), width)
    shape = (len(base), *context.shape[:-1])
    return flow.push(base[:, None, None].expand(*shape, 3), context.expand(*shape, -1))


def straightened(
    flow: Flow, width: float, settings: Settings
) -> tuple[dict[str, Flow], dict[str, dict[str, float]]]:
    """Straighten a flow, distil the result, and compare few steps with the fine solve."""
    given = at_width(all_told(settings), width)
    generator = Generator().manual_seed(settings.seed + 2)
    rows = torch.randint(given[..., 0].numel(), (settings.pairs,), generator=generator)
    lesson: dict[str, Any] = dict(context=given.flatten(0, 1)[rows], progress=False)
    lesson["trainer"] = partial(
        Trainer,
        steps=settings.reflow_steps,
        batch=settings.batch,
        lr=settings.reflow_lr,
        schedule=CosineDecay(warmup=min(100, settings.reflow_steps // 4), final=0.02),
        ema=0.998,
        progress=False,
    )
    straight = reflow(flow, settings.pairs, **lesson)[0]
    distilled = distil(straight, settings.pairs, **lesson)
    phases = torch.linspace(0, settings.points - 1, settings.compared).round().long()
    draw = partial(laws.drawn, given[:, phases].flatten(0, 1), settings.samples, generator)
    fine = draw(flow)
    few = {
        "floor": laws.apart(draw(flow), fine),
        "straightened, fine": laws.apart(draw(straight), fine),
        "distilled, 1": laws.apart(draw(distilled), fine),
    }
    for name, model in {"flow": flow, "straightened": straight}.items():
        for steps in settings.few:
            few[f"{name}, {steps}"] = laws.apart(draw(model.with_solver(Euler(steps))), fine)
    return {"flow": flow, "straightened": straight, "distilled": distilled}, few


def spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(report: dict[str, Any]) -> str:
    said = lambda value: f"{value[0]:.3f} +- {value[1]:.3f}"
    lines = ["| law | nll, nats |", "|---|---|"]
    lines += [f"| {row} | {said(value)} |" for row, value in report["nll"].items()]
    lines += [f"| floor | {report['floor']:.3f} |", ""]
    lines += ["| motion | distance, degrees | dtw, degrees |", "|---|---|---|"]
    for row, values in report["motions"].items():
        lines.append(f"| {row} | {said(values['distance'])} | {said(values['dtw'])} |")
    lines += ["", "| steps | W2 to the fine solve, degrees | off the sphere |", "|---|---|---|"]
    for row, values in report["few steps"].items():
        lines.append(f"| {row} | {values['w2']:.3f} | {values['off']:.1e} |")
    return "\n".join(lines) + "\n"


def picture(
    path: Path, flows: dict[str, Flow], curves: Tensor, width: float, settings: Settings
) -> None:
    """Draw the motions of the first fold on the globe, seen from above the goal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    held, shapes = settings.folds[0], settings.shapes
    base = VonMisesFisher(3, mean=POLE, concentration=settings.concentration).sample(
        (8,), generator=Generator().manual_seed(settings.seed + 3)
    )
    size = (2.3 * len(shapes), 2.6 * len(flows) + 0.9)
    figure, axes = plt.subplots(
        len(flows), len(shapes), figsize=size, squeeze=False, layout="constrained"
    )
    for row, (title, flow) in zip(axes, flows.items(), strict=True):
        drawn = pushed(flow, base, width, settings)
        central = pushed(flow, POLE[None], width, settings)
        seen = curves[:, [k for k in range(curves.shape[1]) if k != held]]
        for k, axis in enumerate(row):
            globe(axis)
            several = [
                ("demonstrations seen", seen[k], dict(color="0.65", lw=0.9)),
                ("drawn", drawn[:, k], dict(color="tab:blue", lw=0.6)),
                ("central", central[:, k], dict(color="tab:orange", lw=1.6)),
                ("held out", curves[k, held][None], dict(color="black", lw=1.1, ls="--")),
            ]
            for label, lines, style in several:
                for n, line in enumerate(lines.detach()):
                    axis.plot(*line[:, :2].T, **style, label=label if n == 0 else None)
            axis.set_title(f"{shapes[k].replace('_', ' ')}\n{title}", fontsize=7)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        "from above the north pole, where the goal is; the edge is the equator", fontsize=9
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def globe(axis: Any) -> None:
    """Draw the northern half of a globe from above: its edge is the equator."""
    turn = torch.linspace(0, 2 * math.pi, 181)
    for latitude in (0, 30, 60):
        r = math.cos(math.radians(latitude))
        style = dict(color="0.4", lw=0.8) if latitude == 0 else dict(color="0.85", lw=0.5)
        axis.plot(r * turn.cos(), r * turn.sin(), **style)
    for longitude in torch.arange(0, 12) * math.pi / 6:
        axis.plot([0, longitude.cos()], [0, longitude.sin()], color="0.85", lw=0.5)
    axis.set_aspect("equal")
    axis.set_axis_off()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
