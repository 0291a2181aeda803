"""Write a sampler as a file that runs where cflow is not installed: `.pt2` and ONNX.

Both take any batch size, carry a description of themselves, and are compared with the module they
came from before the call returns: parity = max|a - b| / max(1, max|b|) on fixed noise.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from cflow import archive
from cflow.errors import CflowError, MissingExtraError, expect_trailing
from cflow.export.sampler import Sampler
from cflow.transport import ODE

__all__ = ["ExportError", "export_onnx", "export_pt2"]

TRACED, CHECKED = 4, 7
"""Batch size that is traced, and a different one that is checked."""


class ExportError(CflowError, RuntimeError):
    """A sampler cannot be written, or the written file disagrees with it."""


def export_pt2(
    sampler: Sampler,
    path: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write a `torch.export` program, to be run with torch alone.

    Read it back with `torch.export.load(path).module()` and call that with noise.

    Args:
        sampler: The sampler.
        path: The file to write.
        context: Conditions to trace and check with, `(n, *context_shape)`; class labels have to be
            given, vectors are drawn from a standard normal law where none are.
        tolerance: Largest parity that is accepted.

    Returns:
        The parity of the written file.

    Raises:
        ExportError: The sampler cannot be traced, or the file differs by more than the tolerance.
        CheckpointError: The file cannot be written.
    """
    inputs = _inputs(sampler, TRACED, context)
    shapes = {name: {0: Dim.DYNAMIC} for name in inputs}
    with _evaluating(sampler):
        try:
            program = torch.export.export(sampler, (), inputs, dynamic_shapes=shapes)
        except Exception as error:
            raise ExportError(f"export_pt2: the sampler cannot be traced: {error}") from error

    def fill(file: Path) -> float:
        with open(file, "wb") as stream:
            torch.export.save(program, stream, extra_files={"cflow.json": _description(sampler)})
        with open(file, "rb") as stream:
            module = torch.export.load(stream).module()
        return _parity(
            "export_pt2", sampler, lambda given: module(**given), tolerance, context=context
        )

    return _write(path, fill)


def export_onnx(
    sampler: Sampler,
    path: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write an ONNX model with inputs `noise` (and `context`) and output `samples`.

    Args:
        sampler: The sampler.
        path: The file to write.
        context: Conditions to trace and check with, as for `export_pt2`.
        tolerance: Largest parity that is accepted, measured with onnxruntime.

    Returns:
        The parity of the written file.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: The sampler cannot be traced, or the file differs by more than the tolerance.
        CheckpointError: The file cannot be written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise MissingExtraError(
            f"export_onnx: {error.name} is not installed; pip install 'cflow[export]'"
        ) from error
    inputs = _inputs(sampler, TRACED, context)
    with _evaluating(sampler), warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of the exporter's own internals
        try:
            program = torch.onnx.export(
                sampler,
                (),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["samples"],
                dynamic_shapes={name: {0: Dim.DYNAMIC} for name in inputs},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"export_onnx: the sampler cannot be traced: {error}") from error
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"cflow": _description(sampler)})

    def fill(file: Path) -> float:
        file.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(
            file.read_bytes(), providers=["CPUExecutionProvider"]
        )

        def call(given: dict[str, Tensor]) -> Tensor:
            feed = {name: tensor.cpu().numpy() for name, tensor in given.items()}
            return torch.from_numpy(session.run(None, feed)[0])

        return _parity("export_onnx", sampler, call, tolerance, context=context)

    return _write(path, fill)


def _inputs(sampler: Sampler, batch: int, context: Tensor | None) -> dict[str, Tensor]:
    """Draw the fixed noise (and context) that files are traced and checked with."""
    parameter = next(sampler.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape: torch.randn((batch, *shape), generator=generator).to(parameter)
    inputs = {"noise": draw(sampler.event_shape)}
    if sampler.context_shape is None:
        return inputs
    if context is None:
        return inputs | {"context": draw(sampler.context_shape)}
    expect_trailing("export", "context", context, (len(context), *sampler.context_shape))
    rows = torch.arange(batch, device=context.device) % len(context)
    return inputs | {"context": context[rows]}


def _parity(
    where: str,
    sampler: Sampler,
    call: Callable[[dict[str, Tensor]], Tensor],
    tolerance: float,
    *,
    context: Tensor | None,
) -> float:
    worst = 0.0
    for batch in (TRACED, CHECKED):
        given = _inputs(sampler, batch, context)
        with _evaluating(sampler):
            ours, theirs = sampler(**given).cpu(), call(given).cpu()
        worst = max(worst, float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1.0)))
    if not worst <= tolerance:
        raise ExportError(
            f"{where}: the written file differs from the sampler by {worst:.3g}, more than "
            f"{tolerance:.3g}; no file was kept"
        )
    return worst


def _description(sampler: Sampler) -> str:
    solvers = [str(part.solver) for part in sampler.modules() if isinstance(part, ODE)]
    fields: dict[str, Any] = {
        "base": sampler.base,
        "event_shape": sampler.event_shape,
        "context_shape": sampler.context_shape,
        "solvers": solvers,
        "parity_seed": 0,
    }
    return json.dumps(fields)


@contextlib.contextmanager
def _evaluating(sampler: Sampler) -> Iterator[None]:
    """Run in evaluation mode, without gradients; leave every module in the mode it was in."""
    modes = {module: module.training for module in sampler.modules()}
    sampler.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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


def _write(path: str | os.PathLike[str], fill: Callable[[Path], float]) -> float:
    parity: list[float] = []
    archive.write_atomically(path, lambda file: parity.append(fill(file)))
    return parity[0]
