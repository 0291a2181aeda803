"""Snapshots: one field through the laws of several times, of which only clouds of points are known.

    x_t from pairs of neighbouring snapshots k, k + 1;   t = t_k + h r,   dx/dt = (dx/dr) / h

where r in [0, 1] is the path's own time within the interval and h the interval's length. The times
of the snapshots may be in any units: they are mapped to [0, 1] by the first and the last of them. A
snapshot that is left out is bridged by its neighbours, so that the field can be judged there.
Source: Tong et al. (2020), TrajectoryNet, arXiv 2002.04461, section 5.3; Tong et al. (2024), arXiv
2302.00482, section 5.2.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_floating, expect_positive
from cflow.matching.bridge import BridgePath, bridge_error
from cflow.matching.coupling import Coupling, PairedCoupling
from cflow.matching.dropout import ContextDropout
from cflow.matching.loss import UNIFORM, Regression, regression, squared_error
from cflow.matching.path import Path
from cflow.matching.times import TimeLaw
from cflow.typing import Batch

__all__ = ["snapshot_matching", "unit_times"]


def unit_times(times: Sequence[float] | Tensor) -> list[float]:
    """Map times of any units to [0, 1]: the first becomes 0, the last 1.

    Points are then carried from one snapshot to another by
    `ODE(field, solver).trajectory(x, [u[a], u[b]])`, u being these times.

    Args:
        times: Two times or more, rising.

    Raises:
        DomainError: Times are fewer than two, not finite, or do not rise.

    Example:
        >>> unit_times([3.0, 4.0, 7.0])
        [0.0, 0.25, 1.0]
    """
    known = [float(t) for t in times]
    rising = all(a < b for a, b in pairwise(known))
    if len(known) < 2 or not rising or not known[-1] - known[0] < float("inf"):
        raise DomainError(
            f"unit_times: times of snapshots must be two or more, finite and rising, got {known}; "
            "sort the snapshots by time and join those of one time"
        )
    first, span = known[0], known[-1] - known[0]
    return [(t - first) / span for t in known]


def snapshot_matching(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    path: Path,
    coupling: Coupling,
    snapshots: Sequence[Tensor],
    *,
    times: Sequence[float] | Tensor,
    leave_out: int | None = None,
    contexts: Sequence[Tensor] | None = None,
    batch: int = 256,
    score: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    law: TimeLaw = UNIFORM,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    marginal: bool = False,
    generator: Generator | None = None,
) -> Batch:
    """Return the squared velocity error of pairs between neighbouring snapshots.

    Each interval has as many pairs as each other, drawn anew from its two snapshots: without
    repetition where they hold `batch` points, else with. The loss draws its own data, so in a
    `Trainer` the batches only count:

        loss = lambda model, row, *, generator: snapshot_matching(
            model, path, coupling, snapshots, times=times, generator=generator)
        Trainer(field, loss, steps=1000).fit(torch.zeros(1, 1))

    Args:
        field: The velocity dx/dt in time mapped to [0, 1], called as `field(t, x, context)`.
        path: How a pair is connected within its interval. A `BridgePath` has its sigma in mapped
            time, the same in all intervals: that of an interval is sigma sqrt(h).
        coupling: How two snapshots are paired. `PairedCoupling` keeps rows together, for
            trajectories of the same individuals.
        snapshots: Points at each time, `(n_k, *event)`; sizes may differ.
        times: Their times, rising, in any units.
        leave_out: Number of a snapshot, neither the first nor the last, that is not looked at.
        contexts: Conditions of each snapshot's points, `(n_k, *context)`; the field sees those of
            the targets, the coupling both.
        batch: Pairs in each interval.
        score: A score network for a `BridgePath`; its error is added, see `bridge_matching`.
        law: Law of the times within an interval.
        weight: A further factor `weight(t)`, in mapped time.
        dropout: Leaves out conditions.
        marginal: Average targets over the pairs of an interval, on an `AffinePath` with noise.
        generator: Source of points, pairs, times and noise.

    Returns:
        One loss for each pair, `(intervals * batch,)`.

    Raises:
        ShapeError: A snapshot is empty or of another event shape; numbers of snapshots, times and
            contexts differ.
        DomainError: Times do not rise; the snapshot left out has no neighbour on one side; a score
            without a bridge.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.matching import LinearPath, OTCoupling
        >>> days = [torch.randn(n, 2) + n for n in (30, 40, 50)]
        >>> args = MLPField(2), LinearPath(), OTCoupling(), days
        >>> snapshot_matching(*args, times=[0.0, 2.0, 3.0], leave_out=1, batch=16).shape
        torch.Size([16])
    """
    knots = _check(snapshots, times, leave_out, contexts)
    expect_positive("snapshot_matching", batch=batch)
    if score is not None and not isinstance(path, BridgePath):
        raise DomainError(
            f"snapshot_matching: a score needs a BridgePath, got {type(path).__name__}; leave the "
            "score out, or take a bridge"
        )
    parts, spreads = [], []
    for a, b in pairwise(k for k in range(len(knots)) if k != leave_out):
        start, h = knots[a], knots[b] - knots[a]
        i, j = _rows(snapshots[a], batch, generator), _rows(snapshots[b], batch, generator)
        if isinstance(coupling, PairedCoupling):
            j = _same_rows(i, a, b, snapshots)
        inner = path.over(h) if isinstance(path, BridgePath) else path
        asked = regression(
            inner,
            coupling,
            snapshots[b][j],
            x0=snapshots[a][i],
            context=None if contexts is None else contexts[b][j],
            source_context=None if contexts is None else contexts[a][i],
            times=law,
            weight=None if weight is None else _shifted(weight, start, h),
            dropout=dropout,
            marginal=marginal,
            generator=generator,
        )
        if isinstance(inner, BridgePath):
            spreads.append(inner.spread(asked.t))
        parts.append(asked._replace(t=start + h * asked.t, target=asked.target / h))
    asked = _joined(parts)
    loss = squared_error(field, asked)
    return loss if score is None else loss + bridge_error(score, asked, torch.cat(spreads))


def _check(
    snapshots: Sequence[Tensor],
    times: Sequence[float] | Tensor,
    leave_out: int | None,
    contexts: Sequence[Tensor] | None,
) -> list[float]:
    """Check what was handed in, and return the mapped times."""
    where, count = "snapshot_matching", len(snapshots)
    if len(times) != count or (contexts is not None and len(contexts) != count):
        others = f"{len(times)} times" + ("" if contexts is None else f", {len(contexts)} contexts")
        raise ShapeError(f"{where}: needs as many of each, got {count} snapshots, {others}")
    for k, points in enumerate(snapshots):
        expect_floating(where, points)
        if points.dim() < 1 or not len(points) or points.shape[1:] != snapshots[0].shape[1:]:
            raise ShapeError(
                f"{where}: every snapshot must hold points of event shape "
                f"{tuple(snapshots[0].shape[1:])}, got shape {tuple(points.shape)} for number {k}; "
                "drop empty ones together with their times"
            )
        if contexts is not None and contexts[k].shape[:1] != points.shape[:1]:
            raise ShapeError(
                f"{where}: contexts[{k}] must hold one condition for each of its {len(points)} "
                f"points, got shape {tuple(contexts[k].shape)}"
            )
    if leave_out is not None and not 0 < leave_out < count - 1:
        raise DomainError(
            f"{where}: leave_out must be the number of a snapshot between the first and the last "
            f"of {count}, got {leave_out}; nothing bridges an end"
        )
    return unit_times(times)


def _rows(points: Tensor, batch: int, generator: Generator | None) -> Tensor:
    """Draw rows, each at most once where there are enough."""
    n, device = len(points), points.device
    if n >= batch:
        return torch.randperm(n, device=device, generator=generator)[:batch]
    return torch.randint(n, (batch,), device=device, generator=generator)


def _same_rows(i: Tensor, a: int, b: int, snapshots: Sequence[Tensor]) -> Tensor:
    n, m = len(snapshots[a]), len(snapshots[b])
    if n != m:
        raise ShapeError(
            f"snapshot_matching: PairedCoupling keeps rows together, but snapshots {a} and {b} "
            f"hold {n} and {m} points"
        )
    return i


def _shifted(
    weight: Callable[[Tensor], Tensor], start: float, length: float
) -> Callable[[Tensor], Tensor]:
    return lambda r: weight(start + length * r)


def _joined(parts: Sequence[Regression]) -> Regression:
    """Put the questions of all intervals into one batch."""
    t, x, target, context, weight, noise = zip(*parts, strict=True)
    return Regression(
        torch.cat(t), torch.cat(x), torch.cat(target), *map(_cat, (context, weight, noise))
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
