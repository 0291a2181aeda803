"""Density of five UCI tables: FFJORD and an exact CNF beside zuko's CNF, at equal size and time.

    python -m experiments.tabular                       # about 45 minutes on two cores
    python -m experiments.tabular --tables red --folds 0 --seconds 20
    python -m experiments.tabular --smoke               # the same road in seconds

Every model is trained by maximum likelihood on one thread for the same seconds, by the same trainer
(AdamW, averaged weights, best validation kept), and asked for the log-likelihood of held-out rows,
those of continuous flows in float64 with the exact divergence and tolerances of 1e-6. Its learning
rate is the best by validation on fold 0 of one table, red wine, and serves all tables. Data and
folds are those of `cflow.data.tables`: nats per standardised row, higher is better.

A run that was cut off goes on where it stopped. Everything lands in runs/tabular/.
"""

import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, nll, recipes
from cflow.data import Split, tables
from cflow.field import CostSum, Exact, JacobianNorm, KineticEnergy
from cflow.ode import RK4, Dopri5
from cflow.train import Schedule, Trainer, WandbMonitor

TUNED_ON = ("red", 0)  # table and fold that decide the learning rates
TIGHT = 1e-6  # tolerance of the test likelihood of continuous flows
BASELINES = ("gaussian", "mixture")
PEERS = ("zuko_cnf", "zuko_cnf_loose")  # two tolerances in training: neither is best on all tables

# What each model is built with. The three continuous flows have the same two hidden layers; ffjord
# and the peer train on Hutchinson's estimate. Fixed steps and loose tolerances serve training only;
# the test likelihood is solved anew, tightly.
HIDDEN = (128, 128)
BUILDS: dict[str, dict[str, Any]] = {
    "cnf": dict(hidden_features=HIDDEN, frequencies=3, solver=RK4(4)),
    "ffjord": dict(
        hidden_features=HIDDEN, layer="concat", activation="tanh", batch_norm=False, solver=RK4(4)
    ),
    "exact_cnf": dict(hidden_features=HIDDEN, frequencies=2, solver=RK4(4)),
    "zuko_cnf": dict(hidden_features=HIDDEN, atol=1e-3, rtol=1e-3, exact=False),
    "zuko_cnf_loose": dict(hidden_features=HIDDEN, atol=1e-2, rtol=1e-2, exact=False),
    "realnvp": dict(transforms=6, hidden_features=(64, 64), bound=2.0, dropout=0.2),
}

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


@dataclass(frozen=True)
class Job:
    """One model on one fold: all that its process is told."""

    table: str
    recipe: str
    fold: int
    lr: float
    seconds: float
    batch: int
    decay: float
    cost: float
    ema: float
    validate_every: int
    seed: int
    rows: int | None  # test rows that are asked for; None for all
    options: dict[str, Any] = field(default_factory=dict)  # how the model is built

    @property
    def name(self) -> str:
        return f"{self.table}/{self.recipe}/{self.fold}/lr {self.lr:g}"


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
        self.report["builds"] = {name: str(BUILDS.get(name, {})) for name in settings.recipes}
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
            seconds=s.seconds,
            batch=s.batch,
            decay=s.decay,
            cost=s.cost,
            ema=s.ema,
            validate_every=s.validate_every,
            seed=s.seed,
            rows=32 if s.smoke else None,
            options=BUILDS.get(recipe, {}),
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
            self.report["jobs"][job.name] = {"job": written(job), **result}
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
        return entry is not None and entry["job"] == written(job) and self.rows(job.name).exists()


def written(job: Job) -> dict[str, Any]:
    """Return a job as it reads in the report."""
    return {**asdict(job), "options": str(job.options)}


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
    model = build(job, train)
    if isinstance(model, Flow):
        model.initialize(train)
    start = time.perf_counter()
    result = Trainer(
        model,
        negative_log_prob,
        steps=10_000_000,  # the clock ends it
        time_limit=job.seconds,
        batch=job.batch,
        optimizer=torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=job.decay),
        schedule=CosineByClock(warmup=20, final=0.02, start=start, seconds=job.seconds),
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


@dataclass(frozen=True)
class CosineByClock(Schedule):
    """Fall along half a cosine, by the seconds that have passed and not by the steps.

    Attributes:
        start: Reading of `time.perf_counter` at the beginning.
        seconds: Time to the end.
    """

    start: float = 0.0
    seconds: float = 1.0

    def _decay(self, share: float) -> float:
        passed = (time.perf_counter() - self.start) / self.seconds
        return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def build(job: Job, train: Tensor) -> nn.Module:
    """Build a model; ours are held smooth by a cost that counts for less where there is more data.

    Finlay et al. (2020), arXiv 2002.02798: kinetic energy, and the Jacobian's norm where it is had
    for nothing, beside Hutchinson's estimate.
    """
    features, weight = train.shape[1], job.cost / len(train)
    if job.recipe in PEERS:
        import zuko  # the peer; it offers no such cost

        return zuko.flows.CNF(features, **job.options)
    costs: dict[str, dict[str, Any]] = {
        "ffjord": dict(cost=CostSum((KineticEnergy(weight), JacobianNorm(weight)))),
        "exact_cnf": dict(cost=KineticEnergy(5 * weight)),  # alone, it has to do for both
    }
    return getattr(recipes, job.recipe)(features, **job.options, **costs.get(job.recipe, {}))


def negative_log_prob(model: nn.Module, x: Tensor, *, generator: Generator) -> Tensor:
    """Return the loss of one batch, whichever library the model is from.

    Validation is exact, so that the weights that are kept owe nothing to the luck of an estimate;
    nor, where the trace is in closed form and cheap, to the error of four fixed steps.
    """
    if isinstance(model, Flow):
        if not model.training and model.likelihood == "estimate":
            model = model.with_solver(divergence=Exact())
        elif not model.training:
            model = model.with_solver(Dopri5(1e-4, 1e-4))
        return nll(model, x, generator=generator)
    part = zuko_part(model)
    estimated = not part.exact
    part.exact = part.exact or not model.training
    try:
        return -model().log_prob(x)
    finally:
        part.exact = not estimated


def zuko_part(model: nn.Module) -> Any:
    """Return the part of zuko's flow that holds its network, its tolerances and its trace."""
    import zuko

    kind = zuko.flows.FFJTransform
    return next(part for part in model.modules() if isinstance(part, kind))


@torch.no_grad()
def log_prob(model: nn.Module, x: Tensor) -> Tensor:
    """Return the log-likelihood of each row in float64: exact divergence, tight tolerances."""
    model = model.double().eval()
    if isinstance(model, Flow):
        flow = model.with_solver(Dopri5(TIGHT, TIGHT), divergence=Exact())
        return torch.cat([flow.log_prob(part) for part in x.split(256)])
    part = zuko_part(model)
    part.atol, part.rtol, part.exact = TIGHT, TIGHT, True
    return torch.cat([model().log_prob(part) for part in x.split(256)])


@torch.no_grad()
def count_evaluations(model: nn.Module, x: Tensor) -> float:
    """Return the evaluations that one solve of the trained flow takes, as it was trained."""
    if isinstance(model, Flow):
        state, _ = model.pull_state(x, generator=Generator().manual_seed(0))
        return float(torch.as_tensor(state.nfe, dtype=torch.float64).mean())
    calls = []
    handle = zuko_part(model).ode.register_forward_hook(lambda *_: calls.append(1))
    model().log_prob(x)
    handle.remove()
    return float(len(calls))


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
            for peer in PEERS:
                lead = entry["lead over"].get(peer)
                if lead and recipe not in (*PEERS, *BASELINES):
                    print(
                        f"  {'':12s}   lead over {peer}: {pm(lead['folds'])} by folds, "
                        f"{pm(lead['rows'])} by rows"
                    )
    print(f"\nlearning rates: {report['rates']}; everything is in {out}/")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
