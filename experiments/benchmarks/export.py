"""Exported samplers beside eager mode: how long a call takes, and what a file costs.

    python -m experiments.benchmarks.export                    # some minutes
    python -m experiments.benchmarks.export --only latency     # some figures
    python -m experiments.benchmarks.export --smoke            # every path, figures meaningless

Two samplers of four Euler steps: a perceptron of 3 x 256 units on points of the plane, and a small
UNet on images of 28 x 28. Each runs in eager mode, compiled by inductor, from its `.pt2` file, from
its package compiled ahead of time, and from its ONNX file by onnxruntime, one thread each; batches
of 1 and of 1024 (the UNet 64). Latencies are medians of interleaved rounds of calls in a row, with
the quartiles of their ratio to eager mode. Memory is what the resident set of a fresh process grows
by from its imports on, see `export_alone.py`; beside it stand the tensors of an eager call.
Everything lands in runs/export_benchmark/.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import tyro
from torch import Tensor

from cflow import Flow, recipes
from cflow.errors import MissingExtraError
from cflow.export import Sampler, export_aoti, export_onnx, export_pt2
from cflow.testing import peak_bytes
from experiments.benchmarks import run
from experiments.benchmarks.export_alone import STEPS, opener
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.settings import Settings

WANTED = 3.0  # how many times faster onnxruntime shall be than eager mode, batch 1, perceptron
GOAL = "3x256"
FILES = {
    "eager": "flow.safetensors",
    "compiled": "flow.safetensors",
    "pt2": "sampler.pt2",
    "package": "package.pt2",
    "onnxruntime": "sampler.onnx",
}
WRITERS = {"pt2": export_pt2, "package": export_aoti, "onnxruntime": export_onnx}
APART = 1e-4  # all forms give the same samples, to this share of the largest


def perceptron(settings: Settings) -> Flow:
    return recipes.cnf(2, hidden_features=(settings.size(256, 16),) * 3)


def unet(settings: Settings) -> Flow:
    side, width = settings.size(28, 8), settings.size(16, 8)
    return recipes.unet((1, side, side), width=width, blocks=1)


MODELS: dict[str, Callable[[Settings], Flow]] = {GOAL: perceptron, "UNet": unet}


def models(settings: Settings) -> dict[str, Callable[[Settings], Flow]]:
    return settings.size(MODELS, {GOAL: perceptron})


def latency(settings: Settings) -> list[Row]:
    """Time calls of every form of both samplers."""
    rows = []
    for name, make in models(settings).items():
        with written(make(settings)) as (folder, forms, shape):
            for batch in batches(name, settings):
                x = noise(batch, shape)
                calls = {form: opener(form, str(folder / FILES[form]), x)() for form in forms}
                agree(calls)
                count = settings.size(max(1, (200 if name == GOAL else 8) // batch), 1)
                timed = {form: repeated(call, count) for form, call in calls.items()}
                seconds = interleave(timed, settings.rounds(), warm_up=settings.size(3, 1))
                for form in forms[1:]:
                    wanted = WANTED if (name, batch, form) == (GOAL, 1, "onnxruntime") else None
                    pair = {key: seconds[key] for key in (form, "eager")}
                    rows.append(
                        contest(
                            f"{name}, batch {batch}, {form}: times faster than eager mode",
                            pair,
                            form,
                            against="eager",
                            wanted=wanted,
                            faster=True,
                            per=dict.fromkeys(pair, count),
                        )
                    )
    return rows


def memory(settings: Settings) -> list[Row]:
    """Count bytes of files and of processes, and time how long the first batch takes."""
    rows = []
    for name, make in models(settings).items():
        with written(make(settings)) as (folder, forms, shape):
            sizes = {form: float((folder / FILES[form]).stat().st_size) for form in forms}
            sizes.pop("compiled")
            rows.append(row(f"{name}, size of the file", sizes))
            for batch in batches(name, settings):
                np.save(folder / "noise.npy", noise(batch, shape))
                quick = [form for form in forms if form != "compiled"]
                found = {form: alone(form, folder) for form in settings.size(forms, quick)}
                grown = {form: figures["bytes"] for form, figures in found.items()}
                rows.append(row(f"{name}, batch {batch}, memory of a process", grown))
                if batch == 1:
                    first = {form: figures["seconds"] for form, figures in found.items()}
                    ours = first.pop("onnxruntime")
                    rows.append(Row(f"{name}, until the first sample", ours, first, "s"))
                x = noise(batch, shape)
                call = opener("eager", str(folder / FILES["eager"]), x)()
                peak = peak_bytes(call) / 2**20
                rows.append(
                    Row(f"{name}, batch {batch}, tensors of an eager call", peak, unit="MiB")
                )
    return rows


@contextmanager
def written(flow: Flow) -> Iterator[tuple[Path, list[str], tuple[int, ...]]]:
    """Write a flow in every form that this machine can; give folder, forms and noise's shape."""
    for parameter in flow.parameters():  # away from its start, where the velocity is zero
        torch.nn.init.normal_(parameter, std=0.05)
    sampler, forms = Sampler(flow, steps=STEPS), ["eager", "compiled"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flow.save(folder / FILES["eager"])
        for form, write in WRITERS.items():
            try:
                write(sampler, folder / FILES[form])
            except MissingExtraError as error:  # no compiler, say
                print(f"{form} is left out: {error}")
                continue
            forms.append(form)
        yield folder, forms, sampler.in_shape


def batches(name: str, settings: Settings) -> tuple[int, ...]:
    return settings.size((1, 1024 if name == GOAL else 64), (1, 3))


def noise(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def agree(calls: dict[str, Callable[[], Any]]) -> None:
    """Raise where a form gives other samples than eager mode."""
    eager = torch.as_tensor(calls["eager"]())
    for form, call in calls.items():
        result = call()
        x = result if isinstance(result, Tensor) else torch.as_tensor(result[0])
        apart = float((x - eager).abs().max() / eager.abs().max().clamp(min=1))
        if not apart <= APART:
            raise RuntimeError(f"{form} is {apart:.2g} from eager mode")


def repeated(call: Callable[[], Any], count: int) -> Callable[[], None]:
    def many() -> None:
        for _ in range(count):
            call()

    return many


def alone(form: str, folder: Path) -> dict[str, float]:
    """Open a form in a fresh process."""
    script = Path(__file__).with_name("export_alone.py")
    words = [sys.executable, script, form, folder / FILES[form], folder / "noise.npy"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(what: str, found: dict[str, float]) -> Row:
    """Make a row of bytes, in mebibytes."""
    shown = {form: value / 2**20 for form, value in found.items()}
    return Row(what, shown.pop("onnxruntime"), shown, "MiB")


FIGURES: run.Figures = {"latency": latency, "memory": memory}
PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy")


def main(settings: Settings) -> run.Report:
    onnxruntime.set_default_logger_severity(3)
    with torch.no_grad():
        return run.measure("export", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__, default=Settings(threads=1)))
