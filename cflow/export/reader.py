"""Read exported files: what they say of themselves, and how to run them with their shapes checked.

An ONNX file needs onnxruntime alone, the others need torch alone.
"""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cflow.errors import CheckpointError, DomainError, MissingExtraError, ShapeError
from cflow.export.description import FORMAT, KEY, NAME, Format
from cflow.export.parity import one_line

__all__ = ["OPENERS", "Exported", "describe", "load_exported"]

Call = Callable[[dict[str, Tensor]], Tensor]


class Exported:
    """An exported file that is ready to run.

    Attributes:
        path: Where it lies.
        description: What it says of itself, see `describe`.
    """

    def __init__(self, path: Path, description: dict[str, Any], call: Call) -> None:
        self.path = path
        self.description = description
        self._call = call

    def __call__(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Run the file on a batch, without gradients.

        Args:
            inputs: Noise of a sampler, points of an encoder or a likelihood, `(n, *event_shape)`.
            context: Conditions `(n, *context_shape)`, where it takes any.

        Returns:
            Samples `(n, *data_shape)`, whole numbers where they are tokens; noise
            `(n, *base_shape)`; or log-likelihoods `(n,)`.

        Raises:
            ShapeError: The inputs or the conditions have another shape.
            DomainError: There is a context too many or too few.
        """
        about = self.description
        name, *others = about["inputs"]
        _expect(self.path, name, inputs, about["event_shape"], len(inputs) if inputs.dim() else 0)
        feed = {name: inputs.to(_dtype(about["dtype"]))}
        if bool(others) != (context is not None):
            wants = f"needs a context of shape {about['context_shape']}" if others else "takes none"
            raise DomainError(
                f"{self.path}: this file {wants}, got "
                f"{None if context is None else tuple(context.shape)}"
            )
        if context is not None:
            _expect(self.path, "context", context, about["context_shape"], len(inputs))
            feed["context"] = context.to(_dtype(about["context_dtype"]))
        with torch.no_grad():
            return self._call(feed)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what an exported file says of itself, without running it.

    Args:
        path: A `.pt2` or `.onnx` file that cflow wrote.

    Returns:
        Among others `kind` ("sampler", "encoder", "log_prob"), `format`, `inputs` (names),
        `event_shape` (of the first input), `data_shape`, `base` (the law that noise has to have),
        `context_shape`, `context_dtype`, `steps`, `solvers`, `guidance`, `dtype`, `parity` (what
        was found, the tolerance, seed and batch sizes of the check) and `versions`; of tokens also
        `vocabulary`, how many values one has, and `start`, the law at t = 0.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of cflow's.
        MissingExtraError: onnxruntime is needed and not installed.
    """
    path = _expect_file(path)
    if path.suffix == ".onnx":
        text = _session(path).get_modelmeta().custom_metadata_map.get(KEY)
    else:
        text = _entry(path)
    if text is None:
        raise CheckpointError(f"cannot read {path}: it is not a file that cflow exported")
    try:
        about = json.loads(text)
        known = about["cflow"] <= FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: its description is damaged") from error
    if not known:
        raise CheckpointError(
            f"cannot read {path}: it was written by a newer cflow "
            f"({about['versions']['cflow']}); update cflow"
        )
    return about


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Open an exported file, to be called with a batch.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of cflow's.
        MissingExtraError: onnxruntime is needed and not installed.

    Example:
        >>> import tempfile
        >>> from cflow import recipes
        >>> from cflow.export import Sampler, export_pt2
        >>> flow = recipes.realnvp(2, transforms=2, hidden_features=(8,)).float()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_pt2(Sampler(flow), f"{folder}/sampler.pt2")
        ...     sampler = load_exported(f"{folder}/sampler.pt2")
        >>> sampler(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """
    path, about = _expect_file(path), describe(path)
    try:
        call = OPENERS[about["format"]](path)
    except (MissingExtraError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot open {path}: it is damaged, or made for another machine or version of torch "
            f"({one_line(error)})"
        ) from error
    return Exported(path, about, call)


def _pt2(path: Path) -> Call:
    module = torch.export.load(path).module()
    return lambda feed: module(**feed)


def _aoti(path: Path) -> Call:
    from torch._inductor import aoti_load_package

    loaded = aoti_load_package(str(path))

    def call(feed: dict[str, Tensor]) -> Tensor:
        result = loaded(**feed)
        return result if isinstance(result, Tensor) else result[0]

    return call


def _onnx(path: Path) -> Call:
    session = _session(path)
    wanted = {each.name for each in session.get_inputs()}  # an unused input is left out

    def call(feed: dict[str, Tensor]) -> Tensor:
        arrays = {name: x.detach().cpu().numpy() for name, x in feed.items() if name in wanted}
        return torch.from_numpy(session.run(None, arrays)[0])

    return call


OPENERS: dict[Format, Callable[[Path], Call]] = {"onnx": _onnx, "pt2": _pt2, "aoti": _aoti}
"""How files of each format are opened."""


def _session(path: Path) -> Any:  # noqa: ANN401  onnxruntime is not always there
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: onnxruntime is not installed; pip install onnxruntime"
        ) from error
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"cannot read {path}: it is damaged or no ONNX model ({one_line(error)})"
        ) from error


def _entry(path: Path) -> str | None:
    """Return the description in a `.pt2` file, which is a zip archive."""
    try:
        with zipfile.ZipFile(path) as stream:
            names = [name for name in stream.namelist() if name.rsplit("/", 1)[-1] == NAME]
            return stream.read(names[0]).decode() if names else None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: it is damaged or no exported file ({one_line(error)})"
        ) from error


def _expect_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    return path


def _expect(path: Path, name: str, x: Tensor, shape: list[int], n: int) -> None:
    if tuple(x.shape) != (n, *shape):
        wanted = ", ".join(map(str, shape))
        rows = "n" if name != "context" else n
        raise ShapeError(f"{path}: {name} must have shape ({rows}, {wanted}), got {tuple(x.shape)}")


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
