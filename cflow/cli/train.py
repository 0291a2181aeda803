"""`cflow train`: a recipe on data from a file, into a run folder that a kill cannot harm."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Generator, Tensor
from tyro.conf import Positional, UseAppendAction, arg

import cflow
from cflow.cli.arguments import read_arguments
from cflow.cli.arrays import read_array
from cflow.cli.build import Built, build
from cflow.cli.choices import device_of
from cflow.cli.command import Command
from cflow.cli.files import FLOW, HISTORY, claim, write_json
from cflow.cli.objective import Loss, Pairing, chosen_loss, loss_of
from cflow.errors import DomainError, expect_positive
from cflow.train import CosineDecay, Trainer, TrainResult, WandbMonitor

__all__ = ["Train"]

INITIAL = 8192  # points that set data-dependent layers
VALIDATIONS, CHECKPOINTS = 50, 10  # in one training, at least

Words = Annotated[
    UseAppendAction[tuple[str, ...]], arg(name="argument", aliases=["-a"], metavar="NAME=VALUE")
]


@dataclass(frozen=True)
class Train(Command):
    """Train a recipe on data, or run a script: `cflow train SCRIPT.py [ARGUMENTS]`.

    What the recipe has to know of the data is inferred, tables are standardised, and a part is held
    out; the weights of the best validation are kept, in OUT/flow.safetensors. The same command goes
    on where a killed one stood.

    Attributes:
        recipe: Name of a recipe, such as nsf, realnvp, cnf or unet.
        data: Points, one a row: .npy, .npz or .csv; integers with two axes or more to a point are
            images.
        arguments: An argument of the recipe: -a transforms=5 -a "hidden_features=(128, 128)".
        context: Conditions, one a row; one whole number each is a class label.
        out: Folder of the run; runs/RECIPE by default.
        steps: Optimiser steps.
        batch: Points in a batch.
        lr: Highest learning rate; it falls along a cosine.
        loss: Likelihood, flow matching, or mean flow; by default what suits the flow.
        coupling: How matching pairs noise with data: optimal transport, or independently where
            there is a context.
        context_dropout: Share of contexts that matching hides, for guidance.
        held: Share of the points held out for validation.
        ema: Decay of the averaged weights.
        clip: Largest norm of a gradient.
        levels: Number of grey levels of integers; inferred for images.
        standardize: Standardise tables by a layer of the flow.
        project: Bring points to the manifold of the flow, where they lie off it.
        seed: Decides weights, batches and noise.
        device: Where to train: cpu, cuda.
        wandb: Record an offline wandb run in OUT as well.
    """

    EXAMPLE: ClassVar[str] = (
        "cflow train nsf data.npy --out runs/nsf --steps 5000 -a transforms=5 "
        '-a "hidden_features=(128,128)"'
    )

    recipe: Positional[str]
    data: Positional[Path]
    arguments: Words = ()
    context: Path | None = None
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    steps: Annotated[int, arg(aliases=["-n"])] = 5000
    batch: int = 256
    lr: float = 1e-3
    loss: Loss | None = None
    coupling: Pairing | None = None
    context_dropout: float = 0.0
    held: float = 0.1
    ema: float = 0.999
    clip: float = 5.0
    levels: int | None = None
    standardize: bool = True
    project: bool = False
    seed: int = 0
    device: str = "cpu"
    wandb: bool = False

    def run(self) -> str:
        """Train, and say how it went."""
        expect_positive("train", steps=self.steps)
        device = device_of(self.device)
        built = self._built(read_arguments(self.recipe, self.arguments))
        loss = self.loss or chosen_loss(built.flow)
        out = Path("runs") / self.recipe if self.out is None else self.out
        objective = loss_of(
            built.flow, loss, coupling=self.coupling, context_dropout=self.context_dropout
        )
        train, held = _split(built, self.held, self.seed)
        generator = Generator().manual_seed(self.seed)
        built.flow.initialize(*(part[:INITIAL] for part in train), generator=generator)
        built.flow.to(device)
        settings = self._settings(built, loss)
        claim(out, settings)
        monitor = WandbMonitor("cflow", folder=out, settings=settings) if self.wandb else None
        result = Trainer(
            built.flow,
            objective,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            schedule=CosineDecay(warmup=min(100, self.steps // 4), final=0.01),
            clip=self.clip,
            ema=self.ema,
            folder=out,
            checkpoint_every=max(1, min(500, self.steps // CHECKPOINTS)),
            validate_every=max(1, self.steps // VALIDATIONS),
            monitor=monitor,
            log_every=max(1, min(20, self.steps // VALIDATIONS)),
            seed=self.seed,
        ).fit(train, held)
        built.flow.save(out / FLOW)
        write_json(out / HISTORY, result.history)
        if monitor is not None:
            monitor.finish()
        return f"{self.recipe}: {_summary(result, loss)}; {out / FLOW}"

    def _built(self, arguments: dict[str, Any]) -> Built:
        x = read_array(self.data)
        context = None if self.context is None else read_array(self.context)
        torch.manual_seed(self.seed)
        return build(
            self.recipe,
            arguments,
            x,
            context,
            levels=self.levels,
            standardize=self.standardize,
            project=self.project,
        )

    def _settings(self, built: Built, loss: Loss) -> dict[str, Any]:
        """Return all that decides a training, the data by its digest."""
        assert built.flow.recipe is not None
        own = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("out", "arguments", "device", "wandb")
        }
        digests = {
            "digest": _digest(built.x),
            "context_digest": None if built.context is None else _digest(built.context),
        }
        return (
            own
            | {"data": str(self.data), "context": self.context and str(self.context)}
            | digests
            | {"loss": loss, "flow": built.flow.recipe.describe(), "version": cflow.__version__}
        )


def _split(built: Built, share: float, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split points and conditions at random into those to train on and those held out."""
    n = len(built.x)
    count = round(share * n)
    if not 0 < share < 1 or not 0 < count < n - 1:
        raise DomainError(
            f"train: --held {share} of {n} points leaves none to train on or none to validate with"
        )
    order = torch.randperm(n, generator=Generator().manual_seed(seed))
    tensors = (built.x,) if built.context is None else (built.x, built.context)
    train, held = (tuple(t[rows] for t in tensors) for rows in (order[count:], order[:count]))
    return train, held


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


def _summary(result: TrainResult, loss: Loss) -> str:
    what = "nats" if loss == "nll" else "squared error of the velocity"
    return (
        f"{result.step} steps, best validation {result.best_value:.4f} {what} at step "
        f"{result.best_step}"
    )
