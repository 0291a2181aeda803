"""The bin of a monotone spline that a number falls into, found without a branch on data.

Widths and heights of the K bins of a spline on [-1, 1] come from raw parameters,

    size_k = (2 / K) (m + (1 - m) K softmax(raw)_k),

so no bin is smaller than m times an equal one. The sizes of the bin that holds a number, of its two
neighbours, and the raw slopes at its two ends are all that its map needs.

Two ways give the same numbers. `gathered` takes them by index, in few passes over the parameters,
which is what eager mode wants. `unrolled` walks along the knots with `torch.where`, so that every
operation has the shape of the points and a compiler makes one loop of them all.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Bin", "End", "Ends", "gathered", "unrolled"]

Ends: TypeAlias = Literal["linear", "circular", "none"]


class End(NamedTuple):
    """What meets at an end of a bin: the neighbour's sizes, and the raw slope of the knot."""

    width: Tensor
    height: Tensor
    slope: Tensor


class Bin(NamedTuple):
    """Where a number lies in a spline on [-1, 1]; every entry has the shape of the points.

    `ends` holds the left end and the right one, or one `End` with both stacked along a new first
    axis. A spline that closes on itself has neighbours at its ends as well, elsewhere the end bins
    are their own; the raw slopes of a spline with linear tails mean nothing at its ends, where
    `first` and `last` are true.
    """

    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor
    ends: tuple[End, ...]
    first: Tensor
    last: Tensor


def gathered(u: Tensor, theta: Tensor, *, bins: int, floor: float, ends: Ends, axis: int) -> Bin:
    """Look up the bin of u by index.

    Args:
        u: Points in [-1, 1], on the side of the widths (axis 0) or of the heights (axis 1).
        theta: Raw widths, heights and slopes, `(..., parameters)`, as many axes as u and one more.
        bins: Number K of bins, at least 2.
        floor: Smallest size m, in units of an equal bin.
        ends: Which knots have a slope: "linear" the K - 1 inner ones, "circular" all K, "none" all
            K + 1 of an interval.
        axis: Which side u lies on.
    """
    shape = torch.broadcast_shapes(u.shape, theta.shape[:-1])
    raw = theta.movedim(-1, 0)
    sizes, slopes = raw.split([2 * bins, len(raw) - 2 * bins])
    shares = sizes.unflatten(0, (2, bins)).softmax(1)
    sizes = torch.add(shares.new_full((), 2 * floor / bins), shares, alpha=2 - 2 * floor)
    knots = sizes[axis, :-1].detach().cumsum(0) - 1
    passed = u >= knots
    place = passed.sum(0, keepdim=True).expand(1, *shape)
    three = torch.cat([place, *_neighbours(place, bins, ends)])
    near = sizes.expand(2, bins, *shape).gather(1, three.expand(2, 3, *shape))
    width, height = near[:, 0].unbind(0)
    x, y = ((sizes[:, :-1] * passed).sum(1).expand(2, *shape) - 1).unbind(0)
    which = torch.cat(_slopes(place, bins, ends))
    beside = near[:, 1:]
    both = End(beside[0], beside[1], slopes.expand(-1, *shape).gather(0, which))
    return Bin(width, height, x, y, (both,), place[0] == 0, place[0] == bins - 1)


def _neighbours(place: Tensor, bins: int, ends: Ends) -> tuple[Tensor, Tensor]:
    if ends == "circular":
        return (place - 1) % bins, (place + 1) % bins
    return (place - 1).clamp_min(0), (place + 1).clamp_max(bins - 1)


def _slopes(place: Tensor, bins: int, ends: Ends) -> tuple[Tensor, Tensor]:
    """Return where the slopes of both ends of a bin stand among the raw ones."""
    if ends == "circular":
        return place, (place + 1) % bins
    if ends == "none":
        return place, place + 1
    return (place - 1).clamp_min(0), place.clamp_max(bins - 2)


def unrolled(u: Tensor, theta: Tensor, *, bins: int, floor: float, ends: Ends, axis: int) -> Bin:
    """Walk along the knots; arguments and result as for `gathered`."""
    raw = theta.unbind(-1)
    slopes = raw[2 * bins :]
    widths, heights = (_sizes(raw[k * bins : (k + 1) * bins], floor) for k in range(2))

    def around(k: int) -> list[Tensor]:
        before, after = (k - 1, k + 1)
        if ends == "circular":
            before, after = before % bins, after % bins
            ends_of = slopes[k], slopes[after]
        elif ends == "none":
            before, after = max(before, 0), min(after, bins - 1)
            ends_of = slopes[k], slopes[k + 1]
        else:
            before, after = max(before, 0), min(after, bins - 1)
            ends_of = slopes[max(k - 1, 0)], slopes[min(k, bins - 2)]
        near = (widths[k], heights[k], widths[before], heights[before])
        return [*near, widths[after], heights[after], *ends_of]

    knot = [torch.full_like(widths[0], -1.0)] * 2
    found = [*knot, *around(0)]
    first = last = torch.ones_like(u, dtype=torch.bool)
    for k in range(1, bins):
        knot = [knot[0] + widths[k - 1], knot[1] + heights[k - 1]]
        last = u >= knot[axis]
        first = ~last if k == 1 else first
        pairs = zip([*knot, *around(k)], found, strict=True)
        found = [torch.where(last, new, old) for new, old in pairs]
    x, y, width, height, w0, h0, w1, h1, s0, s1 = found
    return Bin(width, height, x, y, (End(w0, h0, s0), End(w1, h1, s1)), first, last)


def _sizes(raw: tuple[Tensor, ...], floor: float) -> list[Tensor]:
    """Return the sizes of the bins: a softmax, term by term, with its floor."""
    largest = raw[0].detach()
    for value in raw[1:]:
        largest = torch.maximum(largest, value.detach())
    powers = [(value - largest).exp() for value in raw]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    share = (2 - 2 * floor) / total
    return [power * share + 2 * floor / len(raw) for power in powers]
