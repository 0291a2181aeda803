"""The settings of the study, and one of its jobs: a problem and a seed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.fewstep.problems import (
    DIGIT_SIZES,
    MNIST_SIZES,
    PAIR_SIZES,
    PAIRS,
    Problem,
    Sizes,
    eight_by_eight,
    pair,
    twenty_eight,
)
from experiments.fewstep.study import study

PROBLEMS = (*PAIRS, "digits", "mnist")
SMOKE: dict[str, Any] = dict(
    steps=4, reflow_steps=4, distil_steps=4, mean_steps=4, layer_steps=4, pairs=64,
    distil_pairs=64, batch=32, tested=20, repeats=1, calibrated=8, paths=64,
    path_steps=4, optimal=0,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/fewstep")
    problems: tuple[str, ...] = PROBLEMS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # MNIST takes the first
    seconds: float | None = None  # training time of each MNIST model, in place of its own
    workers: int = 2  # processes; MNIST runs in one, with as many threads
    smoke: bool = False  # a few steps of everything


def problem_of(name: str, settings: Settings) -> Problem:
    """Build a problem by its name."""

    def smaller(sizes: Sizes) -> Sizes:
        return replace(sizes, **SMOKE) if settings.smoke else sizes

    if name == "digits":
        return eight_by_eight(smaller(DIGIT_SIZES))
    if name == "mnist":
        seconds = 0.1 if settings.smoke else settings.seconds or MNIST_SIZES.seconds
        return twenty_eight(replace(smaller(MNIST_SIZES), seconds=seconds))
    return pair(name, smaller(PAIR_SIZES))


def run(job: tuple[str, int, int, Settings]) -> dict[str, Any]:
    """Study one problem and seed, and write its file."""
    name, seed, threads, settings = job
    torch.set_num_threads(threads)
    place = settings.out / name.replace(" ", "_") / str(seed)
    found = study(problem_of(name, settings), seed, place)
    (place / "figures.json").write_text(json.dumps(found, indent=1))
    return found
