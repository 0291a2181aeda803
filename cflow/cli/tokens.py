"""Flows of tokens as the commands use them: steps and guidance by number, samples in batches."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from cflow.cli.choices import placed
from cflow.cli.noise import in_batches
from cflow.errors import DomainError
from cflow.field import null_of
from cflow.jump import ClassifierFreePosterior, JumpFlow, Posterior, SteppingJumps

__all__ = ["stepped_by", "tokens"]


def stepped_by(flow: JumpFlow, steps: int | None) -> JumpFlow:
    """Return the flow with its sampler taking so many steps.

    Raises:
        DomainError: They are fewer than one, or the sampler takes no steps.

    Example:
        >>> from cflow import recipes
        >>> stepped_by(recipes.token_mlp(2, 5), 4).sampler.steps
        4
    """
    if steps is None:
        return flow
    if not isinstance(flow.sampler, SteppingJumps):
        raise DomainError(f"--steps: {flow.sampler} takes no number of steps; leave it out")
    return flow.with_sampler(replace(flow.sampler, steps=steps))


def tokens(
    flow: JumpFlow,
    n: int,
    context: Tensor | None,
    *,
    steps: int | None,
    guidance: float | None,
    batch: int,
    generator: Generator,
) -> Tensor:
    """Draw tokens `(n, *event)`, some together.

    Args:
        flow: The flow, on the device where it computes.
        n: How many.
        context: Conditions `(n, *context_shape)`.
        steps: Steps of the sampler; its own by default.
        guidance: Scale of classifier-free guidance.
        batch: How many are drawn together.
        generator: Source of the randomness.

    Raises:
        DomainError: As for `stepped_by`; or there is nothing to guide.

    Example:
        >>> from cflow import recipes
        >>> flow = recipes.token_mlp(2, 5, hidden_features=(8,), steps=4)
        >>> options = dict(steps=2, guidance=None, generator=Generator().manual_seed(0))
        >>> tokens(flow, 5, None, batch=3, **options).shape
        torch.Size([5, 2])
    """
    flow = _guided(stepped_by(flow, steps), guidance)

    def draw(rows: Tensor, context: Tensor | None) -> Tensor:
        shape = len(rows) if context is None else ()
        return flow.sample(shape, context, generator=generator).cpu()

    given = None if context is None else placed(context, flow)
    return in_batches(draw, torch.empty(n, 0), given, batch)


def _guided(flow: JumpFlow, scale: float | None) -> JumpFlow:
    if scale is None:
        return flow
    if flow.context_shape is None or not isinstance(flow.rates, Posterior):
        raise DomainError("--guidance: this flow is unconditional; leave it out")
    null = null_of(flow.rates)
    return flow.with_rates(ClassifierFreePosterior(flow.rates, scale, null=null))
