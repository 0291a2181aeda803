"""The training loop: any loss, one generator, checkpoints that a kill cannot harm.

for each step: loss -> finite? -> backward -> clip -> finite? -> step -> average -> report
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic as now
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cflow.errors import CheckpointError, DomainError, TrainingError, expect_positive
from cflow.train.average import averaged
from cflow.train.batches import TrainingData, batches, check_data, in_order, size
from cflow.train.checkpoint import read_checkpoint, write_checkpoint
from cflow.train.monitor import Monitor
from cflow.train.schedule import ConstantRate, Schedule
from cflow.train.watch import Watch, observe
from cflow.transport import ODE

__all__ = ["TrainResult", "Trainer"]

CHECKPOINT = "checkpoint.pt"
VALIDATION_SEED = 20_250_101


@dataclass(frozen=True)
class TrainResult:
    """Say how a training went.

    Attributes:
        step: Steps taken in all, resumed ones included.
        history: Figures by step: `loss`, `rate`, `grad_norm`, and `validation` where it was taken;
            the figures of watches; where the loss solved an ODE also `nfe_forward` and
            `nfe_backward`, the mean number of field evaluations for an example of that batch in
            the loss and in its gradient.
        best_step: Step of the best validation, or None without validation.
        best_value: Its value.
        stopped_early: Whether patience ran out.
    """

    step: int
    history: list[dict[str, float | int]]
    best_step: int | None
    best_value: float | None
    stopped_early: bool


@dataclass
class Trainer:
    """Fit a model by stochastic gradient steps.

    After `fit` the model holds the weights of the best validation; without validation the averaged
    ones where `ema` is set, else the last.

    Args:
        model: What is trained; only parameters that require gradients change.
        loss: Called as `loss(model, *batch, generator=generator)`; its mean is minimised. `nll`
            fits as it is.
        steps: Optimiser steps in all.
        batch: Examples in a batch.
        optimizer: A torch optimiser on the model's parameters; AdamW with `lr` by default.
        lr: Learning rate of the default optimiser.
        schedule: Factor on the learning rate.
        clip: Largest gradient norm; None for no bound.
        ema: Decay of averaged weights (0.999, say), which are then validated and kept.
        folder: Where checkpoints go; None for none.
        checkpoint_every: Steps between checkpoints.
        validate_every: Steps between validations.
        watch: What to look at every `validate_every` steps, with validation data or without; see
            `watch.py`. It sees the averaged weights where there are such.
        patience: Validations without improvement after which the training stops.
        monitor: Where figures are reported.
        log_every: Steps between reports.
        seed: Decides batches and the noise of the loss.
        workers: Processes that load a dataset.
        time_limit: Seconds of `fit` after which training ends as if its steps were over: validated,
            checkpointed, resumable. A resumed training has the whole time again.
        progress: Show a bar with loss, rate and time left, in a terminal.

    Raises:
        DomainError: A setting is out of range.

    Example:
        >>> from cflow import nll, recipes
        >>> flow = recipes.realnvp(2, transforms=2, hidden_features=(16,))
        >>> Trainer(flow, nll, steps=3, batch=64).fit(torch.randn(256, 2)).step
        3
    """

    model: nn.Module
    loss: Callable[..., Tensor]
    steps: int = 1000
    batch: int = 256
    optimizer: torch.optim.Optimizer | None = None
    lr: float = 1e-3
    schedule: Schedule = field(default_factory=ConstantRate)
    clip: float | None = None
    ema: float | None = None
    folder: str | os.PathLike[str] | None = None
    checkpoint_every: int = 500
    validate_every: int = 100
    watch: Sequence[Watch] = ()
    patience: int | None = None
    monitor: Monitor | None = None
    log_every: int = 20
    seed: int = 0
    workers: int = 0
    time_limit: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        expect_positive(
            "Trainer",
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
            log_every=self.log_every,
        )
        if self.clip is not None:
            expect_positive("Trainer", clip=self.clip)
        if self.time_limit is not None:
            expect_positive("Trainer", time_limit=self.time_limit)
        if self.ema is not None and not 0 <= self.ema < 1:
            raise DomainError(f"Trainer: ema must lie in [0, 1), got {self.ema}")

    def fit(
        self, data: TrainingData, validation: TrainingData | None = None, *, resume: bool = True
    ) -> TrainResult:
        """Train, going on from the checkpoint in the run folder where there is one.

        Args:
            data: Points, a tuple of points and contexts, a map-style dataset of either, or a
                `BatchSource` that makes its own batches (`cflow.matching.PairPool`, say).
            validation: Held-out data for validation; the loss takes it in the same way.
            resume: Go on from an existing checkpoint; when false, an existing one is an error,
                so that nothing is overwritten.

        Returns:
            How the training went.

        Raises:
            DomainError: The data holds NaN or infinite values.
            ShapeError: The data is empty or ragged.
            CheckpointError: The folder cannot be written, or its checkpoint is truncated or
                belongs to another model.
            TrainingError: The loss, its gradient or the validation was not finite (names the step
                and the last good checkpoint), or a watch ended the training.
        """
        check_data("Trainer.fit", data)
        if validation is not None:
            check_data("Trainer.fit, validation", validation)
        run = _Run(self, size(data))
        run.open(resume=resume)
        start = run.step
        drawn = batches(data, self.batch, seed=self.seed, start=start, workers=self.workers)
        silent = None if self.progress else True  # None: silent where there is no terminal
        bar = tqdm(total=self.steps, initial=start, disable=silent, leave=False)
        with closing(drawn) as source, bar:
            while not run.over:
                figures = run.advance(next(source))
                if validation is not None and run.due(self.validate_every):
                    run.validate(validation)
                if self.watch and run.due(self.validate_every):
                    run.look()
                if run.due(self.checkpoint_every):
                    run.save()
                bar.set_postfix(loss=f"{figures['loss']:.4g}", refresh=False)
                bar.update()
        return run.close()


class _Run:
    """One training under way: everything that a checkpoint has to hold."""

    def __init__(self, trainer: Trainer, examples: int) -> None:
        self.of = trainer
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise DomainError("Trainer: the model has no parameter that requires a gradient")
        self.device = self.parameters[0].device
        self.optimizer = trainer.optimizer or torch.optim.AdamW(self.parameters, lr=trainer.lr)
        for group in self.optimizer.param_groups:  # as torch's own schedulers keep the full rate
            group.setdefault("initial_lr", group["lr"])
        self.average = None
        if trainer.ema is not None:
            self.average = averaged(trainer.model, trainer.ema)
        self.generator = torch.Generator(self.device).manual_seed(trainer.seed)
        self.path = None if trainer.folder is None else Path(trainer.folder) / CHECKPOINT
        self.settings = {
            "steps": trainer.steps,
            "batch": trainer.batch,
            "seed": trainer.seed,
            "examples": examples,
        }
        self.step = 0
        self.start = self.time = now()
        self.deadline = math.inf if trainer.time_limit is None else self.start + trainer.time_limit
        self.late = False
        self.history: list[dict[str, float | int]] = []
        self.best: dict[str, Any] | None = None
        self.waited = 0

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self.of.patience is not None and self.waited >= self.of.patience

    @property
    def over(self) -> bool:
        """Whether the steps are taken, the time is up, or patience has run out."""
        return self.step >= self.of.steps or self.late or self.stopped

    @property
    def trained(self) -> nn.Module:
        """The model whose weights count: the averaged one where there is one."""
        return self.of.model if self.average is None else self.average.module

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, is due."""
        return self.step % every == 0 or self.over

    def open(self, *, resume: bool) -> None:
        """Read the checkpoint, or write the first, which shows that the folder can be written."""
        if self.path is None:
            return
        if not self.path.is_file():
            self.save()
            return
        if not resume:
            raise CheckpointError(
                f"Trainer.fit: {self.path} holds an earlier training; pass resume=True to go on "
                "with it, or choose another folder"
            )
        self._restore(read_checkpoint(self.path, self.of.model))

    def advance(self, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """Take one step; raise at the first loss or gradient that is not finite."""
        trainer = self.of
        factor = trainer.schedule.factor(self.step, trainer.steps, passed=self._passed())
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        trainer.model.train()
        counts = [_evaluations(trainer.model)]
        loss = trainer.loss(
            trainer.model, *(b.to(self.device) for b in batch), generator=self.generator
        ).mean()
        self._expect_finite("the loss", loss)
        counts.append(_evaluations(trainer.model))
        self.optimizer.zero_grad()
        loss.backward()
        counts.append(_evaluations(trainer.model))
        clip = math.inf if trainer.clip is None else trainer.clip
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        self._expect_finite("the gradient's norm", norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(trainer.model)
        self.step += 1
        self.time = now()  # asked once a step, so that all parts of it agree
        self.late = self.time >= self.deadline
        rate = self.optimizer.param_groups[0]["lr"]
        figures = {"loss": loss.item(), "rate": rate, "grad_norm": norm.item()}
        if counts[1] > counts[0]:
            forward, backward = ((b - a) / len(batch[0]) for a, b in pairwise(counts))
            figures |= {"nfe_forward": forward, "nfe_backward": backward}
        if self.due(trainer.log_every):
            self._report(figures)
        return figures

    @torch.no_grad()
    def validate(self, data: TrainingData) -> None:
        """Measure the mean loss on held-out data, with the same noise every time."""
        trainer, model = self.of, self.trained
        generator = torch.Generator(self.device).manual_seed(VALIDATION_SEED)
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        for batch in in_order(data, trainer.batch):
            moved = (b.to(self.device) for b in batch)
            total += trainer.loss(model, *moved, generator=generator).mean().item() * len(batch[0])
            count += len(batch[0])
        model.train(was_training)
        value = total / count
        self._expect_finite("the validation loss", torch.tensor(value))
        self._report({"validation": value})
        if self.best is None or value < self.best["value"]:
            weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
            self.best = {"step": self.step, "value": value, "model": weights}
            self.waited = 0
        else:
            self.waited += 1

    def look(self) -> None:
        """Report what the watches see."""
        self._report(observe(self.of.watch, self.trained, self.device))

    def save(self) -> None:
        """Write the checkpoint."""
        if self.path is None:
            return
        state = {
            "step": self.step,
            "model": self.of.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "history": self.history,
            "best": self.best,
            "waited": self.waited,
            "settings": self.settings,
        }
        write_checkpoint(self.path, state)

    def close(self) -> TrainResult:
        """Leave the model with the weights that count."""
        if self.best is not None:
            self.of.model.load_state_dict(self.best["model"])
        elif self.average is not None:
            self.of.model.load_state_dict(self.average.module.state_dict())
        self.of.model.eval()
        step, value = (None, None) if self.best is None else (self.best["step"], self.best["value"])
        return TrainResult(self.step, self.history, step, value, self.stopped)

    def _passed(self) -> float:
        """Return the share of the time limit that is over."""
        limit = self.of.time_limit
        return 0.0 if limit is None else (self.time - self.start) / limit

    def _restore(self, state: dict[str, Any]) -> None:
        if state["settings"] != self.settings:
            warnings.warn(
                f"resuming a training with other settings: it had {state['settings']}, now "
                f"{self.settings}",
                stacklevel=4,
            )
        if (state["average"] is None) != (self.average is None):
            raise CheckpointError(
                f"{self.path} was trained {'without' if state['average'] is None else 'with'} "
                "averaged weights; set ema as it was, or choose another folder"
            )
        self.of.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step, self.history = state["step"], state["history"]
        self.best, self.waited = state["best"], state["waited"]

    def _report(self, figures: dict[str, float]) -> None:
        self.history.append({"step": self.step, **figures})
        if self.of.monitor is not None:
            self.of.monitor.log(figures, self.step)

    def _expect_finite(self, what: str, value: Tensor) -> None:
        if bool(torch.isfinite(value)):
            return
        kept = (
            "no checkpoint was asked for"
            if self.path is None
            else f"the last good checkpoint is {self.path}"
        )
        raise TrainingError(
            f"Trainer.fit: {what} is {value.item()} at step {self.step}; {kept}. Lower the "
            "learning rate, set clip, or look at the batch of that step"
        )


def _evaluations(model: nn.Module) -> int:
    """Return how often fields were evaluated in solves so far, once for each example."""
    return sum(part.evaluations for part in model.modules() if isinstance(part, ODE))
