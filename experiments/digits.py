"""Handwritten digits: from raw pixels to an exported sampler of one or two steps.

    python -m experiments.digits                # about three and a half minutes on two cores
    python -m experiments.digits --smoke        # the same road in seconds, figures meaningless

Trains a RealNVP by maximum likelihood and a velocity field by flow matching with OT coupling, and
asks both for test bits per dimension through the same `flow.log_prob`. Then straightens the field
(reflow), distils it to few steps, measures sample quality against steps, and exports the result.
Expect 2.06 and 2.03 bits/dim, samples at 100 steps close to the distance between two real halves,
and one step that is as good after distillation. Everything lands in runs/digits/.
"""

import copy
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from cflow import Flow, State, nll, plots, recipes
from cflow.data import digits
from cflow.export import Sampler, export_onnx, export_pt2
from cflow.matching import (
    LinearPath,
    OTCoupling,
    PairedCoupling,
    StepTimes,
    TimeLaw,
    UniformTimes,
    matching,
    reflow_pairs,
)
from cflow.metrics import bits_per_dim, sliced_wasserstein
from cflow.ode import RK4, Euler, Heun
from cflow.train import CosineDecay, Trainer, TrainingData, WandbMonitor
from cflow.transport import ODE, Chain

LEVELS = 17  # grey levels of the digits
SHAPE = (8, 8)
HALF = 200  # images on either side of every distance
STEPS = (100, 8, 4, 2, 1)  # Euler steps of the samplers that are compared


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/digits")  # folder of the results
    seed: int = 0
    batch: int = 256
    realnvp_steps: int = 900  # optimiser steps
    matching_steps: int = 2200
    reflow_steps: int = 800
    distil_steps: int = 1200
    pairs: int = 12_000  # reflow pairs
    width: int = 512  # units in each hidden layer of the field
    depth: int = 6  # hidden layers of the field
    repeats: int = 8  # sample sets for each distance
    resume: bool = False  # go on from the checkpoints of an interrupted run
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    realnvp_steps=20,
    matching_steps=20,
    reflow_steps=20,
    distil_steps=20,
    pairs=256,
    width=32,
    depth=2,
    repeats=2,
)


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    torch.manual_seed(settings.seed)
    run = Run(settings)
    train, validation, test = digits()  # integers; dequantisation and logit are layers of the flows

    layers = train_layers(run, train, validation)  # zero steps
    flow = train_field(run, train, validation)  # N steps
    bits = {"realnvp": test_bits(layers, test), "matching": test_bits(flow, test)}
    run.lap("likelihood")

    straight, distilled = straighten(run, flow)  # few steps
    models = {"realnvp": layers, "matching": flow, "reflow": straight, "distilled": distilled}
    quality = measure(run, models, test)
    exports = export_all(distilled, settings.out)
    run.lap("export")
    pictures(run, models, test)
    run.lap("pictures")

    for name, model in models.items():
        model.save(settings.out / f"{name}.safetensors")
    report = {
        "bits_per_dim": {name: mean_and_error(b) for name, b in bits.items()},
        "bits_difference": mean_and_error(bits["matching"] - bits["realnvp"]),
        "likelihood": {"realnvp": layers.likelihood, "matching": flow.likelihood},
        "quality": quality,
        "checks": checks(bits, quality, exports),
        "export": exports,
        "seconds": {**run.laps, "total": run.total()},
        "settings": json_ready(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=2))
    run.monitor.record({f"test bits/dim {name}": b.mean().item() for name, b in bits.items()})
    run.monitor.finish()
    show(report, settings.out)
    return report


class Run:
    """One pass through the script: its settings, its wandb run, its losses and its clock."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}
        self.histories: dict[str, list[dict[str, float | int]]] = {}
        self.monitor = WandbMonitor(
            "cflow-digits", folder=settings.out, settings=json_ready(settings)
        )

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def total(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start

    def fit(
        self,
        name: str,
        model: Flow,
        loss: Callable[..., Tensor],
        data: TrainingData,
        held: TrainingData,
        *,
        steps: int,
        lr: float,
        decay: float,
    ) -> None:
        """Train a model in a folder of its own and say how it went."""
        folder = self.settings.out / name
        if not self.settings.resume and (folder / "checkpoint.pt").exists():
            (folder / "checkpoint.pt").unlink()
        result = Trainer(
            model,
            loss,
            steps=steps,
            batch=self.settings.batch,
            clip=1.0,
            ema=0.999,
            optimizer=torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay),
            schedule=CosineDecay(warmup=min(100, steps // 4), final=0.01),
            folder=folder,
            validate_every=max(1, steps // 20),
            monitor=self.monitor.stage(name),
            seed=self.settings.seed,
        ).fit(data, held)
        self.histories[name] = result.history
        self.lap(name)
        print(
            f"{name}: {result.step} steps, best validation {result.best_value:.4f} at step "
            f"{result.best_step}, {self.laps[name]:.0f} s"
        )


def train_layers(run: Run, train: Tensor, validation: Tensor) -> Flow:
    """Fit affine coupling layers by maximum likelihood."""
    core = recipes.realnvp(
        64, transforms=12, hidden_features=(256, 256), bound=2.0, dropout=0.4, fast="sample"
    )
    flow = recipes.images(core, SHAPE, levels=LEVELS)
    flow.initialize(train)
    steps = run.settings.realnvp_steps
    run.fit("realnvp", flow, nll, train, validation, steps=steps, lr=2e-3, decay=0.1)
    return flow


def train_field(run: Run, train: Tensor, validation: Tensor) -> Flow:
    """Fit a velocity field by flow matching, in the space of the standardised logits."""
    hidden = (run.settings.width,) * run.settings.depth
    core = recipes.cnf(64, hidden_features=hidden, residual=True, dropout=0.2, solver=RK4(8))
    flow = recipes.images(core, SHAPE, levels=LEVELS)
    flow.initialize(train)

    def loss(model: Flow, x: Tensor, *, generator: torch.Generator) -> Tensor:
        x1 = preprocessing(model).pull(State(x), generator=generator).x
        return matching(ode(model).field, LinearPath(), OTCoupling(), x1, generator=generator)

    steps = run.settings.matching_steps
    run.fit("matching", flow, loss, train, validation, steps=steps, lr=4e-3, decay=0.3)
    return flow


def straighten(run: Run, flow: Flow) -> tuple[Flow, Flow]:
    """Reflow the field on pairs of its own making, then distil it to two Euler steps."""
    settings, held = run.settings, max(1, run.settings.pairs // 20)
    teacher = flow.with_solver(Heun(20))
    x0, x1 = reflow_pairs(teacher, settings.pairs, chunk=4096, seed=settings.seed)
    pairs, held_pairs = (x0[held:], x1[held:]), (x0[:held], x1[:held])
    run.lap("pairs")

    def at(times: TimeLaw) -> Callable[..., Tensor]:
        """Return the loss on pairs at some times: all for reflow, two for distillation."""

        def loss(model: Flow, a: Tensor, b: Tensor, *, generator: torch.Generator) -> Tensor:
            return matching(
                ode(model).field, LinearPath(), PairedCoupling(), b,
                x0=a, times=times, generator=generator,
            )  # fmt: skip

        return loss

    straight = copy.deepcopy(flow)
    for module in straight.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # pairs made by a field are to be fitted, not smoothed
    steps = settings.reflow_steps
    run.fit(
        "reflow", straight, at(UniformTimes()), pairs, held_pairs, steps=steps, lr=5e-4, decay=0.0
    )
    distilled, steps = copy.deepcopy(straight), settings.distil_steps
    run.fit(
        "distilled", distilled, at(StepTimes(2)), pairs, held_pairs, steps=steps, lr=1e-3, decay=0.0
    )
    return straight, distilled


def measure(run: Run, models: dict[str, Flow], test: Tensor) -> dict[str, dict[str, float]]:
    """Measure every sampler by its distance to held-out digits, beside that of two real halves."""
    repeats = run.settings.repeats

    def distance(flow: Flow) -> dict[str, float]:
        """Draw the samples of all repeats, from the same noise for every model."""
        generator = torch.Generator().manual_seed(2)
        return distances(flow.sample(repeats * HALF, generator=generator), test, repeats)

    quality = {"real halves": distances(test, test, repeats)}
    quality["realnvp"] = distance(models["realnvp"])
    for name in ("matching", "reflow", "distilled"):
        for steps in STEPS if name != "distilled" else STEPS[-2:]:
            quality[f"{name}, {steps} steps"] = distance(models[name].with_solver(Euler(steps)))
    run.lap("quality")
    return quality


def ode(flow: Flow) -> ODE:
    """Return the ODE at the base end of an image flow."""
    assert isinstance(flow.transport, Chain)
    part = flow.transport[0]
    assert isinstance(part, ODE)
    return part


def preprocessing(flow: Flow) -> Chain:
    """Return what stands between the standardised logits and the integer images."""
    assert isinstance(flow.transport, Chain)
    return flow.transport[1:]


@torch.no_grad()
def test_bits(flow: Flow, x: Tensor) -> Tensor:
    """Return bits per dimension of each image: an upper bound, by uniform dequantisation."""
    generator = torch.Generator().manual_seed(1)
    log_prob = torch.cat([flow.log_prob(part, generator=generator) for part in x.split(100)])
    return bits_per_dim(log_prob, SHAPE)


def distances(samples: Tensor, test: Tensor, repeats: int) -> dict[str, float]:
    """Return mean and standard error of the distance between HALF images and a half of the test.

    Repeat k splits the test images at random. It compares its first half with the k-th set of
    samples; where the samples are the test images themselves, with its second half.
    """
    values = []
    for k in range(repeats):
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(k))
        real = test[order[:HALF]] / (LEVELS - 1)
        other = test[order[HALF:]] if samples is test else samples[k * HALF : (k + 1) * HALF]
        generator = torch.Generator().manual_seed(k)
        distance = sliced_wasserstein(real.float(), other / (LEVELS - 1), generator=generator)
        values.append(distance.item())
    return mean_and_error(torch.tensor(values))


def mean_and_error(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "error": values.std().item() / math.sqrt(len(values))}


def export_all(flow: Flow, out: Path) -> dict[str, dict[str, float]]:
    """Export two-step and one-step samplers and run each file in a process without cflow."""
    assert isinstance(flow.transport, Chain)
    shades = Flow(flow.base, flow.transport[:-1])  # grey in [0, 1], before it is cut to levels
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    np.save(out / "noise.npy", noise.numpy())
    results = {}
    for steps in (2, 1):
        sampler = Sampler(shades, solver=Euler(steps)).eval()
        with torch.no_grad():
            eager = sampler(noise)
        for write, ending in ((export_pt2, "pt2"), (export_onnx, "onnx")):
            path = out / f"sampler_{steps}.{ending}"
            parity = write(sampler, path)
            result = out / "samples.npy"
            script = Path(__file__).with_name("run_exported.py")
            subprocess.run(
                [sys.executable, "-I", script, path, out / "noise.npy", result], check=True
            )
            found = torch.from_numpy(np.load(result))
            apart = float((found - eager).abs().max() / eager.abs().max().clamp(min=1.0))
            results[path.name] = {
                "parity_at_export": parity,
                "parity_in_fresh_process": apart,
                "bytes": path.stat().st_size,
            }
    return results


def checks(bits: dict[str, Tensor], quality: dict[str, Any], exports: dict[str, Any]) -> dict:
    """Hold the figures against what the demo sets out to show."""
    q = {name: entry["mean"] for name, entry in quality.items()}
    teacher = q["matching, 100 steps"]
    return {
        "flow matching has fewer bits than RealNVP": bool(
            bits["matching"].mean() < bits["realnvp"].mean()
        ),
        "100 steps are within twice the floor": teacher <= 2 * q["real halves"],
        "1 step: distilled is better than before": (
            q["distilled, 1 steps"] < q["matching, 1 steps"]
        ),
        "2 steps: distilled is within 1.3 times 100": q["distilled, 2 steps"] <= 1.3 * teacher,
        "exported files differ by at most 1e-4": all(
            entry["parity_in_fresh_process"] <= 1e-4 for entry in exports.values()
        ),
    }


@torch.no_grad()
def pictures(run: Run, models: dict[str, Flow], test: Tensor) -> None:
    """Draw samples beside real digits, trajectories before and after reflow, and losses."""
    out = run.settings.out
    noise = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))

    def drawn(name: str, steps: int) -> Tensor:
        return models[name].with_solver(Euler(steps)).push(noise)

    plots.image_grid(
        out / "samples.png",
        {
            "real digits, held out": test[:16].float(),
            "RealNVP, zero solver steps": models["realnvp"].push(noise),
            "flow matching, 100 steps": drawn("matching", 100),
            "flow matching, 2 steps": drawn("matching", 2),
            "flow matching, 1 step": drawn("matching", 1),
            "distilled, 2 steps": drawn("distilled", 2),
            "distilled, 1 step": drawn("distilled", 1),
        },
    )
    ts = torch.linspace(0, 1, 21)
    starts = torch.randn(60, 64, generator=torch.Generator().manual_seed(5))
    ways = {
        title: ODE(ode(models[name]).field, Euler(20)).trajectory(starts, ts)
        for title, name in (("flow matching, OT", "matching"), ("after reflow", "reflow"))
    }
    plots.trajectories(out / "trajectories.png", ways)
    decode = preprocessing(models["matching"])
    frames = {
        f"t = {ts[k].item():.1f}": decode.push(State(ways["flow matching, OT"][k, :8])).x
        for k in range(0, 21, 4)
    }
    plots.image_grid(out / "trajectory_frames.png", frames)
    plots.curves(out / "curves.png", run.histories)


def json_ready(settings: Settings) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}


def show(report: dict[str, Any], out: Path) -> None:
    """Print the table."""
    pm = lambda entry: f"{entry['mean']:.4f} +- {entry['error']:.4f}"
    print("\ntest bits per dimension (upper bounds, uniform dequantisation)")
    for name, entry in report["bits_per_dim"].items():
        print(f"  {name:28s} {pm(entry)}")
    print(f"  {'matching - realnvp, paired':28s} {pm(report['bits_difference'])}")
    print("\nsliced Wasserstein distance to held-out digits, grey in [0, 1]")
    for name, entry in report["quality"].items():
        print(f"  {name:28s} {pm(entry)}")
    print("\nexported samplers, run in a process without cflow: max|a-b| / max(1, max|b|)")
    for name, entry in report["export"].items():
        print(f"  {name:28s} {entry['parity_in_fresh_process']:.2e}")
    print()
    for name, passed in report["checks"].items():
        print(f"  [{'yes' if passed else 'NO '}] {name}")
    print(f"\n{report['seconds']['total']:.0f} s; everything is in {out}/")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
