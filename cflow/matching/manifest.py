"""Notes beside long work: what was asked for, so that only the same work goes on.

A note is JSON, written atomically. Tensors are told apart by a digest of their bytes.
"""

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cflow import archive
from cflow.errors import CheckpointError

__all__ = ["agree", "digest", "digest_of", "read_note", "spoken", "write_note"]


def digest(*tensors: Tensor | None) -> str | None:
    """Return a digest of shapes, dtypes and bytes; None where no tensor is given.

    Example:
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(None) is None
        (True, True)
    """
    given = [(str(k), tensor) for k, tensor in enumerate(tensors) if tensor is not None]
    return _digest(given) if given else None


def digest_of(module: nn.Module) -> str:
    """Return a digest of the weights and buffers of a module, under their names."""
    state = module.state_dict().items()
    return _digest((name, value) for name, value in state if isinstance(value, Tensor))


def spoken(option: object) -> str:
    """Return the repr of an option, less the addresses of functions, which differ by process.

    Example:
        >>> spoken([print, len]) == repr([print, len]), "at 0x" in spoken(lambda: None)
        (True, False)
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(option))


def read_note(where: str, path: Path) -> dict[str, Any] | None:
    """Read a note; None where there is none.

    Raises:
        CheckpointError: It cannot be read, or is none of ours.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{where}: cannot read {path} ({error}); move its folder away to begin anew, or choose "
            "another"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("asked"), dict):
        raise CheckpointError(f"{where}: {path} was not written by cflow; choose another folder")
    return found


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write a note atomically."""
    text = json.dumps(note, indent=1)
    archive.write_atomically(path, lambda file: file.write_text(text))


def agree(where: str, path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise `CheckpointError`, naming what differs, unless both ask for the same."""
    other = [name for name in {**asked, **found} if found.get(name) != asked.get(name)]
    if other:
        parts = [_told(name, found.get(name), asked.get(name)) for name in other]
        raise CheckpointError(
            f"{where}: {path} belongs to other work ({', '.join(parts)}); choose another folder, "
            "or ask for the same again"
        )


def _told(name: str, found: object, asked: object) -> str:
    """Say what differs; digests say nothing to a reader."""
    digests = {"teacher", "context", "data"}
    return f"another {name}" if name in digests else f"{name} was {found}, now {asked}"


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    total = blake2b(digest_size=16)
    for name, tensor in named:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()
