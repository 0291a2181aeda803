"""Training: the loop, its schedules, its checkpoints, what it watches, and where it reports to."""

from cflow.train.batches import BatchSource, TrainingData
from cflow.train.joined import JoinedOptimizer, muon
from cflow.train.loop import Trainer, TrainResult
from cflow.train.monitor import Monitor, Stage, WandbMonitor
from cflow.train.presets import for_images, for_inference, for_tables
from cflow.train.reflow import distil, reflow
from cflow.train.schedule import ConstantRate, CosineDecay, PolynomialDecay, Schedule
from cflow.train.watch import LayerStatistics, Reconstruction, ScaleSaturation, Watch

__all__ = [
    "BatchSource",
    "ConstantRate",
    "CosineDecay",
    "JoinedOptimizer",
    "LayerStatistics",
    "Monitor",
    "PolynomialDecay",
    "Reconstruction",
    "ScaleSaturation",
    "Schedule",
    "Stage",
    "TrainResult",
    "Trainer",
    "TrainingData",
    "WandbMonitor",
    "Watch",
    "distil",
    "for_images",
    "for_inference",
    "for_tables",
    "muon",
    "reflow",
]
