"""Write a module as an ONNX model, which onnxruntime and many others run."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cflow.errors import MissingExtraError
from cflow.export.description import KEY
from cflow.export.exportable import Exportable
from cflow.export.parity import TRACED, ExportError, evaluating, examples, one_line
from cflow.export.tracing import traced
from cflow.export.writing import write_checked

__all__ = ["export_onnx"]


def export_onnx(
    module: Exportable,
    path: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Write an ONNX model: inputs `noise` (or `x`) and `context`, output `samples` and the like.

    Args:
        module: A `Sampler`, `Encoder`, `LogProb` or `TokenSampler`.
        path: The file to write.
        context: Conditions to trace and check with, as for `export_pt2`.
        tolerance: Largest parity that is accepted, measured with onnxruntime.

    Returns:
        The parity of the written file, max|a - b| / max(1, max|b|), or the share of tokens that
        differ.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: The module cannot be traced, or the file differs by more than the tolerance.
        CheckpointError: The file cannot be written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  checks the file
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise MissingExtraError(
            f"export_onnx: {error.name} is not installed; pip install 'cflow[export]'"
        ) from error
    inputs = examples(module, TRACED, context)
    program = traced("export_onnx", module, inputs, spelled=True)
    with evaluating(module), warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of the exporter's own internals
        try:
            written = torch.onnx.export(
                program,
                input_names=list(inputs),
                output_names=[module.output_name],
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"export_onnx: the module has no ONNX form ({one_line(error)})"
            ) from error
    assert written is not None
    model = written.model_proto
    _forget_notes(model.graph)

    def write(file: Path, about: str) -> None:
        onnx.helper.set_model_props(model, {KEY: about})
        file.write_bytes(model.SerializeToString())

    return write_checked("onnx", module, path, write, context=context, tolerance=tolerance)


def _forget_notes(graph: Any) -> None:  # noqa: ANN401  onnx is not always there
    """Drop the notes on where each operation comes from, more bytes than the weights."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the graph of a loop
                _forget_notes(attribute.g)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a package's log below errors for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
