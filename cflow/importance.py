"""Importance-weighted bounds: several draws of the noise instead of one.

    L_K = E[log (1/K) sum_k exp(l_k)],    L_1 <= L_2 <= ... <= log P(x),    L_K -> log P(x)

with l_k = log_prob(x) from independent noise. Where a flow's likelihood is a bound, exp(l_k) is an
unbiased estimate of the probability, so its average is one as well, and less noisy.
Source: Burda et al. (2016), Importance weighted autoencoders, arXiv 1509.00519, theorem 1; for
dequantisation: Ho et al. (2019), Flow++, arXiv 1902.00275, section 4.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, expect_positive
from cflow.flow import Flow
from cflow.transport import Transport
from cflow.typing import Data

__all__ = ["ImportanceBound", "importance_bound"]


class ImportanceBound(NamedTuple):
    """Hold bounds in nats and the standard errors of their estimates, `(*batch,)` each."""

    value: Tensor
    error: Tensor


def importance_bound(
    flow: Flow,
    x: Data,
    context: Tensor | None = None,
    *,
    samples: int = 16,
    chunk: int = 4096,
    generator: Generator | None = None,
) -> ImportanceBound:
    """Return an importance-weighted lower bound of log P(x); differentiable.

    A flow with an exact likelihood is evaluated once, and the error is zero.

    Args:
        flow: A flow whose likelihood is "bound" or "exact".
        x: Points `(*batch, *event_shape)`.
        context: Conditions `(*batch, *context_shape)`.
        samples: The K above: draws of the noise for each point.
        chunk: Points and draws that are evaluated at once; bounds the memory.
        generator: Source of the noise.

    Returns:
        Bounds, and standard errors by the delta method: those of the estimate of the probability,
        relative to it. They too are estimates, too small where a few draws carry all the weight,
        and not a number for a single draw.

    Raises:
        DomainError: The likelihood is, or contains, a random estimate of the log-density: its
            exponential is biased upwards, and no bound. Evaluate with an exact divergence or
            log-determinant instead.
        ShapeError: x or the context has another trailing shape.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Chain, Dequantize, Inverse, Logit
        >>> flow = Flow(Gaussian(1), Chain(Inverse(Logit()), Dequantize(2)))
        >>> g = torch.Generator().manual_seed(0)
        >>> bound = importance_bound(flow, torch.tensor([[0]]), samples=2000, generator=g)
        >>> abs(bound.value.exp().item() - 0.4984) < 4 * bound.error.item()
        True
    """
    expect_positive("importance_bound", samples=samples, chunk=chunk)
    if flow.likelihood == "exact" or not x.numel():
        value = flow.log_prob(x, context, generator=generator)
        return ImportanceBound(value, torch.zeros_like(value))
    parts = [part for part in flow.transport.modules() if isinstance(part, Transport)]
    if any(part.likelihood == "estimate" for part in parts):
        raise DomainError(
            "importance_bound: part of this likelihood is a random estimate of a log-density, "
            "whose exponential is no unbiased density; ask for an exact divergence or "
            "log-determinant (Flow.with_solver, with_logdet), or use Flow.log_prob_with_error"
        )
    events, given = len(flow.event_shape), len(flow.context_shape or ())
    batch = x.shape[: x.dim() - events]
    if context is not None:
        batch = torch.broadcast_shapes(batch, context.shape[: context.dim() - given])
        context = context.expand(*batch, *context.shape[context.dim() - given :])
        context = context.reshape(-1, *context.shape[len(batch) :])
        x = x.expand(*batch, *x.shape[x.dim() - events :])
    points = x.reshape(-1, *x.shape[len(batch) :])
    rows = max(1, chunk // samples)
    values = []
    for start in range(0, len(points), rows):
        some = points[start : start + rows]
        steered = None if context is None else context[start : start + rows]
        draws = max(1, chunk // len(some))
        found = [
            flow.log_prob(
                some.expand(min(draws, samples - k), *some.shape), steered, generator=generator
            )
            for k in range(0, samples, draws)
        ]
        values.append(torch.cat(found))
    logs = torch.cat(values, dim=1)
    value, error = logs.logsumexp(0) - math.log(samples), _relative_error(logs)
    return ImportanceBound(value.reshape(batch), error.reshape(batch))


def _relative_error(logs: Tensor) -> Tensor:
    """Return the standard error of mean(exp(logs)), over the first axis, relative to it."""
    weights = (logs - logs.amax(0)).exp().detach()
    count = len(logs)
    if count == 1:
        return torch.full_like(weights[0], torch.nan)
    return weights.std(0) / weights.mean(0) / count**0.5
