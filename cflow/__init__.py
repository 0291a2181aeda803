"""cflow: flows in PyTorch, with the ODE at the centre. `Flow = base + transport`."""

from cflow import (
    base,
    errors,
    field,
    jump,
    manifold,
    matching,
    metrics,
    ode,
    recipes,
    train,
    transport,
)
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.likelihood import nll
from cflow.recipes import load
from cflow.state import State, tracked

__version__ = "0.1.0"

__all__ = [
    "Flow",
    "JumpFlow",
    "State",
    "base",
    "errors",
    "field",
    "jump",
    "load",
    "manifold",
    "matching",
    "metrics",
    "nll",
    "ode",
    "recipes",
    "tracked",
    "train",
    "transport",
]
