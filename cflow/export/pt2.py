"""Write a module as a `torch.export` program: a `.pt2` file that torch alone runs."""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from cflow.export.description import NAME
from cflow.export.exportable import Exportable
from cflow.export.parity import TRACED, examples
from cflow.export.tracing import traced
from cflow.export.writing import write_checked

__all__ = ["export_pt2"]


def export_pt2(
    module: Exportable,
    path: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Write a `torch.export` program, to be run with torch alone, at any batch size.

    Read it back with `torch.export.load(path).module()`, and call that with `noise=` (or `x=`),
    and `context=` where it takes one; `cflow.export.load_exported` checks shapes as well.

    Args:
        module: A `Sampler`, `Encoder`, `LogProb` or `TokenSampler`.
        path: The file to write.
        context: Conditions to trace and check with, `(n, *context_shape)`; class labels have to be
            given, vectors are drawn from a standard normal law where none are.
        tolerance: Largest parity that is accepted.

    Returns:
        The parity of the written file, max|a - b| / max(1, max|b|), or the share of tokens that
        differ.

    Raises:
        ExportError: The module cannot be traced, or the file differs by more than the tolerance.
        CheckpointError: The file cannot be written.
    """
    program = traced("export_pt2", module, examples(module, TRACED, context))

    def write(file: Path, about: str) -> None:
        with open(file, "wb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own internals
            torch.export.save(program, stream, extra_files={NAME: about})

    return write_checked("pt2", module, path, write, context=context, tolerance=tolerance)
