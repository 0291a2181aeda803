"""Costs of a coupling: what it costs to send each source to each target.

    squared Euclidean: |x0 - x1|^2,    geodesic: dist(x0, x1)^power

A cost is any callable `(x0, x1) -> (n, m)`; these two are ready made.
Source: Villani (2009), Optimal transport: old and new, chapter 6; Chen and Lipman (2024), Flow
matching on general geometries, arXiv 2302.03660, for the manifolds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_finite, expect_positive
from cflow.matching.batch import precise

__all__ = ["Cost", "GeodesicCost", "Metric", "SquaredEuclidean", "cost_matrix"]

Cost: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Sources `(n, *event)` and targets `(m, *event)` to finite costs `(n, m)`."""

EXACT = (torch.float32, torch.float64)
FEW = 32  # entries of an event up to which differences beat a matrix product, and lose no digits


@runtime_checkable
class Metric(Protocol):
    """What a geodesic cost asks of a manifold; ours and geoopt's satisfy it."""

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Return distances `(*batch,)`; the batch axes of x and y broadcast."""
        ...


@dataclass(frozen=True)
class SquaredEuclidean:
    """Give |x0 - x1|^2, summed over all axes of the event, in float64.

    Example:
        >>> SquaredEuclidean()(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[25.,  1.]], dtype=torch.float64)
    """

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        if x0.device.type == "cpu" and x0.numel() <= FEW * len(x0) and x0.dtype in EXACT:
            from scipy.spatial.distance import cdist

            # NumPy's side is one thread: waking torch's pool can take longer than a small solve.
            a, b = _free(x0).numpy(), _free(x1).numpy()
            return torch.from_numpy(
                cdist(a.reshape(len(a), -1), b.reshape(len(b), -1), "sqeuclidean")
            )
        a, b = _double(x0).reshape(len(x0), -1), _double(x1).reshape(len(x1), -1)
        centre = b.mean(0)  # the squares of far points would swallow their differences
        a, b = a - centre, b - centre
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        return torch.addmm(squares, a, b.T, alpha=-2).clamp_(min=0)


@dataclass(frozen=True)
class GeodesicCost:
    """Give the distance on a manifold to some power, of every source to every target.

    Args:
        manifold: Anything with `dist`, ours or geoopt's.
        power: 2 for the cost whose optimal paths are geodesics at constant speed.

    Raises:
        DomainError: The power is not positive.

    Example:
        >>> from cflow.manifold import Euclidean
        >>> GeodesicCost(Euclidean(), power=1.0)(torch.zeros(2, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[5.],
                [5.]])
    """

    manifold: Metric
    power: float = 2.0

    def __post_init__(self) -> None:
        expect_positive("GeodesicCost", power=self.power)

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        return self.manifold.dist(x0[:, None], x1[None]) ** self.power


def cost_matrix(where: str, cost: Cost, x0: Tensor, x1: Tensor) -> Tensor:
    """Return the costs in float64, and refuse any that are not finite.

    Args:
        where: Name of the caller, for errors.
        cost: The cost, called without gradients.
        x0: Sources, `(n, *event)`.
        x1: Targets, `(m, *event)`.

    Returns:
        Costs `(n, m)` on the device of the points; float32 where a device has no float64.

    Raises:
        ShapeError: The cost is not a matrix `(n, m)`.
        DomainError: Points or costs are not finite.

    Example:
        >>> cost_matrix("page", SquaredEuclidean(), torch.zeros(1, 1), torch.ones(1, 1))
        tensor([[1.]], dtype=torch.float64)
    """
    c = cost(_free(x0), _free(x1))
    if c.shape != (len(x0), len(x1)):
        raise ShapeError(
            f"{where}: the cost must return one number for each source and target, shape "
            f"{(len(x0), len(x1))}, got {tuple(c.shape)}"
        )
    c = _double(c)
    total = float(c.numpy().sum() if c.device.type == "cpu" else c.sum())
    if not -float("inf") < total < float("inf"):
        expect_finite(where, "x0", x0)
        expect_finite(where, "x1", x1)
        raise DomainError(
            f"{where}: the cost of {int((~torch.isfinite(c)).sum())} of {c.numel()} pairs is not "
            "finite; to forbid pairs give their classes as the context, and context_weight=inf"
        )
    return c


def _free(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x


def _double(x: Tensor) -> Tensor:
    return _free(x).to(precise(x.device))
