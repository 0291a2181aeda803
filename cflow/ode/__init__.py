"""Solvers for ordinary differential equations; usable alone, imports nothing but `errors`."""

from cflow.ode.adaptive import Adaptive, Dopri5, rms_of_leaves
from cflow.ode.adjoint import Adjoint, Direct
from cflow.ode.fixed import RK4, Euler, FixedStep, Heun, Midpoint
from cflow.ode.solver import Solution, Solver, Status, Time, march
from cflow.ode.tableau import Tableau

__all__ = [
    "RK4",
    "Adaptive",
    "Adjoint",
    "Direct",
    "Dopri5",
    "Euler",
    "FixedStep",
    "Heun",
    "Midpoint",
    "Solution",
    "Solver",
    "Status",
    "Tableau",
    "Time",
    "march",
    "rms_of_leaves",
]
