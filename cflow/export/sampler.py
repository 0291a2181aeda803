"""A few-step sampler as a plain module: noise (and a context) in, samples out."""

from torch import Tensor, nn

from cflow.errors import DomainError, expect_trailing
from cflow.flow import Flow
from cflow.ode import Solver
from cflow.state import State
from cflow.transport import ODE, with_solver
from cflow.typing import Points

__all__ = ["Sampler"]


class Sampler(nn.Module):
    """Push noise from the base through a flow whose every step is known beforehand.

    Args:
        flow: The flow; a part of one is `Flow(flow.base, flow.transport[:-1])`.
        solver: Replaces the solver of every ODE in it, `Euler(4)` for four evaluations; needed
            where the flow's own is adaptive.

    Raises:
        DomainError: A solver is adaptive, so that its steps are not known beforehand.

    Example:
        >>> import torch
        >>> from cflow import recipes
        >>> from cflow.ode import Euler
        >>> Sampler(recipes.cnf(2), solver=Euler(4))(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow: Flow, *, solver: Solver | None = None) -> None:
        super().__init__()
        transport = flow.transport if solver is None else with_solver(flow.transport, solver)
        for part in transport.modules():
            if isinstance(part, ODE) and part.solver.adaptive:
                raise DomainError(
                    f"Sampler: {part.solver} chooses its steps as it goes and cannot be exported; "
                    "pass a fixed-step solver such as Euler(4)"
                )
        self.transport = transport
        self.event_shape = tuple(flow.base.event_shape)
        self.context_shape = flow.context_shape
        self.base = type(flow.base).__name__

    def forward(self, noise: Points, context: Tensor | None = None) -> Points:
        """Return samples `(batch, *event)` for noise `(batch, *base_event)` drawn from the base."""
        expect_trailing("Sampler", "noise", noise, self.event_shape)
        return self.transport.push(State(noise), context).x
