"""Accepted steps as plain numbers, from which an adjoint runs them once more."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cflow.ode.clock import node_times
from cflow.ode.loop import Loop, Round

__all__ = ["Move", "moves_of"]


@dataclass(frozen=True)
class Move:
    """Hold one step of some samples, ready to be retraced.

    Attributes:
        index: Numbers of the samples; None for all.
        start: Times at which it starts, `(rows,)`.
        end: Times at which it ends.
        start_share: How `start` follows t1 rather than t0, for gradients of the times.
        end_share: How `end` does.
        stops: Times at which the field may jump.
    """

    index: np.ndarray | None
    start: np.ndarray
    end: np.ndarray
    start_share: np.ndarray
    end_share: np.ndarray
    stops: tuple[float, ...]

    def clock(
        self,
        nodes: Sequence[float],
        like: Tensor,
        early: Tensor | None = None,
        late: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the times of the nodes and the step sizes, in dtype and device of `like`.

        `early` and `late` are zeros that carry the gradients of the two ends.
        """
        table = node_times(nodes, self.start, self.end, self.stops, like.dtype)
        table = np.concatenate([table, (self.end - self.start)[None]])
        tensor = torch.from_numpy(table).to(like.dtype).to(like.device)
        *times, sizes = tensor.unbind(0)
        if early is None or late is None:
            return times, sizes
        shifted = [t + (1 - c) * early + c * late for c, t in zip(nodes, times, strict=True)]
        return shifted, sizes + late - early


def moves_of(loop: Loop, record: Sequence[Round]) -> list[Move]:
    """Make moves of what an adaptive loop recorded: only the last step of a sample follows t1."""
    return [
        Move(rows, start, end, 0.0 * start, 1.0 * (end == loop.end[rows]), loop.span.stops)
        for rows, start, end in record
    ]
