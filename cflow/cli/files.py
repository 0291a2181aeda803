"""Files that commands take and leave: a saved flow, the folder of a run, an exported file.

A run folder holds flow.safetensors, settings.json, history.json and the trainer's checkpoint.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cflow import archive
from cflow.errors import CheckpointError, DomainError
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.recipes.recipe import load_any

__all__ = [
    "CHECKPOINT",
    "FLOW",
    "HISTORY",
    "SETTINGS",
    "claim",
    "expect_writable",
    "flow_file",
    "flow_of",
    "read_json",
    "write_json",
]

FLOW, SETTINGS, HISTORY = "flow.safetensors", "settings.json", "history.json"
CHECKPOINT = "checkpoint.pt"


def flow_file(path: Path) -> Path | None:
    """Return where the flow of a file or a run folder lies, or None for an exported file.

    Raises:
        CheckpointError: There is no such file, or the run has not ended.
    """
    if not path.exists():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    if not path.is_dir():
        return path if path.suffix == ".safetensors" else None
    if (path / FLOW).is_file():
        return path / FLOW
    if (path / CHECKPOINT).is_file():
        raise CheckpointError(
            f"cannot use {path}: its training has not ended; give the command that began it again "
            "to go on"
        )
    raise CheckpointError(f"cannot use {path}: the folder holds no {FLOW} of a training")


def flow_of(path: Path) -> Flow | JumpFlow | None:
    """Load the flow, of points or of tokens, of a file or a run folder; None for an exported file.

    Raises:
        CheckpointError: It cannot be read.
    """
    found = flow_file(path)
    try:
        return None if found is None else load_any(found)
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"cannot read {found}: its header is damaged ({error})") from error


def expect_writable(path: Path) -> None:
    """Make sure, before the work, that its result can be written.

    Raises:
        CheckpointError: The folder cannot be made or written to, or the path is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written "
            "to"
        ) from error
    if path.is_dir():
        raise CheckpointError(f"cannot write {path}: it is a folder; name a file in it")


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run into its folder, or find there the same ones.

    Raises:
        DomainError: The folder holds a training with other settings.
        CheckpointError: It cannot be written to.
    """
    path = folder / SETTINGS
    expect_writable(path)
    if not any((folder / name).exists() for name in (CHECKPOINT, FLOW)):
        write_json(path, settings)
        return
    earlier, wanted = read_json(path), json.loads(json.dumps(settings))
    for key in sorted(wanted.keys() - {"version"}):
        if wanted[key] != earlier.get(key):
            raise DomainError(
                f"train: {folder} holds a training with {key} {earlier.get(key)}, not "
                f"{wanted[key]}; choose another folder by --out, or delete that one"
            )


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def write_json(path: Path, values: object) -> None:
    """Write a JSON file; the old one stands until the new one is whole."""
    text = json.dumps(values, indent=2)
    archive.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
