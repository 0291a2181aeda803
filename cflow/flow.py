"""A flow is a base and a transport.

    x = push(x0),  x0 ~ base,    log p(x) = log base(pull(x)) + ladj(pull)

The same lines serve layers (zero solver steps), velocity fields (N steps), and chains of both.
Source: Rezende and Mohamed (2015), Variational inference with normalizing flows, arXiv 1505.05770.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from cflow import archive
from cflow.base import Base
from cflow.distribution import FlowDistribution
from cflow.errors import DomainError, ShapeError, expect_floating, expect_trailing
from cflow.field import Divergence
from cflow.ode import Adjoint, Solver
from cflow.state import State, tracked
from cflow.transport import Likelihood, Transport, initialize, with_solver
from cflow.typing import Batch, Data, Points

__all__ = ["Flow", "Recipe"]


@runtime_checkable
class Recipe(Protocol):
    """What a flow needs to know of the recipe that built it."""

    def describe(self) -> dict[str, Any]:
        """Return the name and arguments of the recipe as JSON can hold them."""
        ...


class Flow(nn.Module):
    """Hold a base law and a transport, and give samples and log-likelihoods.

    Args:
        base: The law at t = 0.
        transport: The way from t = 0 to the data at t = 1.
        context_shape: Shape of one condition, or None for an unconditional flow.

    Attributes:
        event_shape: Shape of one data point.
        recipe: What built the flow, if a recipe did; `save` writes its description.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> flow = Flow(Gaussian(2), Affine(scale=3.0))
        >>> flow.log_prob(torch.zeros(1, 2))
        tensor([-4.0351])
    """

    def __init__(
        self, base: Base, transport: Transport, *, context_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.transport = transport
        self.context_shape = None if context_shape is None else tuple(context_shape)
        self.event_shape = tuple(transport.out_shape(base.event_shape))
        self.recipe: Recipe | None = None

    @property
    def likelihood(self) -> Likelihood:
        """What `log_prob` returns: "exact", "estimate" (unbiased, random), or a lower "bound"."""
        return self.transport.likelihood

    def log_prob(
        self, x: Data, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> Batch:
        """Return log-likelihoods in nats, in the units of the data; differentiable.

        Wrap it in `torch.no_grad()` where no gradient is wanted: the graph of an exact divergence
        holds as many copies of the field's activations as the event has coordinates.

        Args:
            x: Points `(*batch, *event_shape)`; integers where the flow ends in dequantisation.
            context: Conditions `(*batch, *context_shape)`; batch axes broadcast.
            generator: Source of noise for estimates and bounds.

        Returns:
            One value per point, `(*batch,)`; see `likelihood` for what it is.

        Raises:
            ShapeError: x or the context has another trailing shape.
            DomainError: Integer points without a dequantisation layer, or a context where none is
                expected, or none where one is.
            SolverError: An adaptive solve failed.
        """
        state, context = self.pull_state(x, context, generator=generator)
        return self.base.log_prob(state.x, context) + cast(Tensor, state.ladj)

    def log_prob_with_error(
        self,
        x: Data,
        context: Tensor | None = None,
        *,
        repeats: int = 8,
        generator: Generator | None = None,
    ) -> tuple[Batch, Batch]:
        """Return log-likelihoods and their standard errors over independent noise.

        Args:
            x: Points `(*batch, *event_shape)`.
            context: Conditions.
            repeats: Evaluations with fresh noise that are averaged, at least 2; an exact likelihood
                is evaluated once.
            generator: Source of the noise.

        Returns:
            Mean and standard error, `(*batch,)` each; the error of an exact likelihood is zero.
        """
        if self.likelihood == "exact":
            value = self.log_prob(x, context)
            return value, torch.zeros_like(value)
        if repeats < 2:
            raise DomainError(f"Flow.log_prob_with_error: repeats must be 2 or more, got {repeats}")
        x, context = self._enter("log_prob_with_error", x, self.event_shape, context)
        stacked = x.expand(repeats, *x.shape)
        values = self.log_prob(stacked, context, generator=generator)
        return values.mean(0), values.std(0) / repeats**0.5

    def sample(
        self,
        shape: Sequence[int] | int = (),
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        """Draw points without gradients.

        Args:
            shape: Sample shape, or a number of points; draws per condition where one is given.
            context: Conditions `(*batch, *context_shape)`.
            generator: Source of the randomness.

        Returns:
            Points `(*shape, *batch, *event_shape)`.
        """
        with torch.no_grad():
            return self.rsample(shape, context, generator=generator)

    def rsample(
        self,
        shape: Sequence[int] | int = (),
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        """Draw points through which gradients flow; arguments as for `sample`."""
        x0, context = self._draw("rsample", shape, context, generator)
        return self.transport.push(State(x0), context, generator=generator).x

    def sample_and_log_prob(
        self,
        shape: Sequence[int] | int = (),
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> tuple[Points, Batch]:
        """Draw points together with their log-likelihoods, in one push where there is no bound.

        Returns:
            Points as from `rsample`, with gradients, and `log_prob` of each, in nats.
        """
        x0, context = self._draw("sample_and_log_prob", shape, context, generator)
        if self.likelihood == "bound":
            x = self.transport.push(State(x0), context, generator=generator).x
            return x, self.log_prob(x, context, generator=generator)
        start = tracked(x0, event_dim=len(self.base.event_shape))
        state = self.transport.push(start, context, generator=generator)
        return state.x, self.base.log_prob(x0, context) - cast(Tensor, state.ladj)

    def push(
        self, x0: Points, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> Points:
        """Carry points `(*batch, *base_event)` from the base to the data."""
        x0, context = self._enter("push", x0, self.base.event_shape, context)
        return self.transport.push(State(x0), context, generator=generator).x

    def pull(
        self, x: Data, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> Points:
        """Carry points `(*batch, *event_shape)` from the data to the base."""
        x, context = self._enter("pull", x, self.event_shape, context)
        return self.transport.pull(State(x), context, generator=generator).x

    def pull_state(
        self, x: Data, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> tuple[State, Tensor | None]:
        """Pull with everything tracked (ladj, cost, nfe); also return the broadcast context."""
        x, context = self._enter("log_prob", x, self.event_shape, context)
        start = tracked(x, event_dim=len(self.event_shape))
        state = self.transport.pull(start, context, generator=generator)
        expect_floating("Flow.log_prob", state.x)  # layers look themselves; a chain may have none
        return state, context

    def initialize(
        self, x: Data, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> None:
        """Set data-dependent layers (ActNorm, Standardize) from a batch; those already set stay."""
        x, context = self._enter("initialize", x, self.event_shape, context)
        initialize(self.transport, x, context, generator=generator)

    def at(self, context: Tensor | None = None) -> FlowDistribution:
        """View the flow, at given conditions, as a `torch.distributions.Distribution`."""
        return FlowDistribution(self, context)

    def with_solver(
        self,
        solver: Solver | None = None,
        *,
        divergence: Divergence | None = None,
        adjoint: Adjoint | None = None,
    ) -> "Flow":
        """Return a flow that shares all modules and solves its ODEs in another way.

        Args:
            solver: How they are integrated; None, here and below, keeps what each ODE has.
            divergence: How their log-determinants are computed: `Exact()` turns a flow that was
                trained on estimates into one that evaluates exactly.
            adjoint: How gradients pass through their solves.
        """
        transport = with_solver(self.transport, solver, divergence=divergence, adjoint=adjoint)
        flow = Flow(self.base, transport, context_shape=self.context_shape)
        flow.training = self.training
        return flow

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and recipe to one safetensors file that `cflow.load` reads.

        Nothing in the file is code. A flow that no recipe built is saved as weights alone;
        `cflow.load(path, into=flow)` puts them into a flow built in the same way.

        Raises:
            CheckpointError: The file cannot be written.
        """
        recipe = None if self.recipe is None else self.recipe.describe()
        archive.write(path, self.state_dict(), {"recipe": recipe})

    def _draw(
        self,
        where: str,
        shape: Sequence[int] | int,
        context: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        self._check_context(where, context)
        full = (shape,) if isinstance(shape, int) else tuple(shape)
        if context is not None:
            full += tuple(context.shape[: context.dim() - len(self.context_shape or ())])
            context = context.expand((*full, *(self.context_shape or ())))
        return self.base.sample(full, context, generator=generator), context

    def _enter(
        self, where: str, x: Tensor, event_shape: tuple[int, ...], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Check shapes, and broadcast the batch axes of points and context against each other."""
        expect_trailing(f"Flow.{where}", "x", x, event_shape)
        self._check_context(where, context)
        if context is None:
            return x, None
        own, given = x.shape[: x.dim() - len(event_shape)], len(self.context_shape or ())
        try:
            batch = torch.broadcast_shapes(own, context.shape[: context.dim() - given])
        except RuntimeError as error:
            raise ShapeError(
                f"Flow.{where}: batch axes of x {tuple(own)} and of the context "
                f"{tuple(context.shape[: context.dim() - given])} do not broadcast"
            ) from error
        context = context.expand((*batch, *(self.context_shape or ())))
        return x.expand((*batch, *event_shape)), context

    def _check_context(self, where: str, context: Tensor | None) -> None:
        if self.context_shape is None and context is not None:
            raise DomainError(
                f"Flow.{where}: this flow is unconditional, got a context of shape "
                f"{tuple(context.shape)}; build it with context_shape to condition it"
            )
        if self.context_shape is not None and context is None:
            raise DomainError(
                f"Flow.{where}: this flow needs a context ending in shape {self.context_shape}"
            )
        if context is not None:
            expect_trailing(f"Flow.{where}", "context", context, self.context_shape or ())
