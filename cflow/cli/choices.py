"""Solvers and devices by the names that they have on the command line."""

import torch
from torch import Tensor

from cflow.cli.arguments import known_or_nearest
from cflow.errors import DomainError
from cflow.field import ClassifierFree, Field, null_of
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.ode import (
    RK4,
    AdamsBashforth2,
    AdamsBashforth3,
    Euler,
    FixedStep,
    Heun,
    Midpoint,
)
from cflow.samples import guided

__all__ = ["device_of", "guided_by", "placed", "solved_by", "solver_of"]

SOLVERS: dict[str, type[FixedStep]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    "ab2": AdamsBashforth2,
    "ab3": AdamsBashforth3,
}


def solver_of(name: str | None, steps: int | None) -> FixedStep | None:
    """Return a solver of so many steps, Euler's where none is named, or None without either.

    Raises:
        DomainError: The name is unknown, or comes without steps, or these are fewer than one.

    Example:
        >>> solver_of(None, 4), solver_of("heun", 2), solver_of(None, None)
        (Euler(steps=4), Heun(steps=2), None)
    """
    if name is not None:
        known_or_nearest("--solver", "solver", name, SOLVERS)
    if steps is None:
        if name is not None:
            raise DomainError(f"--solver: {name} needs a number of steps; add --steps 4")
        return None
    return SOLVERS[name or "euler"](steps)


def solved_by(flow: Flow, name: str | None, steps: int | None) -> Flow:
    """Return the flow with its ODEs solved in so many steps.

    Raises:
        DomainError: As for `solver_of`; or the flow has no ODE.
    """
    solver = solver_of(name, steps)
    if solver is None:
        return flow
    again = flow.with_solver(solver)
    if again.transport is flow.transport:
        raise DomainError("--steps: this flow has no ODE and takes zero solver steps; leave it out")
    return again


def guided_by(flow: Flow, scale: float | None) -> Flow:
    """Return the flow with its field guided away from itself without a condition.

    Raises:
        DomainError: The flow has no ODE or takes no context.
    """
    if scale is None:
        return flow

    def guide(field: Field) -> Field:
        if flow.context_shape is None:
            raise DomainError("--guidance: this flow is unconditional; leave it out")
        return ClassifierFree(field, scale, null=null_of(field))

    return guided(flow, guide)


def device_of(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        DomainError: It is not.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DomainError(f"--device: there is no {name!r} here ({error})") from error


def placed(values: Tensor, flow: Flow | JumpFlow) -> Tensor:
    """Return values on the device of a flow; floats in its dtype, whole numbers as they are.

    Example:
        >>> from cflow import recipes
        >>> placed(torch.ones(2, dtype=torch.float64), recipes.maf(2).half()).dtype
        torch.float16
    """
    one = next((t for t in flow.state_dict().values() if t.is_floating_point()), values)
    return values.to(one) if values.is_floating_point() else values.to(one.device)
