"""The other direction of a flow, and its density, as plain modules."""

from typing import ClassVar

from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.export.exportable import Exportable, Guide, Kind, draw_points, expect_drawn_nothing
from cflow.export.noise import to_noise
from cflow.flow import Flow
from cflow.ode import Solver
from cflow.state import State
from cflow.typing import Batch, Data, Points

__all__ = ["Encoder", "LogProb"]


class Encoder(Exportable):
    """Pull points from the data to the base: the noise from which `Sampler` makes them.

    Arguments are those of `Sampler`. With an ODE the solver steps back along the same grid, so both
    directions are inverse to each other up to the error of their steps.

    Raises:
        DomainError: As for `Sampler`; or the pull draws noise, as dequantisation does.
        ShapeError: As for `Sampler`.

    Example:
        >>> import torch
        >>> from cflow import recipes
        >>> Encoder(recipes.realnvp(2, transforms=2))(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    kind: ClassVar[Kind] = "encoder"
    input_name: ClassVar[str] = "x"
    output_name: ClassVar[str] = "noise"

    def __init__(
        self,
        flow: Flow,
        steps: int | None = None,
        *,
        solver: Solver | None = None,
        guidance: Guide | None = None,
        context: Tensor | None = None,
    ) -> None:
        expect_drawn_nothing("Encoder", flow.transport, "points have no noise of their own")
        super().__init__(flow, steps, solver=solver, guidance=guidance, context=context)

    def forward(self, x: Data, context: Tensor | None = None) -> Points:
        """Return noise `(batch, *base_event)` for points `(batch, *event)`."""
        x, context = self._enter(x, context)
        x0 = self.flow.transport.pull(State(x), context).x
        return to_noise(self.flow.base, x0, context)

    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        return draw_points(self.flow, n, context, generator, self.dtype)

    def _in_shape(self) -> tuple[int, ...]:
        return self.flow.event_shape


class LogProb(Exportable):
    """Give exact log-likelihoods of points, in nats: those of `flow.log_prob`.

    Arguments are those of `Sampler`. With an ODE they are those of its steps, whose error is the
    solver's.

    Raises:
        DomainError: As for `Sampler`; or the likelihood is an estimate or a bound, both of which
            draw noise.
        ShapeError: As for `Sampler`.

    Example:
        >>> import torch
        >>> from cflow import recipes
        >>> LogProb(recipes.realnvp(2, transforms=2))(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    kind: ClassVar[Kind] = "log_prob"
    input_name: ClassVar[str] = "x"
    output_name: ClassVar[str] = "log_prob"

    def __init__(
        self,
        flow: Flow,
        steps: int | None = None,
        *,
        solver: Solver | None = None,
        guidance: Guide | None = None,
        context: Tensor | None = None,
    ) -> None:
        expect_drawn_nothing("LogProb", flow.transport, "their likelihood is a bound")
        if flow.likelihood != "exact":
            raise DomainError(
                f"LogProb: the likelihood of this flow is an {flow.likelihood}, which draws noise; "
                "export flow.with_solver(divergence=Exact()), or one whose layers are exact"
            )
        super().__init__(flow, steps, solver=solver, guidance=guidance, context=context)

    def forward(self, x: Data, context: Tensor | None = None) -> Batch:
        """Return log-likelihoods `(batch,)` of points `(batch, *event)`."""
        x, context = self._enter(x, context)
        return self.flow.log_prob(x, context)

    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        return draw_points(self.flow, n, context, generator, self.dtype)

    def _in_shape(self) -> tuple[int, ...]:
        return self.flow.event_shape
