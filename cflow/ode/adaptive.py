"""Adaptive solvers: the options, and the methods that take them.

The loop that solves sample by sample is in `loop`; how steps are judged is in `control`.
Source: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, II.4 and II.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from cflow.errors import DomainError, expect_positive
from cflow.ode.control import Norm, PIController, Tolerance, check_tolerance, rms_of_leaves
from cflow.ode.loop import Loop
from cflow.ode.problem import Problem, Span
from cflow.ode.solver import Solution, Solver
from cflow.ode.step import RungeKutta
from cflow.ode.tableau import BOGACKI_SHAMPINE, DOPRI5, TSIT5, Tableau

__all__ = ["Adaptive", "BogackiShampine", "Dopri5", "Tsit5"]


CONTROLLER = PIController()


@dataclass(frozen=True, repr=False)
class Adaptive(Solver):
    """Step with an embedded pair under per-sample error control; what differs is the tableau.

    Attributes:
        rtol: Tolerated error relative to the state: a number, a tensor that broadcasts against one
            point, or one of either for each leaf of the state.
        atol: Tolerated absolute error, in the units of the state, likewise. An entry of inf leaves
            its leaf out of the error control.
        max_steps: Attempts that each sample may spend on the whole solve.
        min_step: Step size below which a sample that still fails its tolerance is given up.
        initial_step: Size of the first step; None for a guess that costs one evaluation.
        norm: Maps scaled errors to one number per sample; 1 is the tolerance.
        controller: Chooses the next step size.
        throw: Raise when a sample fails; otherwise its last good state comes back with its status.
    """

    rtol: Tolerance = 1e-5
    atol: Tolerance = 1e-5
    max_steps: int = 1000
    min_step: float = 0.0
    initial_step: float | None = None
    norm: Norm = rms_of_leaves
    controller: PIController = CONTROLLER
    throw: bool = True

    tableau: ClassVar[Tableau]

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_tolerance(name, "rtol", self.rtol)
        check_tolerance(name, "atol", self.atol)
        if isinstance(self.max_steps, bool) or self.max_steps < 1:
            raise DomainError(f"{name}: max_steps must be at least 1, got {self.max_steps!r}")
        if not 0 <= self.min_step < float("inf"):
            raise DomainError(f"{name}: min_step must be 0 or more, got {self.min_step!r}")
        if self.initial_step is not None:
            expect_positive(name, initial_step=self.initial_step)

    @property
    def per_sample(self) -> bool:
        return True

    @property
    def adaptive(self) -> bool:
        return True

    def _solve(self, problem: Problem, span: Span) -> Solution:
        return Loop(self, RungeKutta(self.tableau), problem, span).run()


@dataclass(frozen=True, repr=False)
class Dopri5(Adaptive):
    """The Dormand-Prince pair of order 5(4): six evaluations a step.

    References:
        Dormand and Prince (1980), A family of embedded Runge-Kutta formulae.

    Example:
        >>> import torch
        >>> solution = Dopri5(rtol=1e-8, atol=1e-8).solve(
        ...     lambda t, y: -y, torch.ones(2, 1, dtype=torch.float64), 0.0, 1.0
        ... )
        >>> bool((solution.y - torch.tensor(-1.0).exp()).abs().max() < 1e-7)
        True
    """

    tableau: ClassVar[Tableau] = DOPRI5


@dataclass(frozen=True, repr=False)
class Tsit5(Adaptive):
    """The pair of Tsitouras of order 5(4): six evaluations a step, a smaller error than Dopri5.

    References:
        Tsitouras (2011), Runge-Kutta pairs of order 5(4) satisfying only the first column
        simplifying assumption.

    Example:
        >>> Tsit5(rtol=1e-6)
        Tsit5(rtol=1e-06)
    """

    tableau: ClassVar[Tableau] = TSIT5


@dataclass(frozen=True, repr=False)
class BogackiShampine(Adaptive):
    """The Bogacki-Shampine pair of order 3(2): three evaluations a step, for loose tolerances.

    References:
        Bogacki and Shampine (1989), A 3(2) pair of Runge-Kutta formulas.

    Example:
        >>> import torch
        >>> y = BogackiShampine(1e-3, 1e-3).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y
        >>> round(y.item(), 2)
        0.37
    """

    tableau: ClassVar[Tableau] = BOGACKI_SHAMPINE
