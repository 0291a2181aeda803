"""The digits of `experiments.digits`, their bits per dimension under zuko's flows.

    python -m experiments.benchmarks.digits_peers            # about six minutes on two cores

Every model sees the same split, the same standardised logits with fresh dequantisation noise, the
same trainer and the same early stopping; test bits per dimension are upper bounds from one noise
draw, the same for all. cflow's RealNVP stands beside zuko's with and without dropout, which zuko's
conditioners do not offer.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import zuko
from torch import Tensor, nn

from cflow import Flow, State, recipes, tracked
from cflow.data import digits
from cflow.metrics import bits_per_dim
from cflow.train import CosineDecay, Trainer
from cflow.transport import Chain

LEVELS, SHAPE = 17, (8, 8)
TRANSFORMS, HIDDEN = 12, (256, 256)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/digits_peers")
    steps: int = 900  # optimiser steps
    batch: int = 256
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    train, validation, test = digits()
    preprocessing = preprocess(train)

    def latent(x: Tensor, generator: torch.Generator) -> State:
        start = tracked(x, event_dim=2)
        return preprocessing.pull(start, generator=generator)

    report = {}
    for name, (build, log_prob) in models().items():
        torch.manual_seed(settings.seed)
        model = build()
        if isinstance(model, Flow):
            model.initialize(latent(train, torch.Generator().manual_seed(0)).x)

        def loss(
            model: nn.Module,
            x: Tensor,
            *,
            generator: torch.Generator,
            log_prob: Callable[[Any, Tensor], Tensor] = log_prob,
        ) -> Tensor:
            return -log_prob(model, latent(x, generator).x)

        steps = 3 if settings.smoke else settings.steps
        started = time.perf_counter()
        result = Trainer(
            model,
            loss,
            steps=steps,
            batch=settings.batch,
            optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1),
            schedule=CosineDecay(warmup=min(100, steps // 4), final=0.01),
            clip=1.0,
            ema=0.999,
            validate_every=max(1, steps // 20),
            seed=settings.seed,
        ).fit(train, validation)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            state = latent(test, torch.Generator().manual_seed(1))
            assert state.ladj is not None
            bits = bits_per_dim(log_prob(model, state.x) + state.ladj, SHAPE)
        report[name] = {
            "bits_per_dim": bits.mean().item(),
            "error": bits.std().item() / math.sqrt(len(test)),
            "best_step": result.best_step,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
        }
        print(f"{name:28s} {bits.mean():.4f} +- {report[name]['error']:.4f}  {seconds:.0f} s")
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "report.json").write_text(json.dumps(report, indent=2))
    return report


def models() -> dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]]:
    """Return builders and log-likelihoods of flows on 64 features, by name."""

    def ours(dropout: float) -> Callable[[], nn.Module]:
        return lambda: recipes.realnvp(
            64,
            transforms=TRANSFORMS,
            hidden_features=HIDDEN,
            bound=2.0,
            dropout=dropout,
            fast="sample",
        )

    theirs = lambda flow, x: flow().log_prob(x)
    return {
        "cflow RealNVP, dropout 0.4": (ours(0.4), lambda flow, x: flow.log_prob(x)),
        "cflow RealNVP": (ours(0.0), lambda flow, x: flow.log_prob(x)),
        "zuko RealNVP": (
            lambda: zuko.flows.RealNVP(64, transforms=TRANSFORMS, hidden_features=HIDDEN),
            theirs,
        ),
        "zuko MAF": (lambda: zuko.flows.MAF(64, transforms=5, hidden_features=HIDDEN), theirs),
        "zuko NSF": (lambda: zuko.flows.NSF(64, transforms=3, hidden_features=HIDDEN), theirs),
    }


def preprocess(train: Tensor) -> Chain:
    """Return dequantisation, logit and standardisation, fitted to the training images."""
    flow = recipes.images(recipes.realnvp(64, transforms=1), SHAPE, levels=LEVELS)
    flow.initialize(train)
    assert isinstance(flow.transport, Chain)
    return flow.transport[1:]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
