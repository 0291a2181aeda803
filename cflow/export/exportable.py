"""What can be exported: a plain module with one input, a condition where there is one, one output.

    sampler:  noise -> samples          encoder:  points -> noise          log_prob:  points -> nats

Every step of it has to be known beforehand, and nothing may be drawn at random on the way.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.field import ClassifierFree, Field, null_of
from cflow.flow import Flow
from cflow.ode import Euler, Solver
from cflow.ode.fixed import FixedStep
from cflow.samples import SampledTransport, guided
from cflow.transport import ODE, Guidance, Leap, Transport
from cflow.typing import Points

__all__ = ["Exportable", "Guide", "Kind"]

Kind: TypeAlias = Literal["sampler", "encoder", "log_prob"]
Guide: TypeAlias = float | Guidance | Callable[[Field], Field]
"""A scale of classifier-free guidance, or whatever `cflow.samples.guided` takes."""


class Exportable(nn.Module, ABC):
    """Hold a flow whose every step is known, and say what goes in and comes out.

    Args:
        flow: The flow.
        steps: Steps of every ODE or leap in it, Euler's unless there is a solver.
        solver: Replaces the solver of every ODE in it.
        guidance: Guides the fields of its ODEs, or its transformer layers. A scale guides away
            from the field's own null context, or from zeros where it has none.
        context: One condition that is built in, `context_shape`; the module then takes none.

    Attributes:
        flow: The flow as it is exported.
        in_shape: Shape of one input.
        context_shape: Shape of one condition that the module takes, or None.
        dtype: Of its floating inputs.

    Raises:
        DomainError: A solver is adaptive, there is nothing to step or to guide, or something is
            drawn on the way.
        ShapeError: The context that is to be built in has another shape.
    """

    kind: ClassVar[Kind]
    input_name: ClassVar[str]
    output_name: ClassVar[str]

    def __init__(
        self,
        flow: Flow,
        steps: int | None = None,
        *,
        solver: Solver | None = None,
        guidance: Guide | None = None,
        context: Tensor | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        self._expect(flow)
        if (steps is not None or solver is not None) and not stepped(flow.transport):
            raise DomainError(
                f"{where}: the flow has no ODE and no leaps that a solver steps, so no steps to "
                "set; leave out steps and solver"
            )
        solver = _with_steps(where, solver, steps)
        if solver is not None:
            flow = flow.with_solver(solver)
        if guidance is not None:
            flow = guided(flow, _guide(guidance))
        self.guidance = None if guidance is None else _said(guidance)
        self.flow = flow
        self.dtype = next((p.dtype for p in flow.parameters()), torch.get_default_dtype())
        for part in (*stepped(flow.transport), *sampled(flow.transport)):
            self._expect_known(part)
        self.context_shape = flow.context_shape if context is None else None
        self.fixed: Tensor | None
        self.register_buffer("fixed", _fixed(where, flow, context))
        self.in_shape = self._in_shape()

    @abstractmethod
    def _expect(self, flow: Flow) -> None:
        """Raise `DomainError` for a flow that this cannot be made of."""

    @abstractmethod
    def _in_shape(self) -> tuple[int, ...]:
        """Return the shape of one input."""

    @abstractmethod
    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        """Draw inputs to trace and compare with, `(n, *in_shape)`."""

    def _enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check the input, and give every row the condition that is built in."""
        expect_trailing(type(self).__name__, self.input_name, x, self.in_shape)
        if self.fixed is None:
            return x, context
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return x, self.fixed.expand(*batch, *self.fixed.shape)

    def _expect_known(self, part: ODE | Leap | SampledTransport) -> None:
        where = type(self).__name__
        if isinstance(part, ODE) and part.solver.adaptive:
            raise DomainError(
                f"{where}: {part.solver} chooses its steps as it goes and cannot be exported; "
                "pass steps=4, or a fixed-step solver such as solver=Heun(4)"
            )
        if isinstance(part, SampledTransport) and part.sampler.random:
            raise DomainError(
                f"{where}: {type(part.sampler).__name__} draws noise on the way, which a file "
                "cannot; export the ODE itself, or a sampler without noise such as CurvedEuler"
            )


def stepped(transport: Transport) -> list[ODE | Leap]:
    """Return the parts that a solver steps."""
    beside = {id(part.ode) for part in sampled(transport)}
    parts = (part for part in transport.modules() if isinstance(part, ODE | Leap))
    return [part for part in parts if id(part) not in beside]


def sampled(transport: Transport) -> list[SampledTransport]:
    """Return the parts that a sampler carries, past the solver of their ODE."""
    return [part for part in transport.modules() if isinstance(part, SampledTransport)]


def draw_base(flow: Flow, n: int, context: Tensor | None, generator: Generator) -> Points:
    """Draw from the base, on the device of the flow's weights."""
    device = next((p.device for p in flow.parameters()), torch.device("cpu"))
    return flow.base.sample((n,), context, generator=generator).to(device)


def _with_steps(where: str, solver: Solver | None, steps: int | None) -> Solver | None:
    if steps is None:
        return solver
    if solver is None:
        return Euler(steps)
    if not isinstance(solver, FixedStep):
        raise DomainError(f"{where}: {solver} takes no number of steps; leave out steps={steps}")
    return dataclasses.replace(solver, steps=steps)


def _guide(guidance: Guide) -> Guidance | Callable[[Field], Field]:
    if not isinstance(guidance, int | float):
        return guidance
    return lambda field: ClassifierFree(field, float(guidance), null=null_of(field))


def _said(guidance: Guide) -> float | str:
    return float(guidance) if isinstance(guidance, int | float) else str(guidance)


def _fixed(where: str, flow: Flow, context: Tensor | None) -> Tensor | None:
    if context is None:
        return None
    if flow.context_shape is None:
        raise DomainError(f"{where}: this flow is unconditional, so no context can be built in")
    if tuple(context.shape) != flow.context_shape:
        raise ShapeError(
            f"{where}: the context that is built in is one condition of shape "
            f"{flow.context_shape}, got {tuple(context.shape)}"
        )
    return context.detach().clone()
