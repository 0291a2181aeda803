"""Trainers with settings that are known to work, by task; each returns a plain `Trainer`.

    images:     batch 64, rate 1e-3 falling polynomially to 1e-4 after five epochs of warm-up,
                gradient norm clipped at 1
    tables:     batch 256, rate 5e-4 falling along a cosine, gradient norm clipped at 5
    inference:  64 points a step, rate 1e-3 falling polynomially to 1e-4, gradient norm clipped
                at 10

The flows that go with them: images with 3 scales of 8 to 12 steps, coupling networks of 3 layers
with 512 channels, dequantised, logit alpha 0.05; tables with 5 to 10 transforms, 2 x 512 units and
8 to 16 bins, on standardised columns; inference with 4 to 8 transforms, 2 x 256 units and a base
with learned mean and scale. Whatever a preset sets can be set otherwise on the trainer it returns,
with `dataclasses.replace`.

Source: Kingma and Dhariwal (2018), Glow, arXiv 1807.03039; Durkan et al. (2019), Neural spline
flows, arXiv 1906.04032, appendix B; Rezende and Mohamed (2015), arXiv 1505.05770.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from cflow.errors import expect_positive
from cflow.flow import Flow
from cflow.likelihood import nll
from cflow.train.loop import Trainer
from cflow.train.monitor import Monitor
from cflow.train.schedule import CosineDecay, PolynomialDecay
from cflow.train.watch import Watch
from cflow.variational import LogTarget, drawn, reverse_kl

__all__ = ["for_images", "for_inference", "for_tables"]

FINAL = 0.1  # last learning rate, relative to the first
SELDOM = 10  # fewest steps between validations, which come once an epoch


def for_images(
    model: nn.Module,
    *,
    examples: int,
    epochs: float | int = 100.0,
    batch: int = 64,
    lr: float = 1e-3,
    warmup_epochs: float | int = 5.0,
    loss: Callable[..., Tensor] = nll,
    folder: str | os.PathLike[str] | None = None,
    monitor: Monitor | None = None,
    watch: Sequence[Watch] = (),
    seed: int = 0,
) -> Trainer:
    """Return a trainer for image flows.

    Args:
        model: The flow, initialised from data where it has layers that need it.
        examples: Images to train on, which turn epochs into steps.
        epochs: Passes over them.
        batch: Images in a batch, 64 to 128.
        lr: Highest learning rate; the last is a tenth of it.
        warmup_epochs: Passes in which the rate rises, 2 to 10.
        loss: What is minimised.
        folder: Where checkpoints go.
        monitor: Where figures are reported.
        watch: What to look at on the way.
        seed: Decides batches and noise.

    Raises:
        DomainError: A setting is out of range.

    Example:
        >>> for_images(nn.Linear(1, 1), examples=6400, epochs=20).steps
        2000
    """
    steps = _steps(examples, epochs, batch)
    warmup = min(steps // 2, _steps(examples, warmup_epochs, batch))
    return Trainer(
        model,
        loss,
        steps=steps,
        batch=batch,
        lr=lr,
        schedule=PolynomialDecay(warmup=warmup, final=FINAL),
        clip=1.0,
        ema=0.999,
        folder=folder,
        validate_every=max(SELDOM, _per_epoch(examples, batch)),
        monitor=monitor,
        watch=watch,
        seed=seed,
    )


def for_tables(
    model: nn.Module,
    *,
    examples: int,
    epochs: float | int = 200.0,
    batch: int = 256,
    lr: float = 5e-4,
    patience: int | None = 30,
    loss: Callable[..., Tensor] = nll,
    folder: str | os.PathLike[str] | None = None,
    monitor: Monitor | None = None,
    watch: Sequence[Watch] = (),
    seed: int = 0,
) -> Trainer:
    """Return a trainer for flows on rows of numbers, standardised ones.

    Columns have to be standardised beforehand, or by a `Standardize` layer at the data end of the
    flow, set by `flow.initialize`.

    Args:
        model: The flow.
        examples: Rows to train on, which turn epochs into steps.
        epochs: Passes over them.
        batch: Rows in a batch.
        lr: Highest learning rate; it falls to a tenth.
        patience: Validations without improvement after which the training stops; there is one an
            epoch, or every tenth step where an epoch is shorter.
        loss: What is minimised.
        folder: Where checkpoints go.
        monitor: Where figures are reported.
        watch: What to look at on the way.
        seed: Decides batches and noise.

    Raises:
        DomainError: A setting is out of range.

    Example:
        >>> for_tables(nn.Linear(1, 1), examples=2560, epochs=10).steps
        100
    """
    steps = _steps(examples, epochs, batch)
    return Trainer(
        model,
        loss,
        steps=steps,
        batch=batch,
        lr=lr,
        schedule=CosineDecay(warmup=min(steps // 20, 100), final=FINAL),
        clip=5.0,
        ema=0.99,
        folder=folder,
        validate_every=max(SELDOM, _per_epoch(examples, batch)),
        patience=patience,
        monitor=monitor,
        watch=watch,
        seed=seed,
    )


def for_inference(
    flow: Flow,
    log_target: LogTarget,
    *,
    steps: int = 5000,
    samples: int = 64,
    lr: float = 1e-3,
    batch: int = 64,
    folder: str | os.PathLike[str] | None = None,
    monitor: Monitor | None = None,
    watch: Sequence[Watch] = (),
    seed: int = 0,
) -> Trainer:
    """Return a trainer that fits a flow to an unnormalised density by its reverse KL.

    Fit it on the conditions of a conditional flow; for another, `fit(torch.zeros(1))` will do.

    Args:
        flow: The flow; its pull must be cheap, as the path gradient takes one a step.
        log_target: The log of the density, `log_target(x)`, or `log_target(x, context)` for a
            conditional flow.
        steps: Optimiser steps.
        samples: Points in a step, for each condition.
        lr: Highest learning rate; the last is a tenth of it.
        batch: Conditions in a step.
        folder: Where checkpoints go.
        monitor: Where figures are reported.
        watch: What to look at on the way.
        seed: Decides the points.

    Raises:
        DomainError: A setting is out of range.

    Example:
        >>> import torch
        >>> from cflow import recipes
        >>> from cflow.base import Gaussian
        >>> flow = recipes.realnvp(2, transforms=4, hidden_features=(16,))
        >>> trainer = for_inference(flow, Gaussian(2).log_prob, steps=2)
        >>> trainer.fit(torch.zeros(1)).step
        2
    """
    return Trainer(
        flow,
        drawn(partial(reverse_kl, log_target=log_target, samples=samples)),
        steps=steps,
        batch=batch,
        lr=lr,
        schedule=PolynomialDecay(warmup=min(100, steps // 20), final=FINAL),
        clip=10.0,
        ema=0.99,
        folder=folder,
        monitor=monitor,
        watch=watch,
        seed=seed,
    )


def _steps(examples: int, epochs: float | int, batch: int) -> int:
    expect_positive("presets", examples=examples, epochs=epochs, batch=batch)
    return max(1, round(epochs * _per_epoch(examples, batch)))


def _per_epoch(examples: int, batch: int) -> int:
    return max(1, examples // batch)
