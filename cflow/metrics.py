"""Figures of merit: bits per dimension, and distances between samples.

    bits/dim = -log p(x) / (D log 2)
    sliced W_p^p = mean over directions of the one-dimensional W_p^p of the projections
    energy^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

Source: Bonneel et al. (2015), Sliced and Radon Wasserstein barycenters; Szekely and Rizzo (2013),
Energy statistics.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError
from cflow.typing import Batch, Points

__all__ = ["bits_per_dim", "energy_distance", "sliced_wasserstein"]


def bits_per_dim(log_prob: Batch, event_shape: Sequence[int]) -> Batch:
    """Turn log-likelihoods in nats into bits per dimension, in the units log_prob was taken in.

    Args:
        log_prob: Log-likelihoods, `(*batch,)`; a lower bound gives an upper bound here.
        event_shape: Shape of one point.

    Example:
        >>> bits_per_dim(torch.tensor([-math.log(16.0)]), (2, 2))
        tensor([1.])
    """
    return -log_prob / (math.prod(event_shape) * math.log(2.0))


def sliced_wasserstein(
    x: Points,
    y: Points,
    *,
    projections: int = 512,
    order: int = 2,
    generator: Generator | None = None,
) -> Tensor:
    """Return the sliced Wasserstein distance between two samples, computed by POT.

    Args:
        x: Points `(n, *event)`.
        y: Points `(m, *event)`.
        projections: Random directions; hand in one generator state to compare figures.
        order: The p of W_p.
        generator: Source of the directions.

    Returns:
        The distance, a scalar, in the units of the points.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> sliced_wasserstein(x, x + 3.0)
        tensor(3.)
    """
    import ot  # POT is slow to import

    a, b = _rows("sliced_wasserstein", x, y)
    if projections < 1:
        raise DomainError(f"sliced_wasserstein: projections must be at least 1, got {projections}")
    size = (a.shape[1], projections)
    directions = torch.randn(size, dtype=a.dtype, device=a.device, generator=generator)
    directions = directions / torch.linalg.vector_norm(directions, dim=0)
    distance = ot.sliced_wasserstein_distance(a, b, projections=directions, p=order)
    return cast(Tensor, distance)


def energy_distance(x: Points, y: Points) -> Tensor:
    """Return the energy distance between two samples, without the bias of finite samples.

    Pairs of a point with itself are left out, so the value of two samples of one law scatters
    around zero; it can be negative, and is then that of squared distance below zero.

    Args:
        x: Points `(n, *event)`, two at least.
        y: Points `(m, *event)`, two at least.

    Returns:
        The squared energy distance, a scalar, in the units of the points.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
        tensor(2.)
    """
    a, b = _rows("energy_distance", x, y)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ShapeError(f"energy_distance: needs two points of each at least, got {n} and {m}")
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return 2 * torch.cdist(a, b).mean() - within


def _rows(where: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() < 2 or x.shape[1:] != y.shape[1:] or not len(x) or not len(y):
        raise ShapeError(
            f"{where}: two samples (n, *event) and (m, *event) are needed, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    return x.flatten(1), y.flatten(1)
