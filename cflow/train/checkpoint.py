"""The state of a training in one file, written atomically and read without executing anything.

The file holds weights, averaged weights, optimiser, random states, history and the best weights so
far: all that it takes to go on as if nothing had happened.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cflow import archive
from cflow.errors import CheckpointError

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a checkpoint; the old one stands until the new one is whole."""
    archive.write_atomically(path, lambda file: torch.save(state, file))


def read_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Any]:
    """Read a checkpoint and make sure that it belongs to the model.

    Raises:
        CheckpointError: The file is truncated, no checkpoint, or that of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"cannot read checkpoint {path}: the file is truncated or no checkpoint ({reason}); "
            "move it away to start anew, or put a whole copy in its place"
        ) from error
    if not isinstance(state, dict) or not {"step", "model", "optimizer"} <= state.keys():
        raise CheckpointError(f"cannot read checkpoint {path}: it is not that of a cflow training")
    archive.expect_same_tensors(str(Path(path)), model.state_dict(), state["model"])
    return state
