"""A jump flow is a base and rates: tokens that jump from noise to data.

    x0 ~ base,    each token jumps x -> y at rate u(x -> y),    x1 = where it is at t = 1

The sibling of `Flow` for discrete data. A jump has no inverse and no Jacobian, so there is no
`log_prob`: `elbo` is a lower bound, and says so.
Source: Campbell et al. (2024), Generative flows on discrete state-spaces, arXiv 2402.04997; Gat et
al. (2024), Discrete flow matching, arXiv 2407.15595.
"""

import os
from collections.abc import Sequence

from torch import Generator, Tensor, nn

from cflow import archive
from cflow.base import TokenBase
from cflow.errors import DomainError, ShapeError, expect_tokens, expect_trailing
from cflow.flow import Recipe
from cflow.jump.elbo import clock_kl, draw_moments
from cflow.jump.mixture_steps import MixtureSteps
from cflow.jump.rates import Rates
from cflow.jump.sampler import JumpSampler
from cflow.jump.tokens import expect_numbers
from cflow.transport import Likelihood
from cflow.typing import Batch, Data

__all__ = ["JumpFlow"]

STEPS = MixtureSteps()


class JumpFlow(nn.Module):
    """Hold a base law and rates, and give samples and a bound on log-likelihoods.

    Args:
        base: The law at t = 0.
        rates: Where tokens jump to, and how fast.
        sampler: How `sample` takes its steps.
        context_shape: Shape of one condition, () for class labels; None for an unconditional flow.

    Attributes:
        event_shape: Shape of one data point.
        recipe: What built the flow, if a recipe did; `save` writes its description.

    Raises:
        DomainError: Base and rates disagree about the states of a token.

    Example:
        >>> import torch
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior
        >>> base = MaskTokens(3, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> flow = JumpFlow(base, NetworkPosterior(uniform, base))
        >>> flow.sample(5).shape, round(flow.elbo(torch.tensor([[0, 1, 3]])).exp().item(), 6)
        (torch.Size([5, 3]), 0.015625)
    """

    likelihood: Likelihood = "bound"

    def __init__(
        self,
        base: TokenBase,
        rates: Rates,
        *,
        sampler: JumpSampler = STEPS,
        context_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if base.states != rates.states:
            raise DomainError(
                f"JumpFlow: base and rates must agree on the states of a token, got {base.states} "
                f"of {type(base).__name__} and {rates.states} of {type(rates).__name__}"
            )
        self.base = base
        self.rates = rates
        self.sampler = sampler
        self.context_shape = None if context_shape is None else tuple(context_shape)
        self.event_shape = base.event_shape
        self.recipe: Recipe | None = None

    def sample(
        self,
        shape: Sequence[int] | int = (),
        context: Tensor | None = None,
        *,
        sampler: JumpSampler | None = None,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Data:
        """Draw tokens.

        Args:
            shape: Sample shape, or a number of points; draws per condition where one is given.
            context: Conditions `(*batch, *context_shape)`.
            sampler: How steps are taken; the flow's own by default.
            generator: Source of the randomness.
            progress: Show a bar of the steps where there is a terminal.

        Returns:
            Tokens `(*shape, *batch, *event_shape)`.

        Raises:
            DomainError: A context is missing or not expected, the sampler does not fit these
                rates, or the rates are not finite.
        """
        full = (shape,) if isinstance(shape, int) else tuple(shape)
        context = self._context("sample", full, context)
        if context is not None:
            full = tuple(context.shape[: context.dim() - len(self.context_shape or ())])
        x0 = self.base.sample(full, context, generator=generator)
        flat = lambda z: z.flatten(0, len(full) - 1) if full else z[None]
        x = (self.sampler if sampler is None else sampler).sample(
            self.rates,
            flat(x0),
            None if context is None else flat(context),
            base=self.base,
            generator=generator,
            progress=progress,
        )
        return x.unflatten(0, full) if full else x[0]

    def elbo(
        self,
        x: Data,
        context: Tensor | None = None,
        *,
        repeats: int = 1,
        generator: Generator | None = None,
    ) -> Batch:
        """Return an unbiased estimate of a lower bound on log p(x), in nats; differentiable.

        Args:
            x: Tokens `(*batch, *event_shape)`.
            context: Conditions `(*batch, *context_shape)`.
            repeats: Moments of the way that are averaged, spread evenly; each is an evaluation.
            generator: Source of the randomness.

        Returns:
            One value per point, `(*batch,)`.

        Raises:
            ShapeError: x or the context has another shape.
            DomainError: x holds no data tokens, the rates follow no path, or are no numbers.
        """
        return self._bounds(x, context, repeats, generator).mean(0)

    def elbo_with_error(
        self,
        x: Data,
        context: Tensor | None = None,
        *,
        repeats: int = 8,
        generator: Generator | None = None,
    ) -> tuple[Batch, Batch]:
        """Return the bound and its standard error for each point; arguments as for `elbo`.

        The error is that of independent moments; as they are spread evenly, it is rather too large.
        """
        if repeats < 2:
            raise DomainError(
                f"JumpFlow.elbo_with_error: repeats must be at least 2, got {repeats}"
            )
        values = self._bounds(x, context, repeats, generator)
        return values.mean(0), values.std(0) / repeats**0.5

    def with_rates(self, rates: Rates) -> "JumpFlow":
        """Return a flow of the same base and sampler with other rates, guided ones say."""
        return self._like(rates, self.sampler)

    def with_sampler(self, sampler: JumpSampler) -> "JumpFlow":
        """Return a flow that shares all modules and takes its steps in another way."""
        return self._like(self.rates, sampler)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and recipe to one safetensors file for `cflow.load(path, JumpFlow)`.

        Raises:
            CheckpointError: The file cannot be written.
        """
        recipe = None if self.recipe is None else self.recipe.describe()
        archive.write(path, self.state_dict(), {"recipe": recipe})

    def _like(self, rates: Rates, sampler: JumpSampler) -> "JumpFlow":
        flow = JumpFlow(self.base, rates, sampler=sampler, context_shape=self.context_shape)
        flow.training = self.training
        return flow

    def _bounds(
        self, x: Tensor, context: Tensor | None, repeats: int, generator: Generator | None
    ) -> Tensor:
        """Return independent estimates, `(repeats, *batch)`."""
        if repeats < 1:
            raise DomainError(f"JumpFlow.elbo: repeats must be at least 1, got {repeats}")
        expect_tokens(
            "JumpFlow.elbo",
            x,
            self.event_shape,
            self.base.vocabulary,
            masked=self.base.mask is not None,
        )
        batch = tuple(x.shape[: x.dim() - len(self.event_shape)])
        context = self._context("elbo", batch, context, whole=True)
        x1 = x.long().reshape(-1, *self.event_shape)
        moment = draw_moments(self.rates, self.base, x1, repeats, generator=generator)
        ends = x1.repeat(repeats, *(1,) * len(self.event_shape))
        if context is not None:
            context = context.reshape(len(x1), *(self.context_shape or ()))
            context = context.repeat(repeats, *(1,) * (context.dim() - 1))
        k = clock_kl(self.rates, moment.t, moment.x, ends, context)
        expect_numbers("JumpFlow.elbo", moment.t, k, batch)
        return -(moment.weight * k.reshape(len(k), -1).sum(1)).reshape(repeats, *batch)

    def _context(
        self, where: str, batch: tuple[int, ...], context: Tensor | None, *, whole: bool = False
    ) -> Tensor | None:
        """Check the context, and expand it to the batch: behind it, or as a whole."""
        if (self.context_shape is None) != (context is None):
            wants = (
                "this flow is unconditional, got a context; build it with context_shape"
                if self.context_shape is None
                else f"this flow needs a context ending in shape {self.context_shape}"
            )
            raise DomainError(f"JumpFlow.{where}: {wants}")
        if context is None:
            return None
        own = self.context_shape or ()
        expect_trailing(f"JumpFlow.{where}", "context", context, own)
        given = tuple(context.shape[: context.dim() - len(own)])
        wanted = batch if whole else (*batch, *given)
        try:
            return context.expand(*wanted, *own)
        except RuntimeError as error:
            raise ShapeError(
                f"JumpFlow.{where}: batch axes of the context {given} do not broadcast to those "
                f"of x, {batch}"
            ) from error
