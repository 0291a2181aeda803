"""Density of five UCI tables with any recipe, beside zuko's flows at equal size and time or steps.

    python -m experiments.tabular                       # FFJORD and the exact CNF; about 45 minutes
    python -m experiments.tabular --recipes maf zuko_maf nsf zuko_nsf --steps 1000
    python -m experiments.tabular --tables red --folds 0 --seconds 20
    python -m experiments.tabular --smoke               # the same road in seconds

Every model is trained by maximum likelihood on one thread for the same seconds, or the same steps
where `--steps` is given, by the same trainer
(AdamW, averaged weights, best validation kept), and asked for the log-likelihood of held-out rows,
those of continuous flows in float64 with the exact divergence and tolerances of 1e-6. Its learning
rate is the best by validation on fold 0 of one table, red wine, and serves all tables. Data and
folds are those of `cflow.data.tables`: nats per standardised row, higher is better.

A run that was cut off goes on where it stopped. Everything lands in runs/tabular/.
"""

import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from cflow.data import tables
from cflow.train import WandbMonitor
from experiments.tabular.fit import BASELINES, Job, done
from experiments.tabular.models import MODELS

TUNED_ON = ("red", 0)  # table and fold that decide the learning rates

# Uria et al. (2013), table 1, as recalled: mean test log-likelihood of a fitted Gaussian and of
# RNADE. For parkinsons their columns differ by one from those of the public copy.
PUBLISHED = {
    "red": {"RNADE-MoG": -9.36, "Gaussian": -13.18},
    "white": {"RNADE-MoG": -10.23, "Gaussian": -13.20},
    "parkinsons": {"RNADE-MoG": -0.90, "Gaussian": -10.85},
    "ionosphere": {"RNADE-MoG": -2.50, "Gaussian": -41.24},
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/tabular")  # folder of the results
    tables: tuple[str, ...] = tuple(tables.TABLES)
    recipes: tuple[str, ...] = ("ffjord", "exact_cnf", "zuko_cnf", "zuko_cnf_loose", "realnvp")
    folds: tuple[int, ...] = (1, 2, 3)  # fold 0 was in view when settings were chosen
    seconds: float = 40.0  # training time of one model
    steps: int | None = None  # optimiser steps of one model, which then decide instead of the clock
    rates: tuple[float, ...] = (2e-3, 5e-3, 1e-2, 2e-2)  # learning rates that are tried
    batch: int = 256
    decay: float = 0.1  # weight decay
    cost: float = 40.0  # regulariser of our continuous flows: nats in all training rows together
    ema: float = 0.99
    validate_every: int = 20  # steps
    jobs: int = 2  # trainings side by side, each on one thread
    seed: int = 0
    smoke: bool = False  # a second of everything


SMOKE: dict[str, Any] = dict(
    tables=("red",), folds=(0,), seconds=1.0, rates=(2e-3,), jobs=1, validate_every=5
)


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    run = Run(settings)

    trials = [
        run.job(*TUNED_ON, recipe, lr) for recipe in settings.recipes for lr in settings.rates
    ]
    run.work(trials if len(settings.rates) > 1 else [])
    rates = {recipe: run.best_rate(recipe) for recipe in settings.recipes}

    run.work(
        run.job(table, k, recipe, rates.get(recipe, 0.0))
        for table in settings.tables
        for k in settings.folds
        for recipe in (*BASELINES, *settings.recipes)
    )
    run.report["rates"] = rates
    run.report["results"] = {table: summary(run, table, rates) for table in settings.tables}
    run.write()
    run.monitor.finish()
    show(run.report, settings.out)
    return run.report


class Run:
    """The jobs of this run, those done before among them, and where their results go."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.path = settings.out / "report.json"
        self.report: dict[str, Any] = {"jobs": {}}
        if self.path.is_file():
            self.report["jobs"] = json.loads(self.path.read_text())["jobs"]
        self.report["settings"] = {
            k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()
        }
        self.report["published"] = PUBLISHED
        self.report["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
        self.monitor = WandbMonitor(
            "cflow-tabular", folder=settings.out, settings=self.report["settings"]
        )

    def job(self, table: str, k: int, recipe: str, lr: float) -> Job:
        s = self.settings
        return Job(
            table,
            recipe,
            k,
            lr,
            seconds=None if s.steps else s.seconds,
            steps=s.steps,
            batch=s.batch,
            decay=s.decay,
            cost=s.cost,
            ema=s.ema,
            validate_every=s.validate_every,
            seed=s.seed,
            rows=32 if s.smoke else None,
            built=str(MODELS.get(recipe, "")),
        )

    def work(self, jobs: Iterator[Job] | list[Job]) -> None:
        """Do what has not been done, the results written after each."""
        wanted = {job.name: job for job in jobs}
        left = [job for job in wanted.values() if not self._done(job)]
        for job, result in done(left, self.settings.jobs):
            history, rows = result.pop("history"), result.pop("rows")
            stage = self.monitor.stage(job.name)
            for figures in history:
                values = {key: value for key, value in figures.items() if key != "step"}
                stage.log(values, int(figures["step"]))
            place = self.rows(job.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, np.asarray(rows, dtype=np.float32))
            self.report["jobs"][job.name] = {"job": asdict(job), **result}
            self.write()
            print(
                f"{job.name:36s} validation {result['validation']:9.4f}  test "
                f"{result['log_prob']:9.4f}  {result['steps']:6d} steps  {result['parameters']} "
                "parameters",
                flush=True,
            )

    def rows(self, name: str) -> Path:
        """Return where the log-likelihoods of a job's test rows lie."""
        return self.settings.out / "rows" / f"{name.replace('/', '-').replace(' ', '')}.npy"

    def best_rate(self, recipe: str) -> float:
        """Return the learning rate of the best validation on the one table that decides it."""
        tried = self.settings.rates
        if len(tried) == 1:
            return tried[0]
        value = lambda lr: self.report["jobs"][self.job(*TUNED_ON, recipe, lr).name]["validation"]
        return max(tried, key=value)

    def write(self) -> None:
        """Write the report; the old one stands until the new one is whole."""
        self.settings.out.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self.report, indent=1))
        new.replace(self.path)

    def _done(self, job: Job) -> bool:
        entry = self.report["jobs"].get(job.name)
        return entry is not None and entry["job"] == asdict(job) and self.rows(job.name).exists()


def summary(run: Run, table: str, rates: dict[str, float]) -> dict[str, Any]:
    """Return each model's figures over folds, and its lead over each continuous peer."""
    found: dict[str, list[dict[str, Any]]] = {}
    rows: dict[str, np.ndarray] = {}
    for recipe in (*BASELINES, *run.settings.recipes):
        jobs = [run.job(table, k, recipe, rates.get(recipe, 0.0)) for k in run.settings.folds]
        found[recipe] = [run.report["jobs"][job.name] for job in jobs]
        rows[recipe] = np.concatenate([np.load(run.rows(job.name)) for job in jobs])
    result: dict[str, Any] = {}
    for recipe, entries in found.items():
        mean = lambda key, entries=entries: float(np.mean([entry[key] for entry in entries]))
        values = np.array([entry["log_prob"] for entry in entries])
        result[recipe] = {"log_prob": spread(values)}
        result[recipe] |= {key: mean(key) for key in ("parameters", "steps", "seconds", "nfe")}
        result[recipe]["lead over"] = {}
        for peer in (name for name in found if name != recipe):
            lead = values - np.array([entry["log_prob"] for entry in found[peer]])
            result[recipe]["lead over"][peer] = {
                "folds": spread(lead),
                "rows": spread(rows[recipe] - rows[peer]),
                "folds won": int((lead > 0).sum()),
            }
    return result


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Return mean and standard error; None for the error of a single value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "error": None if error is None else float(error)}


def show(report: dict[str, Any], out: Path) -> None:
    """Print the table."""
    pm = lambda entry: f"{entry['mean']:8.3f} +- {entry['error'] or math.nan:5.3f}"
    print("\ntest log-likelihood, nats per standardised row; +- is the standard error over folds")
    for table, models in report["results"].items():
        recalled = ", ".join(f"{k} {v:.2f}" for k, v in PUBLISHED.get(table, {}).items())
        print(f"\n{table}" + (f"   published [recalled]: {recalled}" if recalled else ""))
        for recipe, entry in models.items():
            print(
                f"  {recipe:12s} {pm(entry['log_prob'])}   {entry['parameters']:7.0f} parameters "
                f"{entry['steps']:7.0f} steps {entry['seconds']:6.1f} s  nfe {entry['nfe']:.0f}"
            )
            for peer in (name for name in MODELS if MODELS[name].library == "zuko"):
                lead = entry["lead over"].get(peer)
                if lead and recipe in MODELS and MODELS[recipe].library == "cflow":
                    print(
                        f"  {'':12s}   lead over {peer}: {pm(lead['folds'])} by folds, "
                        f"{pm(lead['rows'])} by rows"
                    )
    print(f"\nlearning rates: {report['rates']}; everything is in {out}/")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
