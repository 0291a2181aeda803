"""Files that survive: atomic writing, and safetensors with a JSON header that is read as data.

A file is written beside its place, flushed, and renamed over it, so a reader finds the old file or
the new one, never half of one. Nothing in a file is ever executed.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from cflow.errors import CheckpointError

__all__ = ["expect_same_tensors", "read", "write", "write_atomically"]

HEADER = "cflow"


def write_atomically(path: str | os.PathLike[str], fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file in the folder of `path`, then rename it to `path`.

    Args:
        path: The file to replace; its folder is made when missing.
        fill: Writes the file whose path it is given.

    Raises:
        CheckpointError: The folder cannot be made or written to.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error.strerror or error}; choose a folder that can be "
            "written to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a header that JSON can hold, atomically."""
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = serialize(owned, metadata={HEADER: json.dumps(header)})
    write_atomically(path, lambda file: file.write_bytes(data))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header.

    Raises:
        CheckpointError: The file is missing, truncated, or not one of cflow's.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            # Copied: into memory aligned as before, so that sums give the same bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path}: the file is truncated or not a safetensors file ({error})"
        ) from error
    if header is None:
        raise CheckpointError(f"cannot read {path}: its tensors are not those of a flow")
    return tensors, json.loads(header)


def expect_same_tensors(
    path: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise `CheckpointError` unless both hold the same names and shapes."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(wanted[name].shape)} here"
        for name in wanted
        if name in found and wanted[name].shape != found[name].shape
    ]
    if missing or unknown or shapes:
        detail = "; ".join(
            part
            for part in (
                f"missing {missing[0]} ({len(missing)} in all)" if missing else "",
                f"unknown {unknown[0]} ({len(unknown)} in all)" if unknown else "",
                f"{shapes[0]} ({len(shapes)} in all)" if shapes else "",
            )
            if part
        )
        raise CheckpointError(
            f"{path} holds the weights of another model: {detail}; build the model as it was built "
            "when the file was written"
        )
