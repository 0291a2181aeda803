"""Splits of data that measure what they should: by rows, or by groups that belong together.

A random split of rows measures a density only where rows are independent draws. Measured data is
rarely so: values are rounded, rows repeat, and rows of one place or one molecule resemble each
other. Then a part of the test rows are copies of training rows, and a model that puts narrow spikes
on its training rows scores without any limit.

What is done about it, in this order:

1. `distinct` drops rows that repeat;
2. `jitter` spreads every value evenly over the interval that it was rounded to, whose width is the
   `resolution` of the data, so that the law has a density at all;
3. `grouped_split` keeps whole groups in one part.
"""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Generator, Tensor

from cflow.data.digits import Split
from cflow.errors import DomainError, ShapeError, expect_finite, expect_floating, expect_positive

__all__ = ["blocks", "distinct", "grouped_split", "jitter", "random_split", "resolution"]

FRACTIONS = (0.8, 0.1, 0.1)
DECIMALS = 9  # more than any of the files has


def random_split(x: Tensor, *, seed: int = 0) -> Split:
    """Split rows at random: a tenth validates, a tenth tests, each rounded down, the rest trains.

    The order is that of `torch.utils.data.random_split` with a generator of this seed: the protocol
    of the published figures on earth events and torsion angles.

    Args:
        x: Rows, `(rows, ...)`, 10 or more.
        seed: Decides the order of the rows.

    Raises:
        ShapeError: x has fewer than 10 rows.

    References:
        Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, appendix.

    Example:
        >>> [len(part) for part in random_split(torch.arange(827.0))]
        [663, 82, 82]
    """
    if not x.dim() or len(x) < 10:
        raise ShapeError(f"random_split: expected 10 rows or more, got shape {tuple(x.shape)}")
    held = len(x) // 10
    order = torch.randperm(len(x), generator=Generator().manual_seed(seed)).to(x.device)
    return Split(*x[order].split([len(x) - 2 * held, held, held]))


def grouped_split(
    x: Tensor,
    groups: Sequence[Hashable] | Tensor,
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> Split:
    """Split rows so that all rows of a group are in one part, near given fractions of the rows.

    Groups are dealt out from the largest to the smallest, equal ones in random order, each to a
    part drawn with probability proportional to the rows still wanting there, among the parts that
    have room for all of it; where none has, to the one with the most room. So a part misses its
    share by less than the smallest groups, as a rule, and a group larger than the validation and
    test parts always trains.

    Args:
        x: Rows, `(rows, ...)`.
        groups: The group of every row: names, or a tensor of integers `(rows,)`.
        fractions: Shares of the rows that train, validate and test; they sum to 1.
        seed: Decides which groups go where.

    Raises:
        ShapeError: There is not one group for every row.
        DomainError: The fractions are no shares, or the groups are too few or too large for them,
            so that a part stays empty.

    Example:
        >>> groups = torch.arange(1000) // 10
        >>> train, validation, test = grouped_split(torch.arange(1000), groups)
        >>> len(train), len(validation), len(test)
        (800, 100, 100)
        >>> bool(torch.isin(test // 10, train // 10).any())
        False
    """
    members = _members(x, groups)
    if not (all(0 < part < 1 for part in fractions) and math.isclose(sum(fractions), 1)):
        raise DomainError(
            f"grouped_split: fractions must be shares of training, validation and test rows above "
            f"0 that sum to 1, got {fractions}"
        )
    source = Generator().manual_seed(seed)
    ids, sizes = members.unique(return_counts=True)
    shuffle = torch.randperm(len(ids), generator=source)
    order = shuffle[sizes[shuffle].argsort(descending=True, stable=True)]
    room = torch.tensor(fractions, dtype=torch.float64) * len(x)
    part_of = torch.empty_like(ids)
    for k in order.tolist():
        fits = torch.where(room >= sizes[k], room, 0.0)
        part = torch.multinomial(fits, 1, generator=source) if fits.any() else room.argmax()
        part_of[k] = part
        room[part] -= sizes[k]
    part_of = part_of[members].to(x.device)
    parts = [x[part_of == part] for part in range(3)]
    if not all(map(len, parts)):
        raise DomainError(
            f"grouped_split: {len(ids)} groups, the largest of {int(sizes.max())} rows, cannot "
            f"fill parts of {fractions} of {len(x)} rows: one stays empty; take smaller groups or "
            "other fractions"
        )
    return Split(*parts)


def distinct(x: Tensor) -> Tensor:
    """Return the positions of the first of all equal rows, in rising order.

    Args:
        x: Rows, `(rows, ...)`. They are compared exactly.

    Returns:
        Positions, int64, so that what belongs to the rows can be thinned with them.

    Raises:
        ShapeError: x has no rows.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
        >>> x[distinct(x)].tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    if not x.dim() or not len(x):
        raise ShapeError(f"distinct: expected rows, got shape {tuple(x.shape)}")
    found, number = x.unique(dim=0, return_inverse=True)
    first = torch.full((len(found),), len(x), dtype=torch.int64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    return first.scatter_reduce(0, number, rows, "amin").sort().values


def resolution(x: Tensor) -> float:
    """Find the step that values were rounded to: the largest power of ten that divides them all.

    That is the place of the last decimal that any value has, one at most; 1e-9 is the finest step
    looked for. Values that were measured more coarsely than the rest are not told apart.

    Args:
        x: Values of any shape, in the unit in which they were written down; float64, as float32
            does not hold decimals well enough.

    Raises:
        DomainError: x is not float64, holds no value, or one that is NaN or infinite.

    Example:
        >>> resolution(torch.tensor([12.5, -3.25, 7.0], dtype=torch.float64))
        0.01
    """
    if x.dtype != torch.float64 or not x.numel():
        raise DomainError(
            f"resolution: expected values in float64, got {x.dtype} of shape {tuple(x.shape)}"
        )
    expect_finite("resolution", "x", x)
    for places in range(DECIMALS):
        scaled = x * 10**places
        # A decimal is stored to half a unit in the last place, and the product is rounded again.
        error = 2 * torch.finfo(x.dtype).eps * scaled.abs()
        if bool(((scaled - scaled.round()).abs() <= error).all()):
            return float(f"1e-{places}")
    return float(f"1e-{DECIMALS}")


def jitter(x: Tensor, step: float | Tensor, *, generator: Generator | None = None) -> Tensor:
    """Spread values evenly over the interval that they were rounded to.

        x + step * u,    u uniform on [-1/2, 1/2)

    Args:
        x: Values of any shape, floating.
        step: Width of the interval in the unit of x, such as `resolution(x)`; a tensor that
            broadcasts against x gives every value its own.
        generator: Source of the randomness.

    Raises:
        DomainError: x is not floating, or a step is not positive.

    Example:
        >>> x = torch.tensor([0.1, 0.2], dtype=torch.float64)
        >>> moved = jitter(x, 0.1, generator=torch.Generator().manual_seed(0))
        >>> bool(((moved - x).abs() <= 0.05).all())
        True
    """
    expect_floating("jitter", x)
    narrowest = float(step.min()) if isinstance(step, Tensor) else step
    expect_positive("jitter", step=narrowest)
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x + step * (noise - 0.5)


def blocks(degrees: Tensor, *, size: float = 10.0) -> Tensor:
    """Number the block of latitudes and longitudes that a location lies in.

    Blocks are half-open; the first begins at the south pole and longitude -180. The pole at
    latitude 90 belongs to the last row.

    Args:
        degrees: Latitude and longitude in degrees, `(*batch, 2)`; longitudes are taken modulo 360.
        size: Width of a block in degrees in both directions; it must divide 180.

    Returns:
        Numbers, int64, `(*batch,)`: one for each block, rising with latitude, then longitude.

    Raises:
        ShapeError: degrees does not end in two.
        DomainError: The size does not divide 180.

    Example:
        >>> blocks(torch.tensor([[-90.0, -180.0], [-90.0, 180.0], [90.0, 179.0]])).tolist()
        [0, 0, 647]
    """
    if not degrees.dim() or degrees.shape[-1] != 2:
        raise ShapeError(
            f"blocks: expected latitude and longitude `(*batch, 2)`, got {tuple(degrees.shape)}"
        )
    expect_positive("blocks", size=size)
    across = round(360 / size)
    if not math.isclose(across * size, 360) or across % 2:
        raise DomainError(f"blocks: size must divide 180 degrees, got {size}")
    latitude, longitude = degrees.unbind(-1)
    row = ((latitude + 90) / size).floor().clamp(0, across // 2 - 1)
    column = (torch.remainder(longitude + 180, 360) / size).floor().clamp(0, across - 1)
    return (row * across + column).long()


def _members(x: Tensor, groups: Sequence[Hashable] | Tensor) -> Tensor:
    """Number the groups from 0 and return that of every row."""
    sized = groups.dim() == 1 if isinstance(groups, Tensor) else True
    if not x.dim() or not sized or len(groups) != len(x) or not len(x):
        got = tuple(groups.shape) if isinstance(groups, Tensor) else len(groups)
        raise ShapeError(
            f"grouped_split: expected one group for every row, got groups {got} for rows of shape "
            f"{tuple(x.shape)}"
        )
    if isinstance(groups, Tensor):
        return groups.cpu().unique(return_inverse=True)[1]
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups])
