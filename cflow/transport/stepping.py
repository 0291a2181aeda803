"""How a solver, which knows flat space only, steps on a manifold: what it carries, and projects.

    flat:         y = x,        dy/dt = v
    projected:    y = x,        dy/dt = v(projx(x)),                    after a step x <- projx(x)
    exponential:  y = (a, u),   x = exp_a(u),  du/dt = d/dt log_a(x),   after a step a <- x, u <- 0

The last is a Runge-Kutta scheme in the normal coordinates of the point a where the step starts
(Runge-Kutta-Munthe-Kaas on a group): any tableau keeps its order, an adaptive solver controls the
error of u, a length, and the state never leaves the manifold.
Source: Hairer, Lubich and Wanner (2006), Geometric numerical integration, chapter IV; Munthe-Kaas
(1999), High order Runge-Kutta methods on manifolds, Applied Numerical Mathematics 29; Falorsi and
Forre (2020), Neural ordinary differential equations on manifolds, arXiv 2006.06663.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.manifold import Euclidean, Manifold, Projector

__all__ = ["Stepping", "stepping"]

Leaves = tuple[Tensor, ...]


class Stepping(ABC):
    """Turn points into what a solver carries, and back; concrete ones are frozen.

    Attributes:
        leaves: Number of tensors that stand for the points.
        projects: Whether anything is to be done after a step.
        between: Whether states may be read between steps.
    """

    leaves: int
    projects: bool
    between: bool

    @abstractmethod
    def start(self, x: Tensor) -> Leaves:
        """Return the leaves of points."""

    @abstractmethod
    def point(self, y: Leaves) -> Tensor:
        """Return the points of leaves, on the manifold."""

    @abstractmethod
    def slope(self, y: Leaves, x: Tensor, v: Tensor) -> Leaves:
        """Return how fast the leaves change where their points x move with velocity v."""

    @abstractmethod
    def project(self, y: Leaves) -> Leaves:
        """Return the leaves from which the next step starts."""


@dataclass(frozen=True)
class _Flat(Stepping):
    leaves = 1
    projects = False
    between = True

    def start(self, x: Tensor) -> Leaves:
        return (x,)

    def point(self, y: Leaves) -> Tensor:
        return y[0]

    def slope(self, y: Leaves, x: Tensor, v: Tensor) -> Leaves:
        return (v,)

    def project(self, y: Leaves) -> Leaves:
        return y


@dataclass(frozen=True)
class _Projected(Stepping):
    manifold: Projector

    leaves = 1
    projects = True
    between = True

    def start(self, x: Tensor) -> Leaves:
        return (x,)

    def point(self, y: Leaves) -> Tensor:
        return self.manifold.projx(y[0])

    def slope(self, y: Leaves, x: Tensor, v: Tensor) -> Leaves:
        return (v,)

    def project(self, y: Leaves) -> Leaves:
        return (self.manifold.projx(y[0]),)


@dataclass(frozen=True)
class _Exponential(Stepping):
    manifold: Manifold

    leaves = 2
    projects = True
    between = False  # two steps have no common coordinates

    def start(self, x: Tensor) -> Leaves:
        return x, torch.zeros_like(x)

    def point(self, y: Leaves) -> Tensor:
        return self.manifold.expmap(y[0], y[1])

    def slope(self, y: Leaves, x: Tensor, v: Tensor) -> Leaves:
        return torch.zeros_like(v), self.manifold.log_rate(y[0], y[1], x, v)

    def project(self, y: Leaves) -> Leaves:
        return self.start(self.manifold.projx(self.point(y)))  # projx: rounding does not add up


def stepping(manifold: Projector) -> Stepping:
    """Return how solvers step on a manifold.

    Example:
        >>> from cflow.manifold import Sphere
        >>> stepping(Sphere(steps="exponential")).leaves
        2
    """
    if isinstance(manifold, Euclidean):
        return _Flat()
    if isinstance(manifold, Manifold) and manifold.steps == "exponential":
        return _Exponential(manifold)
    return _Projected(manifold)
