"""Rational-quadratic splines, monotone, bounded in slope, that leave everything outside alone.

On a bin of width w and height h, with xi in [0, 1] across it, s = h / w, and slopes at its ends
r_0 s and r_1 s,

    y = y_k + h (xi^2 + r_0 xi (1 - xi)) / q,    q = 1 + (r_0 + r_1 - 2) xi (1 - xi),
    dy/dx = s (r_1 xi^2 + 2 xi (1 - xi) + r_0 (1 - xi)^2) / q^2.

Source: Durkan, Bekasov, Murray and Papamakarios (2019), Neural spline flows, arXiv 1906.04032,
equations 4 and 5 (there delta_k = r_0 s, s_k = s); circular ones: Rezende et al. (2020),
Normalizing flows on tori and spheres, arXiv 2002.02428.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.transport.spline_bins import Bin, Ends, gathered, unrolled
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["Bound", "RationalQuadraticMap"]

Bound: TypeAlias = float | tuple[float, ...] | tuple[tuple[float, float], ...]

_LONGEST = 32  # bins up to which a compiler gets the spline term by term


@dataclass(frozen=True)
class RationalQuadraticMap(UnivariateMap):
    """Bend a box with a spline of K bins; outside of it y = x and the log-slope is zero, exactly.

    Slopes cannot run away, whatever the parameters: a bin is never smaller than `min_bin` times an
    equal one, and the slope at a knot is g times the harmonic mean of the slopes h / w of the two
    bins that meet there, with g between `min_slope` and `max_slope`. (Durkan et al. let the slope
    at a knot be any positive number; then one float32 step of y can span half the box of x.) With 8
    bins and the other defaults dy/dx lies between 6.8e-4 and 240 (linear tails; 2e-3 without, and
    circular), so that in a box of half side 5 float32 comes back within 1e-3 from any parameters.
    All parameters at zero give the identity.

    Parameters stand in the order widths, heights, slopes. Precision is float32 at least.

    Attributes:
        bins: Number K of bins, at least 2.
        bound: Half the side of the box around zero, one for all or one for each feature, or a pair
            (low, high) for each feature; features are the last axis of the points.
        tails: "linear": the slope is 1 at both ends (3 K - 1 parameters), so the map is smooth on
            the whole line. "none": the ends are free (3 K + 1), for points in the box. "circular":
            the slopes at both ends agree (3 K), for angles in the box, which the caller wraps. A
            tuple gives each feature "linear" or "circular" (3 K).
        min_bin: Smallest width and height of a bin, in units of an equal bin, in (0, 1).
        min_slope: Smallest g, in (0, 1).
        max_slope: Largest g, above 1.

    Raises:
        DomainError: An option lies outside its range.
        ShapeError: The last axis of the points does not agree with the bounds or tails.

    Example:
        >>> spline = RationalQuadraticMap(bins=4, bound=2.0)
        >>> y, slope = spline.push(torch.tensor([0.5, 3.0]), torch.randn(2, spline.parameters))
        >>> y[1] == 3, slope[1] == 0
        (tensor(True), tensor(True))
    """

    bins: int = 8
    bound: Bound = 5.0
    tails: Ends | tuple[Ends, ...] = "linear"
    min_bin: float = 0.15
    min_slope: float = 0.1
    max_slope: float = 5.0

    def __post_init__(self) -> None:
        where = "RationalQuadraticMap"
        if self.bins < 2:
            raise DomainError(f"{where}: bins must be 2 or more, got {self.bins}")
        kinds = self.tails if isinstance(self.tails, tuple) else (self.tails,)
        wanted = ("linear", "circular") if isinstance(self.tails, tuple) else Ends.__args__
        if not kinds or any(kind not in wanted for kind in kinds):
            raise DomainError(f"{where}: tails must be among {wanted}, got {self.tails!r}")
        for low, high in _pairs(self.bound):
            if not -math.inf < low < high < math.inf:
                raise DomainError(
                    f"{where}: each bound must be positive or a pair low < high, got {self.bound!r}"
                )
        expect_positive(where, min_bin=self.min_bin, min_slope=self.min_slope)
        expect_positive(where, max_slope=self.max_slope)
        if not max(self.min_bin, self.min_slope) < 1 < self.max_slope:
            raise DomainError(
                f"{where}: min_bin and min_slope must lie below 1 and max_slope above, got "
                f"{self.min_bin}, {self.min_slope}, {self.max_slope}"
            )

    @property
    def parameters(self) -> int:
        return 3 * self.bins + {"linear": -1, "circular": 0, "none": 1}[self._ends]

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        middle, half = self._box(x)
        u, inside = _enter(x, middle, half)
        bin = self._find(u, theta, axis=0)
        slope, r0, r1 = self._slopes(bin)
        xi = (u - bin.x) / bin.width
        both, q, log_slope = _bend(slope, r0, r1, xi)
        v = bin.y + bin.height * (xi * xi + r0 * both) / q
        return _leave(v, middle, half, inside, x), log_slope * inside

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        middle, half = self._box(y)
        v, inside = _enter(y, middle, half)
        bin = self._find(v, theta, axis=1)
        slope, r0, r1 = self._slopes(bin)
        eta = (v - bin.y) / bin.height
        # (1 - b) xi^2 + b xi - eta = 0 in units of the bin; this form of the root never cancels.
        b = r0 - (r0 + r1 - 2) * eta
        root = torch.addcmul(b * b, 1 - b, eta, value=4).clamp_min(1e-12).sqrt()
        xi = 2 * eta / (b + root)
        u = bin.x + bin.width * xi
        return _leave(u, middle, half, inside, y), -_bend(slope, r0, r1, xi)[2] * inside

    def _find(self, u: Tensor, theta: Tensor, *, axis: int) -> Bin:
        theta = theta[(None,) * (u.dim() + 1 - theta.dim())]
        compiling = torch.compiler.is_compiling() and self.bins <= _LONGEST
        find = unrolled if compiling else gathered
        return find(u, theta, bins=self.bins, floor=self.min_bin, ends=self._ends, axis=axis)

    def _slopes(self, bin: Bin) -> tuple[Tensor, Tensor, Tensor]:
        """Return a bin's own slope, h / w, and those at its two ends in units of it."""
        slope = bin.height / bin.width
        low, range_ = 2 * self.min_slope, 2 * (self.max_slope - self.min_slope)
        share = (2 - low) / range_  # a raw slope of zero gives g = 1
        start = math.log(share / (1 - share))
        ratios = [
            (range_ * torch.sigmoid(raw + start) + low) / (1 + slope * width / height)
            for width, height, raw in bin.ends
        ]
        r0, r1 = ratios if len(ratios) == 2 else ratios[0].unbind(0)
        if self.tails == "linear" or isinstance(self.tails, tuple):
            first, last, one = bin.first, bin.last, bin.width / bin.height
            if isinstance(self.tails, tuple):
                straight = self._straight(slope)
                first, last = first & straight, last & straight
            r0, r1 = torch.where(first, one, r0), torch.where(last, one, r1)
        return slope, r0, r1

    @property
    def _ends(self) -> Ends:
        if isinstance(self.tails, tuple):
            return "circular"
        return self.tails

    def _straight(self, like: Tensor) -> Tensor:
        """Return which features have a slope of 1 at the ends of the box."""
        flags = [kind == "linear" for kind in self.tails]
        _expect_features("tails", len(flags), like)
        return torch.tensor(flags, device=like.device)

    def _box(self, x: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Return the middle of the box, None for zero, and half its side; for each feature."""
        if not isinstance(self.bound, tuple):
            return None, self.bound
        pairs = _pairs(self.bound)
        _expect_features("bound", len(pairs), x)
        low, high = torch.tensor(pairs, dtype=x.dtype, device=x.device).unbind(-1)
        return (high + low) / 2, (high - low) / 2


def _enter(x: Tensor, middle: Tensor | None, half: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the box as [-1, 1], with what is outside at its ends, and what is inside."""
    centred = x if middle is None else x - middle
    return (centred / half).clamp(-1, 1), centred.abs() <= half


def _leave(
    u: Tensor, middle: Tensor | None, half: Tensor | float, inside: Tensor, x: Tensor
) -> Tensor:
    """Return to the box, with what came from outside as it was."""
    wide = u.clamp(-1, 1) * half
    return torch.where(inside, wide if middle is None else wide + middle, x)


def _bend(slope: Tensor, r0: Tensor, r1: Tensor, xi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return xi (1 - xi), the denominator q, and the log-slope."""
    rest = 1 - xi
    both = xi * rest
    q = 1 + (r0 + r1 - 2) * both
    top = torch.add(r1 * xi * xi + r0 * rest * rest, both, alpha=2)
    return both, q, torch.log(slope * top / (q * q))


def _pairs(bound: Bound) -> list[tuple[float, float]]:
    sides = bound if isinstance(bound, tuple) else (bound,)
    return [side if isinstance(side, tuple) else (-side, side) for side in sides]


def _expect_features(name: str, count: int, x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] != count:
        raise ShapeError(
            f"RationalQuadraticMap: {name} speaks of {count} features, the last axis of the points "
            f"must hold as many, got {tuple(x.shape)}"
        )
