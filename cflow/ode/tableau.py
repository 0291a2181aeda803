"""Explicit Runge-Kutta methods as data: Butcher tableaus.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),    y_next = y + h sum_i b_i k_i

The error estimate of an embedded pair is h sum_i (b_i - bhat_i) k_i; between the ends of a step
y(t + s h) = y + h sum_i b_i(s) k_i with polynomials b_i.
Source: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, II.1, II.5
and II.6; Tsitouras (2011), Runge-Kutta pairs of order 5(4) satisfying only the first column
simplifying assumption; Bogacki and Shampine (1989), A 3(2) pair of Runge-Kutta formulas.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "BOGACKI_SHAMPINE",
    "DOPRI5",
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "TSIT5",
    "Tableau",
    "Terms",
]

Terms: TypeAlias = tuple[tuple[int, float], ...]
"""A weighted sum of slopes: the number and the weight of each that counts."""


@dataclass(frozen=True)
class Tableau:
    """Hold one explicit method.

    Attributes:
        order: Order of the solution that is carried on.
        a: Lower triangle, one row for each stage after the first.
        b: Weights of the solution.
        c: Nodes of the stages after the first.
        error: Weights b - bhat of the error estimate, or None without an embedded method.
        dense: Coefficients of b_i(s) = sum_d dense[i][d-1] s^d, or None where the cubic through
            both ends and their slopes is as good.
        stages: Evaluations of a step that starts from nothing.
        sums: The rows of `a`, zeros left out.
        result: The weights `b`, zeros left out.
        estimate: The weights of the error estimate, zeros left out.
        fsal: Whether the last stage is the first of the next step (first same as last).

    Example:
        >>> RK4.stages, DOPRI5.fsal
        (4, True)
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None

    # What steps read, worked out once; a property that caches holds a lock, which no graph takes.
    stages: int = field(init=False, repr=False, compare=False)
    sums: tuple[Terms, ...] = field(init=False, repr=False, compare=False)
    result: Terms = field(init=False, repr=False, compare=False)
    estimate: Terms = field(init=False, repr=False, compare=False)
    fsal: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keep = functools.partial(object.__setattr__, self)
        keep("stages", len(self.b))
        keep("sums", tuple(terms(row) for row in self.a))
        keep("result", terms(self.b))
        keep("estimate", terms(self.error or ()))
        last = bool(self.a) and self.b[-1] == 0.0
        keep("fsal", last and self.a[-1] == self.b[:-1])


def terms(weights: Sequence[float]) -> Terms:
    """Leave out zeros."""
    return tuple((k, w) for k, w in enumerate(weights) if w != 0.0)


EULER = Tableau(order=1, a=(), b=(1.0,), c=())

MIDPOINT = Tableau(order=2, a=((0.5,),), b=(0.0, 1.0), c=(0.5,))

HEUN = Tableau(order=2, a=((1.0,),), b=(0.5, 0.5), c=(1.0,))

RK4 = Tableau(
    order=4,
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.5, 0.5, 1.0),
)


def _quartic(factor: float, u: float, v: float) -> tuple[float, ...]:
    """Return the coefficients of factor (s - u) (s - v) s^2."""
    return (0.0, factor * u * v, -factor * (u + v), factor)


def _dopri5_dense(b: Sequence[float], extra: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return b_i(s) of the quartic of Hairer et al., II.6: Hermite's cubic plus one free term.

    With d = y_next - y: y(s) = y + s (d + (1-s) ((h k_1 - d) + s ((2 d - h k_1 - h k_7)
    + (1-s) h sum_i extra_i k_i))).
    """
    rows = []
    last = len(b) - 1
    for i, (weight, free) in enumerate(zip(b, extra, strict=True)):
        first, end = float(i == 0), float(i == last)
        slope, bend = first - weight, 2 * weight - first - end
        rows.append(
            (weight + slope, -slope + bend + free, -bend - 2 * free, free),
        )
    return tuple(rows)


# Dormand and Prince (1980); Hairer et al. (1993), table II.5.2.
_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
DOPRI5 = Tableau(
    order=5,
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=_DOPRI5_B,
    c=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
    dense=_dopri5_dense(
        _DOPRI5_B,
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
)

# Tsitouras (2011), table 1 and the interpolant of section 4, in its published decimals.
_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
TSIT5 = Tableau(
    order=5,
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_B,
    ),
    b=(*_TSIT5_B, 0.0),
    c=(0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.13169999999999998, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        _quartic(-16.548102889244902, 1.217129272955332, 0.616204060378000),
        _quartic(47.37952196281928, 1.203071208372362, 0.658047292653547),
        _quartic(-34.87065786149661, 1.2, 2 / 3),
        _quartic(2.5, 1.0, 0.6),
    ),
)

BOGACKI_SHAMPINE = Tableau(
    order=3,
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(1 / 2, 3 / 4, 1.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
