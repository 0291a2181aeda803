"""A flow of points whose every step is known, which is what samplers and densities are made of."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.export.exportable import Exportable
from cflow.export.noise import noise_law
from cflow.field import ClassifierFree, Field, null_of
from cflow.flow import Flow
from cflow.ode import Euler, Solver
from cflow.ode.fixed import FixedStep
from cflow.samples import SampledTransport, guided
from cflow.transport import ODE, Guidance, Leap, Transport
from cflow.typing import Points

__all__ = ["Guide", "OfFlow", "draw_base"]

Guide: TypeAlias = float | Guidance | Callable[[Field], Field]
"""A scale of classifier-free guidance, or whatever `cflow.samples.guided` takes."""


class OfFlow(Exportable):
    """Hold a flow whose every step is known.

    Args:
        flow: The flow.
        steps: Steps of every ODE or leap in it, Euler's unless there is a solver.
        solver: Replaces the solver of every ODE in it.
        guidance: Guides the fields of its ODEs, or its transformer layers. A scale guides away
            from the field's own null context, or from zeros where it has none.
        context: One condition that is built in, `context_shape`; the module then takes none.

    Attributes:
        flow: The flow as it is exported.

    Raises:
        DomainError: A solver is adaptive, there is nothing to step or to guide, or something is
            drawn on the way.
        ShapeError: The context that is to be built in has another shape.
    """

    def __init__(
        self,
        flow: Flow,
        steps: int | None = None,
        *,
        solver: Solver | None = None,
        guidance: Guide | None = None,
        context: Tensor | None = None,
    ) -> None:
        where = type(self).__name__
        if not isinstance(flow, Flow):
            raise DomainError(
                f"{where}: takes a Flow, got {type(flow).__name__}; tokens have no map and no "
                "density to export, their sampler is TokenSampler"
            )
        super().__init__(flow, context)
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
        for part in (*stepped(flow.transport), *sampled(flow.transport)):
            self._expect_known(part)
        self.in_shape = self._in_shape()

    @abstractmethod
    def _expect(self, flow: Flow) -> None:
        """Raise `DomainError` for a flow that this cannot be made of."""

    @abstractmethod
    def _in_shape(self) -> tuple[int, ...]:
        """Return the shape of one input."""

    def facts(self) -> dict[str, Any]:
        hands: list[Any] = [part.solver for part in stepped(self.flow.transport)]
        hands += [part.sampler for part in sampled(self.flow.transport)]
        return {
            "data_shape": self.flow.event_shape,
            "base": noise_law(self.flow.base),
            "base_shape": self.flow.base.event_shape,
            "steps": [each.steps for each in hands],
            "solvers": [str(each) for each in hands],
            "guidance": self.guidance,
            "likelihood": self.flow.likelihood if self.kind == "log_prob" else None,
        }

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
