"""Exported samplers: files that run in a process that knows nothing of cflow."""

from cflow.export.aoti import export_aoti
from cflow.export.density import Encoder, LogProb
from cflow.export.exportable import Exportable
from cflow.export.onnx import export_onnx
from cflow.export.parity import ExportError
from cflow.export.precision import QualityLoss, low_precision
from cflow.export.pt2 import export_pt2
from cflow.export.reader import Exported, describe, load_exported
from cflow.export.sampler import Sampler
from cflow.export.token_sampler import TokenSampler

__all__ = [
    "Encoder",
    "ExportError",
    "Exportable",
    "Exported",
    "LogProb",
    "QualityLoss",
    "Sampler",
    "TokenSampler",
    "describe",
    "export_aoti",
    "export_onnx",
    "export_pt2",
    "load_exported",
    "low_precision",
]
