"""The times at which a step asks the field, as plain numbers.

At a stop the field may jump, so a step that ends or starts there asks one unit of rounding inside:
which of its two values the field takes at the stop itself does not matter.
"""

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["node_times"]


def node_times(
    nodes: Sequence[float],
    start: np.ndarray,
    end: np.ndarray,
    stops: Sequence[float],
    dtype: torch.dtype,
) -> np.ndarray:
    """Return the times of the nodes of steps, exact at both ends, `(nodes, rows)`.

    Args:
        nodes: Shares of the step.
        start: Times at which steps start, `(rows,)`.
        end: Times at which they end, `(rows,)`.
        stops: Times at which the field may jump.
        dtype: The dtype in which the field will see them.

    Example:
        >>> ends = np.array([0.0]), np.array([1.0])
        >>> node_times((0.0, 0.5, 1.0), *ends, (), torch.float64)[:, 0].tolist()
        [0.0, 0.5, 1.0]
    """
    first, last = start, end
    if len(stops):
        first = np.where(np.isin(start, stops), _beside(start, end, dtype), start)
        last = np.where(np.isin(end, stops), _beside(end, start, dtype), end)
    length = end - start
    table = [
        first if node == 0.0 else last if node == 1.0 else start + node * length for node in nodes
    ]
    return np.stack(table)


def _beside(t: np.ndarray, towards: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    kind = np.float64 if dtype == torch.float64 else np.float32
    return np.nextafter(t.astype(kind), towards.astype(kind)).astype(np.float64)
