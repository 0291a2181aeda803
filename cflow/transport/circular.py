"""Invertible maps of one angle: a turn, and a spline that closes on itself followed by a turn.

    y = s(x) + shift  mod P,    s(0) = 0, s(P) = P, s'(0) = s'(P)

Angles lie in [0, P). A spline alone keeps the seam where it is; the turn moves it. Densities are
continuous across the seam, since the slopes there agree.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import expect_positive
from cflow.transport.spline import RationalQuadraticMap
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["CircularShiftMap", "CircularSplineMap", "wrapped"]


def wrapped(x: Tensor, period: float) -> Tensor:
    """Return x in [0, period), as `Torus.projx` does.

    Example:
        >>> wrapped(torch.tensor([370.0, -10.0]), 360.0)
        tensor([ 10., 350.])
    """
    y = torch.remainder(x, period)
    return torch.where(y < period, y, 0.0)  # a tiny negative angle rounds to the period


@dataclass(frozen=True)
class CircularShiftMap(UnivariateMap):
    """Turn an angle, y = x + shift mod P; the parameter is the turn in radians.

    `Elementwise(CircularShiftMap(), (n,))` learns a turn of each angle, with a `conditioner` one
    for each context.

    Attributes:
        period: Length P of the way round.

    Example:
        >>> CircularShiftMap(360.0).push(torch.tensor([300.0]), torch.tensor([[torch.pi / 2]]))[0]
        tensor([30.])
    """

    period: float = 2 * math.pi

    def __post_init__(self) -> None:
        expect_positive("CircularShiftMap", period=self.period)

    @property
    def parameters(self) -> int:
        return 1

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.push(y, -theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        y = wrapped(x + self.period / (2 * math.pi) * theta[..., 0], self.period)
        return y, torch.zeros_like(y)


@dataclass(frozen=True)
class CircularSplineMap(UnivariateMap):
    """Bend a circle by a rational-quadratic spline of K bins, then turn it.

    There are 3 K parameters of the spline and the turn in radians; all at zero give the identity.
    Slopes are bounded as those of `RationalQuadraticMap`.

    Attributes:
        bins: Number K of bins, at least 2.
        period: Length P of the way round.
        min_bin: Smallest width and height of a bin, in units of an equal bin, in (0, 1).
        min_slope: Smallest slope of a knot, in units of its bins' mean slope, in (0, 1).
        max_slope: Largest slope of a knot, above 1.

    Raises:
        DomainError: An option lies outside its range.

    References:
        Rezende et al. (2020), arXiv 2002.02428; Durkan et al. (2019), arXiv 1906.04032.

    Example:
        >>> bend = CircularSplineMap(bins=4)
        >>> theta = torch.linspace(-1, 1, bend.parameters).expand(2, -1)
        >>> slopes = bend.push(torch.tensor([0.0, 2 * torch.pi - 1e-6]), theta)[1]
        >>> torch.allclose(slopes[0], slopes[1], atol=1e-4)
        True
    """

    bins: int = 8
    period: float = 2 * math.pi
    min_bin: float = 0.15
    min_slope: float = 0.1
    max_slope: float = 5.0

    def __post_init__(self) -> None:
        expect_positive("CircularSplineMap", period=self.period)
        self._spline()  # checks the other options

    @property
    def parameters(self) -> int:
        return 3 * self.bins + 1

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        u = wrapped(x, self.period) - self.period / 2
        v, slope = self._spline().push(u, theta[..., :-1])
        return wrapped(v + self.period / 2 + self._turn(theta), self.period), slope

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        v = wrapped(y - self._turn(theta), self.period) - self.period / 2
        u, slope = self._spline().pull(v, theta[..., :-1])
        return wrapped(u + self.period / 2, self.period), slope

    def _turn(self, theta: Tensor) -> Tensor:
        return self.period / (2 * math.pi) * theta[..., -1]

    def _spline(self) -> RationalQuadraticMap:
        return RationalQuadraticMap(
            bins=self.bins,
            bound=self.period / 2,
            tails="circular",
            min_bin=self.min_bin,
            min_slope=self.min_slope,
            max_slope=self.max_slope,
        )
