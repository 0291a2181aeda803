"""An exported file as the commands see it: what it takes, and the call."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cflow.errors import CflowError, DomainError

if TYPE_CHECKING:
    from cflow.export import Exported

__all__ = ["Opened", "opened"]

KINDS = {
    "sampler": "a sampler (cflow sample)",
    "encoder": "an encoder (call it by cflow.export.load_exported)",
    "log_prob": "a log-likelihood (cflow log-prob)",
}


@dataclass(frozen=True)
class Opened:
    """A file that is ready to run.

    Attributes:
        file: What the exporter's reader returns.
        shape: Shape of one input: noise of a sampler, a point of a likelihood.
        data_shape: Shape of one point.
        context_shape: Shape of one condition, or None.
    """

    file: "Exported"
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    context_shape: tuple[int, ...] | None

    def call(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Run a batch.

        Raises:
            ShapeError: The batch or its conditions have another shape.
            DomainError: The runtime refuses what it is given, such as an unknown label.
        """
        try:
            return self.file(x, context)
        except CflowError:
            raise
        except Exception as error:  # each runtime has its own
            reason = str(error).strip().splitlines()[0]
            raise DomainError(f"cannot run {self.file.path} on this input: {reason}") from error


def opened(path: Path, kind: str) -> Opened:
    """Open an exported file of one kind.

    Raises:
        CheckpointError: It cannot be read.
        DomainError: It is of another kind.
        MissingExtraError: onnxruntime is needed and not installed.
    """
    from cflow.export import load_exported  # torch.export is slow to import

    file = load_exported(path)
    found = file.description
    if found["kind"] != kind:
        raise DomainError(f"cannot use {path}: it holds {KINDS[found['kind']]}, not {KINDS[kind]}")
    context = found["context_shape"]
    return Opened(
        file,
        tuple(found["event_shape"]),
        tuple(found["data_shape"]),
        None if context is None else tuple(context),
    )
