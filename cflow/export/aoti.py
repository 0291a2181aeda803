"""Write a module compiled ahead of time for this machine: a package that torch alone runs."""

import contextlib
import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path

from torch import Tensor

from cflow.errors import MissingExtraError
from cflow.export.description import NAME
from cflow.export.exportable import Exportable
from cflow.export.parity import TRACED, ExportError, evaluating, examples, one_line
from cflow.export.tracing import traced
from cflow.export.writing import write_checked

__all__ = ["export_aoti"]


def export_aoti(
    module: Exportable,
    path: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Compile a module with AOTInductor into a package for this kind of processor.

    Read it back with `torch._inductor.aoti_load_package(path)` (its name has to end in `.pt2`
    there), or with `cflow.export.load_exported`. It takes any batch size. A package looks at
    shapes only where the environment has AOTI_RUNTIME_CHECK_INPUTS=1, and else reads whatever lies
    in memory; `load_exported` looks at them first.

    Args:
        module: A `Sampler`, `Encoder`, `LogProb` or `TokenSampler`.
        path: The file to write, ending in `.pt2`.
        context: Conditions to trace and check with, as for `export_pt2`.
        tolerance: Largest parity that is accepted.

    Returns:
        The parity of the written file, max|a - b| / max(1, max|b|), or the share of tokens that
        differ.

    Raises:
        MissingExtraError: There is no C++ compiler.
        ExportError: The name ends otherwise, the module cannot be traced or compiled, or the file
            differs by more than the tolerance.
        CheckpointError: The file cannot be written.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if Path(path).suffix != ".pt2":
        raise ExportError(f"export_aoti: the name of a package ends in .pt2, got {path}")
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise MissingExtraError(
            "export_aoti: no C++ compiler is found; install g++ or clang, or set CXX; export_pt2 "
            "and export_onnx need none"
        ) from error
    program = traced("export_aoti", module, examples(module, TRACED, context))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.pt2"
        with evaluating(module), warnings.catch_warnings(), open(os.devnull, "w") as sink:
            warnings.simplefilter("ignore")  # of the compiler's own internals
            with contextlib.redirect_stdout(sink):
                try:
                    aoti_compile_and_package(program, package_path=str(package))
                except Exception as error:
                    raise ExportError(
                        f"export_aoti: the module cannot be compiled ({one_line(error)})"
                    ) from error

        def write(file: Path, about: str) -> None:
            shutil.copyfile(package, file)
            _append(file, about)

        return write_checked("aoti", module, path, write, context=context, tolerance=tolerance)


def _append(package: Path, about: str) -> None:
    """Add the description beside the package's own entries, under their common root."""
    with zipfile.ZipFile(package, "a") as stream:
        root = stream.namelist()[0].split("/")[0]
        stream.writestr(f"{root}/extra/{NAME}", about)
