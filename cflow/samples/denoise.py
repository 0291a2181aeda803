"""Better samples from a trained flow: guidance while they are drawn, denoising afterwards.

    denoise: E[clean | noisy] = noisy + sigma^2 grad log p(noisy)

holds exactly where p is the law of clean points plus independent Gaussian noise (Tweedie's
formula): a flow trained through `GaussianNoise(sigma)` approximates that law.
Source: Zhai et al. (2024), Normalizing flows are capable generative models, arXiv 2412.06329;
Efron (2011), Tweedie's formula and selection bias, JASA 106.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_floating, expect_positive
from cflow.field import Analytic, AnalyticField, Exact, Field
from cflow.flow import Flow
from cflow.samples.sampled import rebuilt
from cflow.transport import ODE, Guidance, GuidedTransport, Transport
from cflow.transport.exchange import exchanged
from cflow.typing import Points

__all__ = ["denoise", "guided"]


def guided(flow: Flow, guidance: Guidance | Callable[[Field], Field]) -> Flow:
    """Return a flow that shares all modules and samples with guidance; this one stays as it is.

    The fields of ODEs are exchanged for guided ones, and everything else stays: solver, divergence,
    likelihood. `log_prob` is that of the guided law, another one than the trained flow's. Layers of
    transformers are guided in sampling alone; no density of the model belongs to it, so there
    `log_prob`, `pull` and `sample_and_log_prob` refuse in words.

    Args:
        flow: A flow with ODEs, or with transformer layers such as `recipes.tarflow` builds.
        guidance: What becomes of the field of each ODE, `ClassifierFree` for instance, or how
            transformer layers are guided.

    Raises:
        DomainError: There is nothing to guide, or no weak version to guide away from.

    Example:
        >>> from cflow import recipes
        >>> from cflow.base import Gaussian
        >>> from cflow.field import ClassifierFree, MLPField
        >>> flow = Flow(Gaussian(2), ODE(MLPField(2, 3)), context_shape=(3,))
        >>> stronger = guided(flow, lambda field: ClassifierFree(field, 2.0, null=0.0))
        >>> stronger.sample(5, torch.ones(3)).shape
        torch.Size([5, 2])
        >>> flow = recipes.tarflow((4, 4), 10, patch=2, width=16, blocks=2, layers=1)
        >>> labels = torch.tensor([3, 1, 4])
        >>> guided(flow, Guidance(weight=2.0)).sample(5, labels).shape
        torch.Size([5, 3, 4, 4])
    """
    if isinstance(guidance, Guidance):
        transport: Transport = GuidedTransport(flow.transport, guidance)
        transport.training = flow.transport.training  # not train(), which reaches shared modules
    else:
        transport = exchanged(flow.transport, lambda part: _with_field(part, guidance))
        if transport is flow.transport:
            raise DomainError(
                "guided: the flow has no ODE, whose field could be exchanged; transformer layers "
                "take a Guidance(...)"
            )
    return rebuilt(flow, transport)


def denoise(flow: Flow, x: Points, context: Tensor | None = None, *, sigma: float) -> Points:
    """Take from noisy points their expected noise, x + sigma^2 grad log p(x).

    Args:
        flow: A flow in evaluation mode whose density is that of the noisy points, without guidance
            even where the points were guided.
        x: Noisy points `(*batch, *event_shape)`, drawn from the flow for instance.
        context: Their conditions.
        sigma: Standard deviation of the noise that the flow was trained with, in units of x.

    Returns:
        Clean points, of the shape of x broadcast with the context, without gradients.

    Raises:
        DomainError: Integer points, sigma is not positive, or the flow gives a bound only, which
            has another gradient than the density.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Chain
        >>> denoise(Flow(Gaussian(1), Chain()), torch.ones(1, 1), sigma=0.5)
        tensor([[0.7500]])
    """
    expect_floating("denoise", x)
    expect_positive("denoise", sigma=sigma)
    if flow.likelihood == "bound":
        raise DomainError(
            "denoise: the flow gives a bound of its log-density only; call flow.eval() if it is in "
            "training mode; one that ends in dequantisation has no Gaussian noise to take away"
        )
    if context is not None:
        given = len(flow.context_shape or ())
        batch = context.shape[: context.dim() - given]
        x = x.expand(torch.broadcast_shapes(x.shape, (*batch, *flow.event_shape)))
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        (score,) = torch.autograd.grad(flow.log_prob(points, context).sum(), points)
    return (points + sigma**2 * score).detach()


def _with_field(part: Transport, change: Callable[[Field], Field]) -> Transport | None:
    """Return an ODE along another field, or None for what is no ODE."""
    if not isinstance(part, ODE):
        return None
    field, divergence = change(part.field), part.divergence
    if isinstance(divergence, Analytic) and not isinstance(field, AnalyticField):
        divergence = Exact()
    return ODE(
        field,
        part.solver,
        manifold=part.manifold,
        divergence=divergence,
        adjoint=part.adjoint,
        cost=part.cost,
        steer=part.steer,
    )
