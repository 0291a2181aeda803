"""The intervals of a fixed-step solve, with every time at which the field will be asked."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.errors import known
from cflow.ode.clock import node_times
from cflow.ode.grid import Grid, TimeGrid
from cflow.ode.problem import Problem, Span
from cflow.ode.step import Width, widths

__all__ = ["Tick", "lay_out"]


class Tick(NamedTuple):
    """Hold one interval of the grid.

    Attributes:
        times: Times at which the method asks the field, each `(batch,)`.
        until: Time at which the interval ends, `(batch,)`.
        h: Step size, a number or one for each sample.
        start: Start as a number; its share of the way where the span is given in tensors.
        end: End, likewise.
        ratios: Sizes of up to two steps before over this one, nearest first, not across a stop.
    """

    times: Sequence[Tensor]
    until: Tensor
    h: Width
    start: float
    end: float
    ratios: tuple[float, ...]


def lay_out(
    problem: Problem,
    span: Span,
    grid: Grid,
    steps: int,
    nodes: Sequence[float],
    *,
    memory: int = 0,
) -> list[Tick]:
    """Lay a grid over a span; stops are added to it, and a backward run takes it in reverse.

    Args:
        problem: Gives batch, dtype and device.
        span: The way from t0 to t1.
        grid: Where steps fall.
        steps: Their number.
        nodes: Times within a step, as shares of it, the first 0.
        memory: Steps before whose sizes are wanted.
    """
    t0, t1 = span.t0, span.t1
    dtype, device = problem.time_dtype, problem.leaves[0].device
    if isinstance(t0, Tensor) or isinstance(t1, Tensor):
        start = torch.as_tensor(t0, dtype=dtype, device=device).expand(problem.batch)
        length = torch.as_tensor(t1, dtype=dtype, device=device).expand(problem.batch) - start
        path = _shares(grid, steps, 0.0, 1.0, backward=known((length <= 0).all()) is True)
        asked = [start + length * s for s in _asked(path, nodes, (), dtype)]
        sizes: list[Width] = [widths(length * (b - a), problem.leaves) for a, b in pairwise(path)]
    else:
        path = _numbers(span, t0, t1, grid, steps)
        table = torch.tensor(_asked(path, nodes, span.stops, dtype), dtype=dtype, device=device)
        asked = table[:, None].expand(-1, problem.batch).unbind(0)
        sizes = [b - a for a, b in pairwise(path)]
    n = len(nodes)
    count = len(path) - 1
    ratios = [_ratios(path, k, span.stops) for k in range(count)] if memory else [()] * count
    times = [asked[k : k + n] for k in range(0, n * count, n)]
    columns = (times, asked[n::n], sizes, path[:-1], path[1:], ratios)
    return [Tick(*entry) for entry in zip(*columns, strict=True)]


def _asked(
    path: Sequence[float], nodes: Sequence[float], stops: Sequence[float], dtype: torch.dtype
) -> list[float]:
    """List the times of all nodes of all steps, and the last end."""
    if stops:
        table = node_times(nodes, np.asarray(path[:-1]), np.asarray(path[1:]), stops, dtype)
        return [*table.T.flatten().tolist(), path[-1]]
    inner = [b if c == 1.0 else a + c * (b - a) for a, b in pairwise(path) for c in nodes]
    return [*inner, path[-1]]


def _shares(grid: Grid, steps: int, low: float, high: float, *, backward: bool) -> list[float]:
    """Return the grid in the order of travel, as shares of the way from start to end."""
    steps = len(grid.times) - 1 if isinstance(grid, TimeGrid) else steps
    shares = grid.shares(steps, low, high)
    return [1.0 - s for s in reversed(shares)] if backward else shares


def _numbers(span: Span, t0: float, t1: float, grid: Grid, steps: int) -> list[float]:
    low, high = min(t0, t1), max(t0, t1)
    shares = _shares(grid, steps, low, high, backward=t1 < t0)
    path = [t0, *(t0 + (t1 - t0) * s for s in shares[1:-1]), t1]
    for stop in span.stops:
        near = min(path, key=lambda t: abs(t - stop))
        if abs(near - stop) <= 1e-9 * (high - low):
            path[path.index(near)] = stop
        else:
            path = sorted((*path, stop), reverse=t1 < t0)
    return path


def _ratios(path: Sequence[float], k: int, stops: Sequence[float]) -> tuple[float, ...]:
    out: list[float] = []
    for j in range(k - 1, max(-1, k - 3), -1):
        if path[j + 1] in stops:
            break
        out.append((path[j + 1] - path[j]) / (path[k + 1] - path[k]))
    return tuple(out)
