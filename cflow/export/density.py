"""The other direction of a flow, and its density, as plain modules."""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.export.exportable import Kind
from cflow.export.noise import to_noise
from cflow.export.of_flow import OfFlow, draw_base
from cflow.flow import Flow
from cflow.state import State
from cflow.transport import Stochastic
from cflow.typing import Batch, Data, Points

__all__ = ["Encoder", "FromData", "LogProb"]


class FromData(OfFlow):
    """Take points of the data; arguments are those of `Sampler`."""

    input_name: ClassVar[str] = "x"

    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        """Push draws of the base: points where the flow's own samples lie."""
        x0 = draw_base(self.flow, n, context, generator).to(self.dtype)
        with torch.no_grad():
            return self.flow.push(x0, context)

    def _in_shape(self) -> tuple[int, ...]:
        return self.flow.event_shape


class Encoder(FromData):
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
    output_name: ClassVar[str] = "noise"

    def forward(self, x: Data, context: Tensor | None = None) -> Points:
        """Return noise `(batch, *base_event)` for points `(batch, *event)`."""
        x, context = self._enter(x, context)
        x0 = self.flow.transport.pull(State(x), context).x
        return to_noise(self.flow.base, x0, context)

    def _expect(self, flow: Flow) -> None:
        _expect_drawn_nothing("Encoder", flow, "points have no noise of their own")


class LogProb(FromData):
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
    output_name: ClassVar[str] = "log_prob"

    def forward(self, x: Data, context: Tensor | None = None) -> Batch:
        """Return log-likelihoods `(batch,)` of points `(batch, *event)`."""
        x, context = self._enter(x, context)
        return self.flow.log_prob(x, context)

    def _expect(self, flow: Flow) -> None:
        _expect_drawn_nothing("LogProb", flow, "their likelihood is a bound")
        if flow.likelihood != "exact":
            raise DomainError(
                f"LogProb: the likelihood of this flow is an {flow.likelihood}, which draws noise; "
                "export flow.with_solver(divergence=Exact()), or one whose layers are exact"
            )


def _expect_drawn_nothing(where: str, flow: Flow, says: str) -> None:
    """Raise `DomainError` where a pull draws noise, as dequantisation does."""
    for part in flow.transport.modules():
        if isinstance(part, Stochastic):
            raise DomainError(
                f"{where}: {type(part).__name__} draws noise, so {says}; export the flow without "
                "it, Flow(flow.base, flow.transport[:-1])"
            )
