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
        >>> y[1], slope[1]
        (tensor(3.), tensor(0.))
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
        u = ((x - middle) / half).clamp(-1, 1)
        bin = self._find(u, theta, axis=0)
        r0, r1 = self._ratios(bin)
        xi = (u - bin.x) / bin.width
        q = 1 + (r0 + r1 - 2) * xi * (1 - xi)
        v = (bin.y + bin.height * xi * (xi + r0 * (1 - xi)) / q).clamp(-1, 1)
        inside = (x - middle).abs() <= half
        slope = torch.where(inside, _log_slope(bin, xi, r0, r1, q), 0.0)
        return torch.where(inside, v * half + middle, x), slope

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        middle, half = self._box(y)
        v = ((y - middle) / half).clamp(-1, 1)
        bin = self._find(v, theta, axis=1)
        r0, r1 = self._ratios(bin)
        eta = (v - bin.y) / bin.height
        # a xi^2 + b xi - eta = 0 in units of the bin; this form of the root never cancels.
        bend = (r0 + r1 - 2) * eta
        a, b = 1 - r0 + bend, r0 - bend
        root = (b * b + 4 * a * eta).clamp_min(1e-12).sqrt()
        xi = 2 * eta / (b + root)
        q = 1 + (r0 + r1 - 2) * xi * (1 - xi)
        inside = (y - middle).abs() <= half
        slope = torch.where(inside, -_log_slope(bin, xi, r0, r1, q), 0.0)
        u = (bin.x + bin.width * xi).clamp(-1, 1)
        return torch.where(inside, u * half + middle, y), slope

    def _find(self, u: Tensor, theta: Tensor, *, axis: int) -> Bin:
        theta = theta[(None,) * (u.dim() + 1 - theta.dim())]
        compiling = torch.compiler.is_compiling() and self.bins <= _LONGEST
        find = unrolled if compiling else gathered
        return find(u, theta, bins=self.bins, floor=self.min_bin, ends=self._ends, axis=axis)

    def _ratios(self, bin: Bin) -> tuple[Tensor, Tensor]:
        """Return the slopes at both ends of a bin in units of its own, h / w."""
        slope = bin.height / bin.width
        low, range_ = self.min_slope, self.max_slope - self.min_slope
        share = (1 - low) / range_  # a raw slope of zero gives g = 1
        start = math.log(share / (1 - share))
        r0, r1 = (
            2 * (range_ * torch.sigmoid(raw + start) + low) / (1 + slope * width / height)
            for raw, (width, height) in zip(bin.slopes, (bin.left, bin.right), strict=True)
        )
        straight = self._straight(slope)
        if straight is None:
            return r0, r1
        one = 1 / slope
        r0 = torch.where(bin.first & straight, one, r0)
        return r0, torch.where(bin.last & straight, one, r1)

    @property
    def _ends(self) -> Ends:
        if isinstance(self.tails, tuple):
            return "circular"
        return self.tails

    def _straight(self, like: Tensor) -> Tensor | None:
        """Return where the slope is 1 at the ends of the box, or None if nowhere."""
        if isinstance(self.tails, tuple):
            flags = [kind == "linear" for kind in self.tails]
            _expect_features("tails", len(flags), like)
            return torch.tensor(flags, device=like.device)
        return (
            torch.ones((), dtype=torch.bool, device=like.device) if self.tails == "linear" else None
        )

    def _box(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the middle and half the side of the box, numbers or one entry per feature."""
        pairs = _pairs(self.bound)
        if not isinstance(self.bound, tuple):
            return 0.0, self.bound
        _expect_features("bound", len(pairs), x)
        low, high = torch.tensor(pairs, dtype=x.dtype, device=x.device).unbind(-1)
        return (high + low) / 2, (high - low) / 2


def _log_slope(bin: Bin, xi: Tensor, r0: Tensor, r1: Tensor, q: Tensor) -> Tensor:
    eta = 1 - xi
    rise = r1 * xi * xi + 2 * xi * eta + r0 * eta * eta
    return torch.log(bin.height / bin.width * rise / (q * q))


def _pairs(bound: Bound) -> list[tuple[float, float]]:
    sides = bound if isinstance(bound, tuple) else (bound,)
    return [side if isinstance(side, tuple) else (-side, side) for side in sides]


def _expect_features(name: str, count: int, x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] != count:
        raise ShapeError(
            f"RationalQuadraticMap: {name} speaks of {count} features, the last axis of the points "
            f"must hold as many, got {tuple(x.shape)}"
        )
