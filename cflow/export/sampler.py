"""A few-step sampler as a plain module: noise (and a context) in, samples out."""

from typing import ClassVar

from torch import Generator, Tensor

from cflow.export.exportable import Kind
from cflow.export.noise import from_noise, to_noise
from cflow.export.of_flow import OfFlow, draw_base
from cflow.flow import Flow
from cflow.ode import Solver
from cflow.samples import Calibration, calibrate
from cflow.state import State
from cflow.typing import Points

__all__ = ["Sampler"]


class Sampler(OfFlow):
    """Push noise from the base through a flow whose every step is known beforehand.

    Flows of layers take no step: they are samplers of one evaluation as they are. Where the base is
    a normal law, with whatever mean and spread, the noise is standard normal; where it is uniform,
    on whatever box, the noise is uniform in [0, 1]; otherwise it has to be drawn from the base.

    Args:
        flow: The flow; a part of one is `Flow(flow.base, flow.transport[:-1])`.
        steps: Steps of every ODE or leap in it, Euler's unless there is a solver; needed where the
            flow's own solver is adaptive.
        solver: Replaces the solver of every ODE in it: `Heun(4)`, or what `calibrate` has found.
        guidance: The scale of classifier-free guidance, or whatever `cflow.samples.guided` takes.
        context: One condition that is built in, `context_shape`; the sampler then takes noise
            alone.

    Raises:
        DomainError: A solver is adaptive, so that its steps are not known beforehand; there is
            nothing to step or to guide; or noise is drawn on the way.
        ShapeError: The context that is to be built in has another shape.

    Example:
        >>> import torch
        >>> from cflow import recipes
        >>> Sampler(recipes.cnf(2), steps=4)(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    kind: ClassVar[Kind] = "sampler"
    input_name: ClassVar[str] = "noise"
    output_name: ClassVar[str] = "samples"

    def forward(self, noise: Points, context: Tensor | None = None) -> Points:
        """Return samples `(batch, *event)` for noise `(batch, *base_event)`, of the law above."""
        noise, context = self._enter(noise, context)
        x0 = from_noise(self.flow.base, noise, context)
        return self.flow.transport.push(State(x0), context).x

    def calibrate(
        self,
        steps: int = 4,
        *,
        context: Tensor | None = None,
        n: int = 512,
        reference: Solver | None = None,
        generator: Generator | None = None,
    ) -> "Sampler":
        """Return the sampler with the solver that follows a fine solve most closely.

        Args:
            steps: Evaluations of the field.
            context: Conditions to draw with, `(n, *context_shape)`; not for a built-in one.
            n: Draws, half of them to tune on and half to choose by.
            reference: The fine solve, see `cflow.samples.calibrate`.
            generator: Source of the noise.

        Raises:
            DomainError: The flow has no ODE or leap, or more than one.

        Example:
            >>> import torch
            >>> from cflow import recipes
            >>> sampler = Sampler(recipes.cnf(2, hidden_features=(16,)), steps=4)
            >>> sampler.calibrate(2, n=64)(torch.randn(5, 2)).shape
            torch.Size([5, 2])
        """
        if self.fixed is not None:
            context = self.fixed.expand(n, *self.fixed.shape)
        found: Calibration = calibrate(
            self.flow, steps, context=context, n=n, reference=reference, generator=generator
        )
        again = Sampler(self.flow, solver=found.solver, context=self.fixed)
        again.guidance = self.guidance  # its fields are in the flow already
        return again

    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        x0 = draw_base(self.flow, n, context, generator).to(self.dtype)
        return to_noise(self.flow.base, x0, context).detach()

    def _expect(self, flow: Flow) -> None:
        """Any flow pushes."""

    def _in_shape(self) -> tuple[int, ...]:
        return tuple(self.flow.base.event_shape)
