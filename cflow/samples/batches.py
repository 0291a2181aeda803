"""Many samples and many log-likelihoods, in batches that bound the memory, with progress bars.

The noise of the base is drawn for all samples up front, so that where nothing else is random one
generator gives the same samples in batches of any size.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.errors import ShapeError, expect_trailing
from cflow.flow import Flow
from cflow.samples.options import expect_count
from cflow.samples.sampled import rebuilt, with_sampler
from cflow.samples.sampler import PathSampler
from cflow.samples.watch import watched
from cflow.typing import Batch, Data, Points

__all__ = ["draw", "log_probs"]


def draw(
    flow: Flow,
    n: int,
    context: Tensor | None = None,
    *,
    sampler: PathSampler | None = None,
    batch: int = 1024,
    generator: Generator | None = None,
    progress: bool = False,
) -> Points:
    """Draw points without gradients, a batch at a time.

    Samplers that draw noise on the way draw it batch by batch, so their results depend on the batch
    size besides the generator.

    Args:
        flow: A flow; its mode, training or evaluation, stays as it is.
        n: Number of points.
        context: One condition `context_shape` for all points, or one for each, `(n,
            *context_shape)`.
        sampler: Carries the points instead of the flow's own solver, see `with_sampler`.
        batch: Points that are carried together.
        generator: Source of the randomness.
        progress: Show bars of the batches, and of each long solve, where there is a terminal.

    Returns:
        Points `(n, *event_shape)`.

    Raises:
        DomainError: n or batch is not a whole number of at least 1, the flow wants a context or
            takes none, or the sampler does not fit the flow.
        ShapeError: The context has another shape.
        SolverError: A solve failed.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.field import MLPField
        >>> from cflow.samples import CurvedEuler
        >>> from cflow.transport import ODE
        >>> flow = Flow(Gaussian(2), ODE(MLPField(2)))
        >>> draw(flow, 10, sampler=CurvedEuler(4), batch=4).shape
        torch.Size([10, 2])
    """
    expect_count("draw", n=n, batch=batch)
    context = _each("draw", flow, n, context)
    carrier = rebuilt(flow, watched(flow.transport)) if progress else flow
    if sampler is not None:
        carrier = with_sampler(flow, sampler, progress=progress)
    with torch.no_grad():
        x0 = flow.base.sample((n,), context, generator=generator)
        push = lambda rows: carrier.push(x0[rows], _rows(context, rows), generator=generator)
        return _in_batches("points", push, n, batch, progress=progress)


def log_probs(
    flow: Flow,
    x: Data,
    context: Tensor | None = None,
    *,
    batch: int = 1024,
    generator: Generator | None = None,
    progress: bool = False,
) -> Batch:
    """Return log-likelihoods in nats without gradients, a batch at a time.

    Estimates and bounds draw their noise batch by batch; exact values do not depend on the size.

    Args:
        flow: A flow; see `flow.likelihood` for what its values are.
        x: Points `(n, *event_shape)`.
        context: One condition `context_shape` for all points, or one for each, `(n,
            *context_shape)`.
        batch: Points that are evaluated together.
        generator: Source of noise for estimates and bounds.
        progress: Show bars of the batches, and of each long solve, where there is a terminal.

    Returns:
        One value per point, `(n,)`.

    Raises:
        DomainError: `batch` is not a whole number of at least 1, or the flow wants a context or
            takes none.
        ShapeError: The points or the context have another shape, or there are no points.
        SolverError: A solve failed.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Chain
        >>> log_probs(Flow(Gaussian(1), Chain()), torch.zeros(3, 1), batch=2)
        tensor([-0.9189, -0.9189, -0.9189])
    """
    expect_count("log_probs", batch=batch)
    expect_trailing("log_probs", "x", x, flow.event_shape)
    n = x.shape[0] if x.dim() == len(flow.event_shape) + 1 else 0
    if not n:
        raise ShapeError(
            f"log_probs: x must have one batch axis before the event shape {flow.event_shape} and "
            f"one point at least, got {tuple(x.shape)}; flatten several batch axes"
        )
    context = _each("log_probs", flow, n, context)
    carrier = rebuilt(flow, watched(flow.transport)) if progress else flow
    with torch.no_grad():
        value = lambda rows: carrier.log_prob(x[rows], _rows(context, rows), generator=generator)
        return _in_batches("log_probs", value, n, batch, progress=progress)


def _in_batches(
    name: str, evaluate: Callable[[slice], Tensor], n: int, batch: int, *, progress: bool
) -> Tensor:
    """Evaluate slices of n rows, and put them together in one tensor made beforehand."""
    silent = None if progress else True  # None: silent where there is no terminal
    with tqdm(total=n, desc=name, disable=silent, leave=False) as bar:
        first = evaluate(slice(0, batch))
        bar.update(len(first))
        if batch >= n:
            return first
        out = first.new_empty((n, *first.shape[1:]))
        out[:batch] = first
        for k in range(batch, n, batch):
            rows = slice(k, min(k + batch, n))
            out[rows] = evaluate(rows)
            bar.update(rows.stop - k)
    return out


def _each(where: str, flow: Flow, n: int, context: Tensor | None) -> Tensor | None:
    """Return one condition for each point; the flow itself refuses one where none belongs."""
    if context is None or flow.context_shape is None:
        return context
    expect_trailing(where, "context", context, flow.context_shape)
    batch = tuple(context.shape[: context.dim() - len(flow.context_shape)])
    if batch not in ((), (n,)):
        raise ShapeError(
            f"{where}: the context must be one condition {flow.context_shape} or one for each of "
            f"the {n} points, {(n, *flow.context_shape)}, got {tuple(context.shape)}"
        )
    return context.expand((n, *flow.context_shape))


def _rows(context: Tensor | None, rows: slice) -> Tensor | None:
    return None if context is None else context[rows]
