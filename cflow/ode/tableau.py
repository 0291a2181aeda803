"""Explicit Runge-Kutta methods as data: Butcher tableaus.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),    y_next = y + h sum_i b_i k_i

The error estimate of an embedded pair is h sum_i (b_i - bhat_i) k_i.
Source: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, II.1 and II.5.
"""

from dataclasses import dataclass

__all__ = ["DOPRI5", "EULER", "HEUN", "MIDPOINT", "RK4", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """Hold one explicit method.

    Attributes:
        order: Order of the solution that is carried on.
        a: Lower triangle, one row for each stage after the first.
        b: Weights of the solution.
        c: Nodes of the stages after the first.
        error: Weights b - bhat of the error estimate, or None without an embedded method.

    Example:
        >>> RK4.stages, DOPRI5.fsal
        (4, True)
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] | None = None

    @property
    def stages(self) -> int:
        """Evaluations of a step that starts from nothing."""
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the first of the next step (first same as last)."""
        return bool(self.a) and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]


EULER = Tableau(order=1, a=(), b=(1.0,), c=())

MIDPOINT = Tableau(order=2, a=((0.5,),), b=(0.0, 1.0), c=(0.5,))

HEUN = Tableau(order=2, a=((1.0,),), b=(0.5, 0.5), c=(1.0,))

RK4 = Tableau(
    order=4,
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.5, 0.5, 1.0),
)

# Dormand and Prince (1980); Hairer et al. (1993), table II.5.2.
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
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
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
)
