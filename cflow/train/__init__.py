"""Training: the loop, its schedules, its checkpoints, and where it reports to."""

from cflow.train.batches import TrainingData
from cflow.train.loop import Trainer, TrainResult
from cflow.train.monitor import Monitor, Stage, WandbMonitor
from cflow.train.schedule import ConstantRate, CosineDecay, PolynomialDecay, Schedule

__all__ = [
    "ConstantRate",
    "CosineDecay",
    "Monitor",
    "PolynomialDecay",
    "Schedule",
    "Stage",
    "TrainResult",
    "Trainer",
    "TrainingData",
    "WandbMonitor",
]
