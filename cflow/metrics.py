"""Figures of merit: bits per dimension, distances between samples, and how straight a flow is.

    bits/dim = -log p(x) / (D log 2)
    W_p^p = min over couplings of E|X - Y|^p
    sliced W_p^p = mean over directions of the one-dimensional W_p^p of the projections
    energy^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|
    normalised path energy = |E int_0^1 |v(t, x_t)|^2 dt - W_2^2(q0, q1)| / W_2^2(q0, q1)

Source: Peyre and Cuturi (2019), Computational optimal transport, arXiv 1803.00567; Bonneel et al.
(2015), Sliced and Radon Wasserstein barycenters; Szekely and Rizzo (2013), Energy statistics; Tong
et al. (2024), arXiv 2302.00482, section 5.1 (path energy).
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_finite
from cflow.matching.batch import expect_masses
from cflow.matching.exact import network_simplex
from cflow.typing import Batch, Points

__all__ = [
    "bits_per_dim",
    "energy_distance",
    "normalised_path_energy",
    "perplexity",
    "sliced_wasserstein",
    "wasserstein",
]

EXACT_DISTANCE = "donot_use_mm_for_euclid_dist"  # the quick way loses small distances


def bits_per_dim(log_prob: Batch, event_shape: Sequence[int]) -> Batch:
    """Turn log-likelihoods in nats into bits per dimension, in the units log_prob was taken in.

    Of tokens these are bits per token.

    Args:
        log_prob: Log-likelihoods, `(*batch,)`; a lower bound gives an upper bound here.
        event_shape: Shape of one point.

    Example:
        >>> bits_per_dim(torch.tensor([-math.log(16.0)]), (2, 2))
        tensor([1.])
    """
    return -log_prob / (math.prod(event_shape) * math.log(2.0))


def perplexity(log_prob: Batch, event_shape: Sequence[int]) -> Batch:
    """Turn log-likelihoods of tokens in nats into perplexities, exp(-log p / tokens).

    That of a text is the perplexity of the mean over its windows, not the mean of theirs.

    Args:
        log_prob: Log-likelihoods, `(*batch,)`; a lower bound gives an upper bound here.
        event_shape: Shape of one point, such as a length.

    Example:
        >>> round(perplexity(torch.tensor(-4 * math.log(27.0)), (4,)).item(), 3)
        27.0
    """
    return (-log_prob / math.prod(event_shape)).exp()


def wasserstein(
    x: Points,
    y: Points,
    *,
    order: float | int = 2,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return the Wasserstein distance between two clouds of points, exactly, by POT.

    The network simplex takes about n m log(n + m) operations and runs on the CPU: 0.1 s for 800
    points on each side, 1 s for 1400 and 3800. No gradients. Two samples of one law in D dimensions
    lie about n^(-1/D) apart, so a figure means something beside that of a second true sample.

    Args:
        x: Points `(n, *event)`.
        y: Points `(m, *event)`.
        order: The p of W_p, at least 1; the cost is the Euclidean distance to this power.
        weights: Masses of x, `(n,)`, and of y, `(m,)`, not negative and one in sum; None for equal
            ones.

    Returns:
        The distance, a scalar, in the units of the points.

    Raises:
        ShapeError: Event shapes differ, or weights are not one for each point.
        DomainError: order is below 1, points are not finite, or weights are no masses.
        SolverError: The solver did not reach the optimum.

    References:
        Flamary et al. (2021), POT: Python optimal transport; Peyre and Cuturi (2019), arXiv
        1803.00567, section 3.

    Example:
        >>> wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [3.0]]), order=1)
        tensor(3.)
    """
    a, b = _rows("wasserstein", x, y)
    if not order >= 1 or math.isinf(order):
        raise DomainError(f"wasserstein: order must be at least 1 and finite, got {order}")
    expect_finite("wasserstein", "x", a)
    expect_finite("wasserstein", "y", b)
    masses = expect_masses("wasserstein", weights, a, b, sides=("points of x", "points of y"))
    with torch.no_grad():
        far = torch.cdist(a.cpu().double(), b.cpu().double(), compute_mode=EXACT_DISTANCE)
    cost = far.pow(order).numpy()
    p, q = (None if mass is None else mass.cpu().double().numpy() for mass in masses)
    plan = network_simplex("wasserstein", cost, p, q)
    power = float((plan * cost).sum())
    return torch.as_tensor(power ** (1 / order), dtype=x.dtype, device=x.device)


def normalised_path_energy(energy: Tensor, distance: Tensor) -> Tensor:
    """Return how much more energy a flow spends than the shortest way, as a share of the latter.

        |E int_0^1 |v(t, x_t)|^2 dt - W_2^2(q0, q1)| / W_2^2(q0, q1)

    Zero where every point goes straight along the optimal plan, at constant speed.

    Args:
        energy: The mean over starts of the integral of the squared speed along their paths, in
            squared units of the points. The integral is over the path that the flow takes.
        distance: The 2-Wasserstein distance W_2 (not squared) between the two laws, which
            `wasserstein` gives, in the units of the points; broadcast with the energy.

    Raises:
        DomainError: An energy is negative or not finite, or a distance is not positive and finite.

    References:
        Tong et al. (2024), arXiv 2302.00482, section 5.1.

    Example:
        >>> normalised_path_energy(torch.tensor(10.0), torch.tensor(2.0))
        tensor(1.5000)
    """
    if not bool(((energy >= 0) & energy.isfinite()).all()):
        raise DomainError("normalised_path_energy: energies must be finite and not negative")
    if not bool(((distance > 0) & distance.isfinite()).all()):
        raise DomainError(
            "normalised_path_energy: distances must be positive and finite; between equal laws "
            "there is no way to compare with"
        )
    return (energy / distance.square() - 1).abs()


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
