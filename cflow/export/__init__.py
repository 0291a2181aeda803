"""Exported samplers: files that run in a process that knows nothing of cflow."""

from cflow.export.files import ExportError, export_onnx, export_pt2
from cflow.export.sampler import Sampler

__all__ = ["ExportError", "Sampler", "export_onnx", "export_pt2"]
