"""One model on one fold: trained by maximum likelihood on one thread, and measured."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from cflow import Flow
from cflow.data import Split, tables
from cflow.train import CosineDecay, Trainer
from experiments.tabular.models import build, count_evaluations, log_prob, negative_log_prob

BASELINES = ("gaussian", "mixture")


@dataclass(frozen=True)
class Job:
    """One model on one fold: all that its process is told."""

    table: str
    recipe: str
    fold: int
    lr: float
    seconds: float | None  # training time; None where steps decide
    steps: int | None  # optimiser steps; None where the clock decides
    batch: int
    decay: float
    cost: float
    ema: float
    validate_every: int
    seed: int
    rows: int | None  # test rows that are asked for; None for all
    built: str  # how the model is built, so that a changed setting is a new job

    @property
    def name(self) -> str:
        return f"{self.table}/{self.recipe}/{self.fold}/lr {self.lr:g}"


def done(jobs: list[Job], side_by_side: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run jobs, each on one thread of its own, and give each with its result as it ends."""
    if side_by_side == 1 or len(jobs) < 2:
        yield from ((job, perform(job)) for job in jobs)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, fresh, initializer=os.nice, initargs=(5,)) as pool:
        waiting = {pool.submit(perform, job): job for job in jobs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def perform(job: Job) -> dict[str, Any]:
    """Fit one model on one fold and measure it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        split = tables.fold(tables.load(job.table), job.fold, seed=job.seed)
        split = Split(split.train, split.validation, split.test[: job.rows])
        return baseline(job, split) if job.recipe in BASELINES else fit(job, split)
    finally:
        torch.set_num_threads(threads)


def fit(job: Job, split: Split) -> dict[str, Any]:
    torch.manual_seed(job.seed)
    train, validation = split.train.float(), split.validation.float()
    model = build(job.recipe, train, job.cost)
    if isinstance(model, Flow):
        model.initialize(train)
    start = time.perf_counter()
    result = Trainer(
        model,
        negative_log_prob,
        steps=job.steps or 10_000_000,  # else the clock ends it
        time_limit=job.seconds,
        batch=job.batch,
        optimizer=torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=job.decay),
        schedule=CosineDecay(warmup=20, final=0.02),
        clip=5.0,
        ema=job.ema,
        validate_every=job.validate_every,
        progress=False,
        seed=job.seed,
    ).fit(train, validation[:1000])
    seconds = time.perf_counter() - start
    evaluations = count_evaluations(model, train[: job.batch])
    start = time.perf_counter()
    rows = log_prob(model, split.test)
    held = log_prob(model, split.validation).mean().item()
    return {
        "log_prob": rows.mean().item(),
        "validation": held,
        "train": log_prob(model, split.train[: len(split.test)]).mean().item(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": result.step,
        "best_step": result.best_step,
        "seconds": seconds,
        "seconds_of_test": time.perf_counter() - start,
        "nfe": evaluations,
        "history": result.history,
        "rows": rows.tolist(),
    }


def baseline(job: Job, split: Split) -> dict[str, Any]:
    """Fit a Gaussian, or a mixture of as many Gaussians as validate best, to the training rows."""
    from sklearn.mixture import GaussianMixture

    start = time.perf_counter()
    counts = (1,) if job.recipe == "gaussian" else (2, 4, 8, 16, 32)
    train, validation, test = (part.numpy() for part in split)
    fitted = [
        GaussianMixture(k, reg_covar=1e-6 if k == 1 else 1e-3, random_state=job.seed).fit(train)
        for k in counts
    ]
    best = max(fitted, key=lambda mixture: mixture.score(validation))
    features = train.shape[1]
    each = features + features * (features + 1) // 2
    return {
        "log_prob": float(best.score(test)),
        "validation": float(best.score(validation)),
        "train": float(best.score(train)),
        "parameters": best.n_components * (each + 1) - 1,
        "steps": int(best.n_iter_),
        "best_step": None,
        "seconds": time.perf_counter() - start,
        "seconds_of_test": 0.0,
        "nfe": 0.0,
        "history": [],
        "rows": best.score_samples(test).tolist(),
    }
