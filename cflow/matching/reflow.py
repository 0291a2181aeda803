"""Reflow: pairs made by a trained field, whose straight paths need fewer steps to follow.

    x1 = push(x0),  x0 ~ base;    then match the linear path on the pairs (x0, x1)

Distillation to k steps trains on the times that k Euler steps visit, t in {0, 1/k, ...}.
Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, sections 2.1 and 3.
"""

import torch
from torch import Generator, Tensor

from cflow.base import Base
from cflow.errors import DomainError
from cflow.state import State
from cflow.transport import Transport

__all__ = ["euler_times", "reflow_pairs"]


def reflow_pairs(
    base: Base,
    transport: Transport,
    n: int,
    *,
    batch: int = 1024,
    context: Tensor | None = None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw base points and push them through a trained transport.

    Args:
        base: Law of the sources.
        transport: Usually the trained `ODE`, with the solver that is to be imitated.
        n: Number of pairs.
        batch: Pairs that are pushed together.
        context: Conditions of the pairs, `(n, *context)`.
        generator: Source of the sources.

    Returns:
        Sources and targets, `(n, *event)` each; no gradients.

    Raises:
        DomainError: n or batch is not positive.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> x0, x1 = reflow_pairs(Gaussian(2), Affine(2.0), 10)
        >>> torch.equal(x1, 2 * x0)
        True
    """
    if n < 1 or batch < 1:
        raise DomainError(f"reflow_pairs: n and batch must be positive, got n={n}, batch={batch}")
    with torch.no_grad():
        x0 = base.sample((n,), context, generator=generator)
        targets = [
            transport.push(
                State(x0[k : k + batch]),
                None if context is None else context[k : k + batch],
                generator=generator,
            ).x
            for k in range(0, n, batch)
        ]
    return x0, torch.cat(targets)


def euler_times(n: int, steps: int, *, like: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw times uniformly from the starts of `steps` equal Euler steps, 0, 1/steps, ...

    Args:
        n: Number of times.
        steps: Steps of the sampler that is being distilled.
        like: A tensor whose dtype and device the times take.
        generator: Source of the randomness.

    Returns:
        Times `(n,)`.

    Example:
        >>> euler_times(3, 1, like=torch.zeros(1))
        tensor([0., 0., 0.])
    """
    if steps < 1:
        raise DomainError(f"euler_times: steps must be at least 1, got {steps}")
    index = torch.randint(steps, (n,), device=like.device, generator=generator)
    return index.to(like.dtype) / steps
