"""The contract of a manifold, with the method names of geoopt, and flat space.

A manifold handed to an `ODE` only needs `projx` and `proju` to sample and train, so geoopt's fit.
A likelihood needs more: our `Manifold` says whether the trace of the projected field's ambient
Jacobian is its Riemannian divergence (true for an embedded manifold with the induced metric).
Source: Mathieu and Nickel (2020), Riemannian continuous normalizing flows, arXiv 2006.10605.
"""

import math
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Euclidean", "Manifold", "Projector"]


@runtime_checkable
class Projector(Protocol):
    """The least that an ODE asks of a manifold; geoopt's manifolds satisfy it."""

    ndim: int

    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest point of the manifold."""
        ...

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent part of u at x."""
        ...


class Manifold(ABC):
    """A space in which points live, with its metric and its volume.

    Attributes:
        ndim: Number of trailing axes that make up one point.
        induced_metric: Whether the metric is that of the ambient space, so that the ambient trace
            of a projected field is its divergence.
    """

    ndim: int
    induced_metric: bool

    @abstractmethod
    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest point of the manifold."""

    @abstractmethod
    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent part of u at x."""

    @abstractmethod
    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Follow the geodesic that leaves x with velocity u for one unit of time."""

    @abstractmethod
    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the velocity at x of the shortest geodesic that reaches y at time one."""

    @abstractmethod
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the geodesic distance, `(*batch,)`."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return the inner product of two tangent vectors at x, `(*batch,)`."""

    @abstractmethod
    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether x lies on the manifold, and by how much it does not."""

    @abstractmethod
    def log_volume(self, shape: tuple[int, ...]) -> float:
        """Return the log of the total volume for points of this shape; inf if unbounded."""


class Euclidean(Manifold):
    """Flat space R^n of any event shape.

    Args:
        ndim: Number of trailing axes of one point: 1 for vectors, 3 for images with channels.

    Example:
        >>> Euclidean().dist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """

    induced_metric = True

    def __init__(self, ndim: int = 1) -> None:
        self.ndim = ndim

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._flat(y - x), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return self._flat(u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        finite = bool(torch.isfinite(x).all())
        return finite, "" if finite else "some coordinates are not finite"

    def log_volume(self, shape: tuple[int, ...]) -> float:
        return math.inf

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(-self.ndim) if self.ndim else x[..., None]
