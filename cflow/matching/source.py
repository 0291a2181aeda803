"""Where source points come from: a base law, a function, or standard normal noise.

x0 ~ source,    points of the shape, dtype and device of the targets
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from cflow.base import Base
from cflow.errors import ShapeError
from cflow.matching.batch import noise

__all__ = ["Law", "draw_sources"]

Law: TypeAlias = Base | Callable[[int, Generator | None], Tensor] | None
"""A base, a function `(n, generator) -> (n, *event)`, or None for standard normal noise."""


def draw_sources(
    where: str, law: Law, n: int, *, like: Tensor, generator: Generator | None = None
) -> Tensor:
    """Draw n source points that can be paired with given targets; no gradients.

    Args:
        where: Name of the caller, for errors.
        law: What is drawn from; a base must live on the device of the targets.
        n: Number of points.
        like: Targets, `(m, *event)`, which give shape, dtype and device.
        generator: Source of the randomness.

    Returns:
        Points `(n, *event)`.

    Raises:
        ShapeError: The law gives points of another shape, or another number of them.

    Example:
        >>> uniform = lambda n, generator: torch.rand(n, 2, generator=generator)
        >>> draw_sources("page", uniform, 5, like=torch.zeros(1, 2)).shape
        torch.Size([5, 2])
    """
    shape = (n, *like.shape[1:])
    if law is None:
        return noise(torch.randn, shape, generator, like.device, like.dtype)
    with torch.no_grad():
        drawn = (
            law.sample((n,), generator=generator) if isinstance(law, Base) else law(n, generator)
        )
    if drawn.shape != shape:
        raise ShapeError(
            f"{where}: {n} sources must have the shape of the targets, {shape}, got "
            f"{tuple(drawn.shape)} from {type(law).__name__}"
        )
    return drawn.to(like)
