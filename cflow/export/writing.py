"""Write a file, look whether it does what its module does, and only then put it into its place."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from cflow import archive
from cflow.export.description import Format, described
from cflow.export.exportable import Exportable
from cflow.export.parity import TRACED, examples, expect_parity
from cflow.export.reader import OPENERS

__all__ = ["write_checked"]


def write_checked(
    form: Format,
    module: Exportable,
    path: str | os.PathLike[str],
    write: Callable[[Path, str], object],
    *,
    context: Tensor | None,
    tolerance: float,
) -> float:
    """Write and check in a folder of its own, twice: the second file knows its parity.

    Args:
        form: The format.
        module: What is written.
        path: Where it goes; what is there stays until the new file is known to be right.
        write: Writes a file with a description.
        context: Conditions to check with.
        tolerance: Largest parity that is accepted.

    Returns:
        The parity.

    Raises:
        ExportError: It is larger.
        CheckpointError: The file cannot be written.
    """
    where, inputs = f"export_{form}", examples(module, TRACED, context)
    parity = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"file.{'onnx' if form == 'onnx' else 'pt2'}"
        for _ in range(2):
            write(file, described(module, form, inputs, tolerance, parity=parity))
            parity = expect_parity(where, module, OPENERS[form](file), tolerance, context)
        archive.write_atomically(path, lambda place: shutil.copyfile(file, place))
    assert parity is not None
    return parity
