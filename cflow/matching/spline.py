"""Spline paths: smooth curves through one point of each of several snapshots.

    x(t) = a y_k + b y_{k+1} + h^2/6 ((a^3 - a) M_k + (b^3 - b) M_{k+1}),    t_k <= t <= t_{k+1}
    a = (t_{k+1} - t) / h,   b = (t - t_k) / h,   h = t_{k+1} - t_k

The second derivatives M solve, for continuous velocities,

    h_{k-1}/6 M_{k-1} + (h_{k-1} + h_k)/3 M_k + h_k/6 M_{k+1} = (y_{k+1} - y_k)/h_k - (y_k -
    y_{k-1})/h_{k-1},   M = 0 at both ends                                          (natural spline)

so x is linear in the points: a matrix of the knots alone, computed once, gives M. Of all curves
through the points the natural spline has the least mean squared acceleration.
Source: Rohbeck et al. (2025), Modeling complex system dynamics with flow matching across time and
conditions, ICLR; de Boor (1978), A practical guide to splines, chapter IV.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError, expect_floating, expect_unit_times
from cflow.matching.coupling import PairedCoupling
from cflow.matching.dropout import ContextDropout
from cflow.matching.loss import UNIFORM, matching
from cflow.matching.path import Path, PathPoint
from cflow.matching.snapshots import unit_times
from cflow.matching.times import TimeLaw
from cflow.typing import Batch, Points, Times

__all__ = ["SplinePath", "spline_matching"]


class SplinePath:
    """The natural cubic spline through the points of a chain, position and velocity.

    Args:
        times: Times of the points, rising, in any units; they are mapped to [0, 1].

    Raises:
        DomainError: Times are fewer than two, not finite, or do not rise.

    Example:
        >>> path = SplinePath([0.0, 1.0, 2.0])
        >>> path.sample(torch.tensor([[[0.0], [1.0], [0.0]]]), torch.tensor([0.5])).x
        tensor([[1.]])
    """

    def __init__(self, times: Sequence[float] | Tensor) -> None:
        self.knots = torch.tensor(unit_times(times), dtype=torch.float64)
        self.bends = _bends(self.knots)

    def sample(self, points: Points, t: Times) -> PathPoint:
        """Return times, positions and velocities.

        Args:
            points: Chains `(n, times, *event)`, as `along(snapshots, chain(...))` gives them.
            t: Mapped times in [0, 1], `(n,)`.

        Returns:
            Times `(n,)`, positions and velocities `(n, *event)`.

        Raises:
            ShapeError: There is not one point for each knot, or one time for each chain.
            DomainError: A time lies outside [0, 1].
        """
        if points.dim() < 2 or points.shape[1] != len(self.knots) or t.shape != points.shape[:1]:
            raise ShapeError(
                f"SplinePath.sample: points must be (n, {len(self.knots)}, *event) and t (n,), got "
                f"{tuple(points.shape)} and {tuple(t.shape)}"
            )
        expect_unit_times("SplinePath.sample", t)
        knots, bends = (c.to(points) for c in (self.knots, self.bends))
        k = (torch.searchsorted(knots, t.detach(), right=True) - 1).clamp(0, len(knots) - 2)
        h = knots[k + 1] - knots[k]
        a, b = ((knots[k + 1] - t) / h)[:, None], ((t - knots[k]) / h)[:, None]
        unit, h = torch.eye(len(knots), dtype=points.dtype, device=points.device), h[:, None]
        bend_a, bend_b = bends[k] * h / 6, bends[k + 1] * h / 6
        place = a * unit[k] + b * unit[k + 1]
        place = place + h * ((a**3 - a) * bend_a + (b**3 - b) * bend_b)
        slope = (unit[k + 1] - unit[k]) / h + (1 - 3 * a**2) * bend_a + (3 * b**2 - 1) * bend_b
        x, v = (torch.einsum("nk,nk...->n...", w, points) for w in (place, slope))
        return PathPoint(t, x, v)


def spline_matching(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    path: SplinePath,
    points: Points,
    *,
    context: Tensor | None = None,
    t: Times | None = None,
    times: TimeLaw = UNIFORM,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the squared velocity error along the spline of each chain, averaged over the event.

    A step on snapshots, of which one was left out together with its time:

        points = along(snapshots, chain(OTCoupling(), snapshots, n=256, generator=generator))
        loss = spline_matching(field, SplinePath(times), points, generator=generator)

    Args:
        field: The velocity in mapped time, called as `field(t, x, context)`.
        path: The spline.
        points: Chains `(n, times, *event)`.
        context: One condition for each chain, `(n, *context)`.
        t: Mapped times `(n,)`; by default they are drawn from `times`.
        times: The law of the times.
        weight: A further factor `weight(t)`.
        dropout: Leaves out conditions.
        generator: Source of the times and dropout.

    Returns:
        One loss for each chain, `(n,)`.

    Raises:
        ShapeError: Chains, times and conditions disagree, or the field returns another shape.
        DomainError: A time lies outside [0, 1].

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.matching import OTCoupling, along, chain
        >>> days = [torch.randn(20, 2) + k for k in range(3)]
        >>> points = along(days, chain(OTCoupling(), days))
        >>> spline_matching(MLPField(2), SplinePath([0.0, 1.0, 3.0]), points).shape
        torch.Size([20])
    """
    expect_floating("spline_matching", points)
    if points.dim() < 2 or points.shape[1] != len(path.knots):
        raise ShapeError(
            f"spline_matching: points must be (n, {len(path.knots)}, *event), one for each time, "
            f"got {tuple(points.shape)}"
        )
    return matching(
        field,
        _Chained(path, points),
        PairedCoupling(),
        points[:, -1],
        x0=points[:, 0],
        context=context,
        t=t,
        times=times,
        weight=weight,
        dropout=dropout,
        generator=generator,
    )


class _Chained(Path):
    """Let the chains between the ends be the path: ends come in the chains' own order."""

    def __init__(self, path: SplinePath, points: Tensor) -> None:
        self.path = path
        self.points = points

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        return self.path.sample(self.points, t)

    @property
    def random(self) -> bool:
        return False


def _bends(knots: Tensor) -> Tensor:
    """Return the matrix from points to second derivatives, `(times, times)`."""
    h, n = knots.diff(), len(knots)
    bends = knots.new_zeros(n, n)
    if n > 2:
        left, right = h[:-1], h[1:]
        system = torch.diag((left + right) / 3)
        system += torch.diag(h[1:-1] / 6, 1) + torch.diag(h[1:-1] / 6, -1)
        rise = knots.new_zeros(n - 2, n)
        row = torch.arange(n - 2)
        rise[row, row], rise[row, row + 2] = 1 / left, 1 / right
        rise[row, row + 1] = -1 / left - 1 / right
        bends[1:-1] = torch.linalg.solve(system, rise)
    return bends
