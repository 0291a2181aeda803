"""Flow matching: regress the velocity of a path, without solving an ODE.

    loss = E |v(t, x_t) - target|^2 / event size,    t ~ U[0, 1],  (x0, x1) ~ coupling

Source: Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747, equation 9.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError
from cflow.matching.coupling import Coupling
from cflow.matching.path import Path
from cflow.typing import Batch, Points, Times

__all__ = ["matching"]


def matching(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    path: Path,
    coupling: Coupling,
    x1: Points,
    *,
    x0: Points | None = None,
    context: Tensor | None = None,
    t: Times | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the squared velocity error of each pair, averaged over the entries of the event.

    Args:
        field: The field to be trained, called as `field(t, x, context)`.
        path: How a pair is connected.
        coupling: How sources and targets are paired.
        x1: Targets, `(m, *event)`.
        x0: Sources, `(n, *event)`; standard normal noise of the shape of x1 by default.
        context: Conditions of the targets, `(m, *context)`; they follow their target.
        t: Times in [0, 1], `(m,)`; uniform by default.
        generator: Source of sources, pairs and times.

    Returns:
        One loss for each target, `(m,)`.

    Raises:
        ShapeError: Batches disagree, or the field returns another shape.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.matching import LinearPath, OTCoupling
        >>> matching(MLPField(2), LinearPath(), OTCoupling(), torch.randn(16, 2)).shape
        torch.Size([16])
    """
    if x0 is None:
        x0 = torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
    pairs = coupling(x0, x1, context, generator=generator)
    if t is None:
        t = torch.rand(len(pairs.j), dtype=x1.dtype, device=x1.device, generator=generator)
    point = path.sample(x0[pairs.i], x1[pairs.j], t)
    v = field(point.t, point.x, None if context is None else context[pairs.j])
    if v.shape != point.x.shape:
        raise ShapeError(
            f"matching: the field must return the shape of x, {tuple(point.x.shape)}, got "
            f"{tuple(v.shape)}"
        )
    error = (v - point.target).square().flatten(1).mean(1)
    return error if pairs.weight is None else pairs.weight * error
