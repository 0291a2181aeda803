"""Solvers for ordinary differential equations; usable alone, imports nothing but `errors`."""

from cflow.ode.adaptive import Adaptive, BogackiShampine, Dopri5, Tsit5
from cflow.ode.adjoint import Adjoint, Direct
from cflow.ode.backends import Torchdiffeq, Torchdyn
from cflow.ode.backsolve import Backsolve
from cflow.ode.checkpoint import Checkpoint
from cflow.ode.control import PIController, rms_of_leaves
from cflow.ode.dense import Dense
from cflow.ode.fixed import RK4, Euler, FixedStep, Heun, Midpoint
from cflow.ode.grid import CosineGrid, EDMGrid, Grid, TimeGrid, UniformGrid
from cflow.ode.multistep import AdamsBashforth2, AdamsBashforth3
from cflow.ode.problem import Time
from cflow.ode.reversible import Reversible
from cflow.ode.solver import Solution, Solver, Status, march
from cflow.ode.tableau import Tableau
from cflow.ode.tuned import Tuned

__all__ = [
    "RK4",
    "AdamsBashforth2",
    "AdamsBashforth3",
    "Adaptive",
    "Adjoint",
    "Backsolve",
    "BogackiShampine",
    "Checkpoint",
    "CosineGrid",
    "Dense",
    "Direct",
    "Dopri5",
    "EDMGrid",
    "Euler",
    "FixedStep",
    "Grid",
    "Heun",
    "Midpoint",
    "PIController",
    "Reversible",
    "Solution",
    "Solver",
    "Status",
    "Tableau",
    "Time",
    "TimeGrid",
    "Torchdiffeq",
    "Torchdyn",
    "Tsit5",
    "Tuned",
    "UniformGrid",
    "march",
    "rms_of_leaves",
]
