"""Anomaly detection by -log p on two UCI tables, beside four detectors of scikit-learn.

    python -m experiments.anomaly                          # about fifteen minutes on one core
    python -m experiments.anomaly --tables ionosphere --protocol mixed
    python -m experiments.anomaly --smoke                  # the same road in seconds

Every detector is fitted to the same rows and ranks the same test rows; the figure is the area
under the ROC curve (AUC), its mean and standard deviation over splits. With the protocol "normal"
half of the normal rows train; "mixed" trains on 70 percent of all rows, anomalies unnamed among
them, and is the one that the published rows stand beside. Labels choose no setting. The flows are
trained with Gaussian noise on the rows, which small tables need. Everything lands in runs/anomaly/.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
import tyro
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torch import Tensor

from cflow import Flow, recipes
from cflow.data import anomaly
from cflow.data.anomaly import AnomalySplit, Protocol
from cflow.train import LayerStatistics, Reconstruction, WandbMonitor, for_tables
from cflow.transport import Chain, GaussianNoise

# Han et al. (2022), ADBench, protocol "mixed", three seeds. Ionosphere: the mean of the three rows
# of their result file AUCROC_DB_test_Tabular_None_None_unsupervise.csv. Magic: as recalled.
PUBLISHED = {
    "ionosphere": {"isolation forest": 0.842, "local outlier factor": 0.906, "svm": 0.759},
    "magic": {"isolation forest": 0.733, "local outlier factor": 0.685, "svm": 0.607},
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/anomaly")  # folder of the results
    tables: tuple[str, ...] = anomaly.NAMES
    protocol: Protocol = "normal"
    flows: tuple[str, ...] = ("maf", "nsf")
    splits: int = 5
    noise: float = 0.1  # standard deviations of the columns
    transforms: int = 5
    width: int = 64  # units in each of two hidden layers
    epochs: int = 2000  # at most, and patience ends most trainings sooner
    steps: int = 3000  # optimiser steps at most
    seed: int = 0
    smoke: bool = False  # a few steps of everything


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(
            settings, tables=("ionosphere",), splits=1, steps=5, transforms=1, width=32
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "published": PUBLISHED, "auc": {}, "seconds": {}}
    monitor = WandbMonitor("cflow-anomaly", folder=settings.out, settings=shown)
    for table in settings.tables:
        x, anomalous = anomaly.load(table)
        found: dict[str, list[float]] = {}
        for k in range(settings.splits):
            seed = settings.seed + k
            parts = anomaly.split(x, anomalous, protocol=settings.protocol, seed=seed)
            for name, score in detectors(settings, monitor, f"{table}/{k}").items():
                start = time.perf_counter()
                values = score(parts, seed)
                area = float(roc_auc_score(parts.anomalous.numpy(), values.numpy()))
                found.setdefault(name, []).append(area)
                report["seconds"][f"{table}/{k}/{name}"] = time.perf_counter() - start
        report["auc"][table] = {
            name: {"mean": mean(areas), "deviation": pstdev(areas)} for name, areas in found.items()
        }
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        monitor.record({f"auc/{table}/{name}": mean(areas) for name, areas in found.items()})
        show(table, report["auc"][table], settings)
    monitor.finish()
    return report


Detector = Callable[[AnomalySplit, int], Tensor]


def detectors(settings: Settings, monitor: WandbMonitor, stage: str) -> dict[str, Detector]:
    """Return what is compared: each fits the training rows and scores the test rows."""

    def by_flow(recipe: str) -> Detector:
        def score(parts: AnomalySplit, seed: int) -> Tensor:
            flow = fit(recipe, parts.train.float(), settings, monitor, f"{stage}/{recipe}", seed)
            with torch.no_grad():
                return -torch.cat([flow.log_prob(rows.float()) for rows in parts.test.split(2000)])

        return score

    def by(model: Any) -> Detector:
        def score(parts: AnomalySplit, seed: int) -> Tensor:
            if "random_state" in model.get_params():
                model.set_params(random_state=seed)
            fitted = model.fit(parts.train.numpy())
            return -torch.as_tensor(fitted.score_samples(parts.test.numpy()))

        return score

    return {
        **{recipe: by_flow(recipe) for recipe in settings.flows},
        "gaussian mixture": by(GaussianMixture(4, reg_covar=1e-2)),
        "isolation forest": by(IsolationForest()),
        "local outlier factor": by(LocalOutlierFactor(novelty=True)),
        "svm": by(OneClassSVM()),
    }


def fit(
    recipe: str, rows: Tensor, settings: Settings, monitor: WandbMonitor, stage: str, seed: int
) -> Flow:
    """Train a flow on rows, a tenth of them held out to stop in time."""
    torch.manual_seed(seed)
    rows = rows[torch.randperm(len(rows))]
    held, train = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    build = {"maf": recipes.maf, "nsf": recipes.nsf, "realnvp": recipes.realnvp}[recipe]
    plain = build(
        rows.shape[1],
        transforms=settings.transforms,
        hidden_features=(settings.width, settings.width),
    )
    plain.initialize(train)
    flow = Flow(plain.base, Chain(plain.transport, GaussianNoise(settings.noise)))
    batch = min(256, len(train))
    trainer = for_tables(
        flow,
        examples=len(train),
        epochs=min(settings.epochs, settings.steps * batch / len(train)),
        batch=batch,
        monitor=monitor.stage(stage),
        watch=[
            LayerStatistics(held),
            Reconstruction(held, alarm=1e-3, error=1.0, scale=10.0),  # float32, far outliers
        ],
        seed=seed,
    )
    replace(trainer, progress=False).fit(train, held)
    return flow.eval()


def show(table: str, areas: dict[str, dict[str, float]], settings: Settings) -> None:
    """Print one table of figures."""
    print(f"\n{table}, protocol {settings.protocol}: AUC, mean and deviation over splits")
    for name, entry in sorted(areas.items(), key=lambda item: -item[1]["mean"]):
        known = PUBLISHED[table].get(name) if settings.protocol == "mixed" else None
        beside = "" if known is None else f"   ADBench {known:.3f}"
        print(f"  {name:22s} {entry['mean']:.3f} +- {entry['deviation']:.3f}{beside}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
