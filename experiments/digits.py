"""Handwritten digits: from raw pixels to an exported sampler of one or two steps.

    python -m experiments.digits                # about four minutes on two cores
    python -m experiments.digits --smoke        # the same road in seconds, figures meaningless

Trains a RealNVP by maximum likelihood and a velocity field by flow matching with OT coupling, and
asks both for test bits per dimension through the same `flow.log_prob`. Then straightens the field
(reflow), distils it to few steps, measures sample quality against steps, and exports the result.
Expect about 2.06 bits/dim from both, samples at 100 steps close to the distance between two real
halves, and one to two steps that are as good after distillation. Everything lands in runs/digits/.
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
from cflow.export import Sampler, export_onnx, export_pt2
from cflow.matching import (
    LinearPath,
    OTCoupling,
    PairedCoupling,
    euler_times,
    matching,
    reflow_pairs,
)
from cflow.metrics import bits_per_dim, sliced_wasserstein
from cflow.ode import RK4, Euler, Heun
from cflow.train import CosineDecay, Trainer, TrainResult, WandbMonitor
from cflow.transport import ODE, Chain

LEVELS = 17  # grey levels of the digits
SHAPE = (8, 8)
TRAIN, VALIDATION, TEST = 1197, 200, 400  # images; the split is fixed by SPLIT_SEED
SPLIT_SEED = 0
HALF = TEST // 2  # images on either side of every distance
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


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(
            settings,
            realnvp_steps=20,
            matching_steps=20,
            reflow_steps=20,
            distil_steps=20,
            pairs=256,
            width=32,
            depth=2,
            repeats=2,
        )
    torch.manual_seed(settings.seed)
    out = settings.out
    clock = Clock()
    monitor = WandbMonitor("cflow-digits", folder=out, settings=json_ready(asdict(settings)))

    # Data: 17 grey levels, integers. Dequantisation and logit are layers of the flows.
    train, validation, test = load()
    clock.lap("data")

    # Zero steps: affine coupling layers, by maximum likelihood.
    layers = recipes.images(
        recipes.realnvp(64, transforms=12, hidden_features=(256, 256), bound=2.0, dropout=0.4),
        SHAPE,
        levels=LEVELS,
    )
    layers.initialize(train)
    histories: dict[str, list[dict[str, float | int]]] = {}

    def fit(
        name: str,
        model: nn.Module,
        loss: Callable[..., Tensor],
        data: Any,
        held: Any,
        steps: int,
        lr: float,
        decay: float,
    ) -> TrainResult:
        folder = out / name
        if not settings.resume:
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        trainer = Trainer(
            model,
            loss,
            steps=steps,
            batch=settings.batch,
            clip=1.0,
            ema=0.999,
            optimizer=torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay),
            schedule=CosineDecay(warmup=min(100, steps // 4), final=0.01),
            folder=folder,
            validate_every=max(1, steps // 20),
            monitor=monitor.stage(name),
            seed=settings.seed,
        )
        result = trainer.fit(data, held)
        histories[name] = result.history
        clock.lap(name)
        print(
            f"{name}: {result.step} steps, best validation {result.best_value:.4f} at step "
            f"{result.best_step}, {clock.laps[name]:.0f} s"
        )
        return result

    fit("realnvp", layers, nll, train, validation, settings.realnvp_steps, 2e-3, 0.1)

    # N steps: a velocity field, by flow matching in the space of the standardised logits.
    field_flow = recipes.cnf(
        64,
        hidden_features=(settings.width,) * settings.depth,
        residual=True,
        dropout=0.2,
        solver=RK4(8),
    )
    flow = recipes.images(field_flow, SHAPE, levels=LEVELS)
    flow.initialize(train)

    def ot_matching(model: Flow, x: Tensor, *, generator: torch.Generator) -> Tensor:
        x1 = to_latent(model, x, generator)
        return matching(ode_of(model).field, LinearPath(), OTCoupling(), x1, generator=generator)

    fit("matching", flow, ot_matching, train, validation, settings.matching_steps, 4e-3, 0.3)

    bits = {"realnvp": test_bits(layers, test), "matching": test_bits(flow, test)}
    difference = bits["matching"] - bits["realnvp"]
    clock.lap("likelihood")

    # Few steps: straighten the field on its own pairs, then distil it to two Euler steps.
    ode = ode_of(flow).eval()
    x0, x1 = reflow_pairs(
        flow.base,
        ODE(ode.field, Heun(20)),
        settings.pairs,
        batch=4096,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    held = max(1, settings.pairs // 20)
    clock.lap("pairs")

    def on_pairs(model: Flow, a: Tensor, b: Tensor, *, generator: torch.Generator) -> Tensor:
        return matching(
            ode_of(model).field, LinearPath(), PairedCoupling(), b, x0=a, generator=generator
        )

    def on_grid(model: Flow, a: Tensor, b: Tensor, *, generator: torch.Generator) -> Tensor:
        t = euler_times(len(a), 2, like=a, generator=generator)
        return matching(ode_of(model).field, LinearPath(), PairedCoupling(), b, x0=a, t=t)

    straight = without_dropout(copy.deepcopy(flow))
    pairs, held_pairs = (x0[held:], x1[held:]), (x0[:held], x1[:held])
    fit("reflow", straight, on_pairs, pairs, held_pairs, settings.reflow_steps, 5e-4, 0.0)
    distilled = copy.deepcopy(straight)
    fit("distilled", distilled, on_grid, pairs, held_pairs, settings.distil_steps, 1e-3, 0.0)

    # Quality: sliced Wasserstein distance to held-out digits, beside that of two real halves.
    models = {"matching": flow, "reflow": straight, "distilled": distilled}
    quality: dict[str, dict[str, Any]] = {"real halves": distances(test, test, settings.repeats)}
    quality["realnvp"] = distances(draw(layers, settings), test, settings.repeats)
    for name, model in models.items():
        for steps in STEPS if name != "distilled" else STEPS[-2:]:
            samples = draw(model.with_solver(Euler(steps)), settings)
            quality[f"{name}, {steps} steps"] = distances(samples, test, settings.repeats)
    clock.lap("quality")

    exports = export_all(distilled, out)
    clock.lap("export")

    pictures(out, test, layers, models, histories, settings)
    clock.lap("pictures")

    report = {
        "bits_per_dim": {name: mean_and_error(b) for name, b in bits.items()},
        "bits_difference": mean_and_error(difference),
        "likelihood": {"realnvp": layers.likelihood, "matching": flow.likelihood},
        "quality": quality,
        "checks": checks(bits, quality, exports),
        "export": exports,
        "seconds": {**clock.laps, "total": clock.total()},
        "settings": json_ready(asdict(settings)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    for name, model in {"realnvp": layers, **models}.items():
        model.save(out / f"{name}.safetensors")
    (out / "report.json").write_text(json.dumps(report, indent=2))
    monitor.record({f"test bits/dim {name}": b.mean().item() for name, b in bits.items()})
    monitor.finish()
    show(report, out)
    return report


class Clock:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def total(self) -> float:
        return time.perf_counter() - self.start


def load() -> tuple[Tensor, Tensor, Tensor]:
    """Return train, validation and test images, integers 0..16, `(n, 8, 8)`."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).long().reshape(-1, *SHAPE)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, validation, test = images[order].split([TRAIN, VALIDATION, TEST])
    return train, validation, test


def ode_of(flow: Flow) -> ODE:
    """Return the ODE at the base end of an image flow."""
    assert isinstance(flow.transport, Chain)
    part = flow.transport[0]
    assert isinstance(part, ODE)
    return part


def to_latent(flow: Flow, x: Tensor, generator: torch.Generator) -> Tensor:
    """Pull images through the preprocessing alone: to standardised logits, with fresh noise."""
    assert isinstance(flow.transport, Chain)
    return flow.transport[1:].pull(State(x), generator=generator).x


def without_dropout(flow: Flow) -> Flow:
    """Switch dropout off: pairs made by a field are to be fitted, not smoothed."""
    for module in flow.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return flow


@torch.no_grad()
def test_bits(flow: Flow, x: Tensor) -> Tensor:
    """Return bits per dimension of each image: an upper bound, by uniform dequantisation."""
    generator = torch.Generator().manual_seed(1)
    log_prob = torch.cat([flow.log_prob(part, generator=generator) for part in x.split(100)])
    return bits_per_dim(log_prob, SHAPE)


def draw(flow: Flow, settings: Settings) -> Tensor:
    """Draw the samples of all repeats; the same noise for every model."""
    generator = torch.Generator().manual_seed(2)
    return flow.sample(settings.repeats * HALF, generator=generator)


def distances(samples: Tensor, test: Tensor, repeats: int) -> dict[str, float]:
    """Return mean and standard error of the distance between HALF images and a half of the test.

    Repeat k splits the test images at random. It compares its first half with the k-th set of
    samples; where the samples are the test images themselves, with its second half.
    """
    values = []
    for k in range(repeats):
        order = torch.randperm(TEST, generator=torch.Generator().manual_seed(k))
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


def pictures(
    out: Path,
    test: Tensor,
    layers: Flow,
    models: dict[str, Flow],
    histories: dict[str, list[dict[str, float | int]]],
    settings: Settings,
) -> None:
    """Draw samples beside real digits, trajectories before and after reflow, and losses."""
    noise = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))

    def few(name: str, steps: int) -> Tensor:
        with torch.no_grad():
            return models[name].with_solver(Euler(steps)).push(noise)

    with torch.no_grad():
        by_layers = layers.push(noise)
    plots.image_grid(
        out / "samples.png",
        {
            "real digits, held out": test[:16].float(),
            "RealNVP, zero solver steps": by_layers,
            "flow matching, 100 steps": few("matching", 100),
            "flow matching, 2 steps": few("matching", 2),
            "flow matching, 1 step": few("matching", 1),
            "distilled, 2 steps": few("distilled", 2),
            "distilled, 1 step": few("distilled", 1),
        },
    )
    ts = torch.linspace(0, 1, 21)
    starts = torch.randn(60, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ways = {
            title: ODE(ode_of(models[name]).field, Euler(20)).trajectory(starts, ts)
            for title, name in (("flow matching, OT", "matching"), ("after reflow", "reflow"))
        }
        assert isinstance(models["matching"].transport, Chain)
        shown = ways["flow matching, OT"][::4, :8]
        decode = models["matching"].transport[1:]
        frames = {
            f"t = {ts[4 * k].item():.1f}": decode.push(State(step)).x
            for k, step in enumerate(shown)
        }
    plots.trajectories(out / "trajectories.png", ways)
    plots.image_grid(out / "trajectory_frames.png", frames)
    plots.curves(out / "curves.png", histories)


def json_ready(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}


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
