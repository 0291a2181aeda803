"""MNIST by class: a multiscale Glow and a TarFlow beside a Glow of normflows of the same size.

    python -m experiments.images                          # about forty minutes on two cores
    python -m experiments.images --models glow --seconds 60
    python -m experiments.images --smoke                  # the same road in seconds

All models see the same 9000 training images (a public subset of MNIST's training part; 1000 more
validate), 28 x 28 with 256 grey levels, uniformly dequantised, conditional on the class, and train
for the same seconds with the same trainer. Reported are bits per dimension of the 10,000 official
test images: an upper bound from one draw of the noise, and the tighter bound from several draws on
a part of them. Glow sees logits (alpha 0.05), TarFlow pixels scaled to [-1, 1].

Published figures are for all 60,000 training images and much longer training: Glow 1.05, FFJORD
0.99, residual flow 0.97 (as recalled). Everything lands in runs/images/.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, nll, plots, recipes, tracked
from cflow.data import mnist
from cflow.metrics import bits_per_dim
from cflow.train import PolynomialDecay, Trainer, WandbMonitor
from cflow.transport import Chain, Dequantize, Inverse, Logit

SHAPE, CLASSES, LEVELS, ALPHA = (1, 28, 28), 10, 256, 0.05
SCALES, STEPS, CHANNELS = 2, 6, 64  # of both Glows; 7 x 7 pixels remain

Sampler = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Model:
    """A model of integer images by class: its loss a sample, and how it is sampled."""

    module: nn.Module
    loss: Callable[..., Tensor]
    sample: Sampler


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/images")
    models: tuple[str, ...] = ("glow", "normflows", "tarflow")
    seconds: float = 600.0  # training time of one model
    batch: int = 64
    lr: float = 1e-3
    draws: int = 16  # of noise, for the tighter bound
    tested: int = 10_000  # test images of the one-draw bound
    tested_tightly: int = 500  # test images of the tighter one
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(
            settings, seconds=0.5, batch=8, draws=2, tested=16, tested_tightly=4, threads=1
        )
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "results": {}}
    monitor = WandbMonitor("cflow-images", folder=settings.out, settings=shown)
    train, test = mnist()
    order = torch.randperm(len(train.images), generator=Generator().manual_seed(settings.seed))
    images, labels = train.images[order], train.labels[order]
    pictures = {"test images": test.images[:10, 0].float()}
    for name in settings.models:
        torch.manual_seed(settings.seed)
        model = MODELS[name](settings)
        if isinstance(model.module, Flow):
            model.module.initialize(images[1000:1500], labels[1000:1500])
        start = time.perf_counter()
        result = Trainer(
            model.module,
            lambda module, x, y, *, generator, model=model: model.loss(x, y, generator),
            steps=10_000_000,  # the clock ends it
            time_limit=settings.seconds,
            batch=settings.batch,
            lr=settings.lr,
            schedule=PolynomialDecay(warmup=200, final=0.1),
            clip=1.0,
            ema=0.995,
            validate_every=200,
            monitor=monitor.stage(name),
            seed=settings.seed,
            progress=False,
        ).fit((images[1000:], labels[1000:]), (images[:1000], labels[:1000]))
        figures = test_figures(model, test.images, test.labels, settings)
        figures |= {
            "seconds": time.perf_counter() - start,
            "steps": result.step,
            "parameters": sum(p.numel() for p in model.module.parameters() if p.requires_grad),
        }
        report["results"][name] = figures
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        with torch.no_grad():
            classes = torch.arange(10).repeat(2)
            drawn = model.sample(classes, Generator().manual_seed(settings.seed))
        for k in range(2):
            pictures[f"{name}, {k + 1}"] = drawn[10 * k : 10 * (k + 1), 0].float()
        print(
            f"{name:10s} {figures['bits']:.3f} bits/dim ({settings.draws} draws on "
            f"{settings.tested_tightly} images: {figures['bits_tight']:.3f} against "
            f"{figures['bits_same']:.3f}), {figures['parameters']} parameters, {result.step} steps",
            flush=True,
        )
    plots.image_grid(settings.out / "samples.png", pictures)
    monitor.finish()
    return report


@torch.no_grad()
def test_figures(model: Model, x: Tensor, y: Tensor, settings: Settings) -> dict[str, float]:
    """Return bits per dimension of test images, from one draw of noise and from several."""
    generator = Generator().manual_seed(settings.seed + 1)
    bits = lambda log_p: bits_per_dim(log_p, SHAPE)
    loss = lambda a, b: -model.loss(a, b, generator)
    n, m = settings.tested, settings.tested_tightly
    parts = zip(x[:n].split(200), y[:n].split(200), strict=True)
    once = bits(torch.cat([loss(a, b) for a, b in parts]))
    draws = torch.stack([loss(x[:m], y[:m]) for _ in range(settings.draws)])
    tight = bits(draws.logsumexp(0) - math.log(settings.draws))
    return {
        "bits": once.mean().item(),
        "bits_error": (once.std() / len(once) ** 0.5).item(),
        "bits_tight": tight.mean().item(),
        "bits_same": bits(draws.mean(0)).mean().item(),
    }


def of_flow(flow: Flow) -> Model:
    return Model(
        flow,
        lambda x, y, generator: nll(flow, x, y, generator=generator),
        lambda labels, generator: flow.sample((), labels, generator=generator),
    )


def glow(settings: Settings) -> Model:
    steps, channels = (1, 8) if settings.smoke else (STEPS, CHANNELS)
    return of_flow(
        recipes.glow(
            SHAPE,
            CLASSES,
            scales=SCALES,
            steps=steps,
            hidden_channels=channels,
            levels=LEVELS,
            alpha=ALPHA,
        )
    )


def tarflow(settings: Settings) -> Model:
    width, blocks, layers = (16, 2, 1) if settings.smoke else (96, 4, 2)
    return of_flow(
        recipes.tarflow(
            SHAPE, CLASSES, patch=4, width=width, blocks=blocks, layers=layers, levels=LEVELS
        )
    )


def normflows(settings: Settings) -> Model:
    """Build the peer's Glow of the same scales, steps and channels, on the same logits."""
    import normflows as nf

    steps, hidden = (1, 8) if settings.smoke else (STEPS, CHANNELS)
    bases, flows, merges = [], [], []
    for level in range(SCALES):
        channels, side = SHAPE[0] * 2 ** (SCALES + 1 - level), SHAPE[1] // 2 ** (SCALES - level)
        blocks = [
            nf.flows.GlowBlock(channels, hidden, split_mode="channel", scale=True)
            for _ in range(steps)
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        if level:
            merges.append(nf.flows.Merge())
        shape = (channels if level == 0 else channels // 2, side, side)
        bases.append(nf.distributions.GlowBase(shape, CLASSES))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=True)
    preprocessing = Chain(Inverse(Logit(ALPHA)), Dequantize(LEVELS))

    def loss(x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        state = preprocessing.pull(tracked(x, event_dim=3), generator=generator)
        assert state.ladj is not None
        return -(model.log_prob(state.x, y) + state.ladj)

    def sample(labels: Tensor, generator: Generator) -> Tensor:
        torch.manual_seed(generator.initial_seed())  # the peer draws from the global generator
        logits, _ = model.sample(len(labels), labels)
        return (torch.sigmoid(logits) * LEVELS).floor().clamp(0, LEVELS - 1)

    return Model(model, loss, sample)


MODELS: dict[str, Callable[[Settings], Model]] = {
    "glow": glow,
    "tarflow": tarflow,
    "normflows": normflows,
}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
