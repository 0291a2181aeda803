"""Tokens as vertices: paths of points that end where one token is certain.

    p_t(x | x1),    v(t, x) = sum_i p(x1 = i | x) v(t, x | x1 = i)

A point has one number for each value of each token, `(*event, vocabulary)`: the probabilities of
that value, or their roots. It starts anywhere and comes to a vertex, where one of them is 1; its
token is the largest on the way. The velocity of all data is the mean of that to each vertex, so a
network that predicts the vertex, as one of a jump process does, gives an ODE.
Source: Stark et al. (2024), Dirichlet flow matching, arXiv 2402.05841, section 3; Davis et al.
(2024), Fisher flow matching, arXiv 2405.14664.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from cflow.base import Base
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Manifold, Projector
from cflow.matching.path import Path, expect_ends
from cflow.transport import Transport
from cflow.typing import Points, Times

__all__ = ["SideBySide", "VertexPath"]


class VertexPath(Path):
    """A path from noise to vertices; concrete ones are frozen dataclasses.

    Attributes:
        vocabulary: How many values a token has, at least 2.
    """

    vocabulary: int

    @abstractmethod
    def velocity(self, t: Times, x: Points, posterior: Tensor) -> Points:
        """Return the mean velocity, given how likely each vertex is.

        Args:
            t: Times `(*batch,)`.
            x: Points `(*batch, *event, vocabulary)`.
            posterior: p(x1 | x), of the shape of x.
        """

    @abstractmethod
    def tangent(self, x: Points, u: Points) -> Points:
        """Return the part of u that moves x along the space of points."""

    @abstractmethod
    def base(self, event_shape: Sequence[int]) -> Base:
        """Return the law at t = 0, of points for tokens of this shape."""

    @abstractmethod
    def manifold(self, axes: int) -> Projector:
        """Return where an ODE moves points whose tokens have this many axes."""

    @abstractmethod
    def nearest(self, axes: int) -> Transport:
        """Return what turns points into tokens, and back where there is a way back."""


class SideBySide:
    """Points of one manifold beside each other, for solvers: it samples, and has no likelihood.

    Args:
        part: The manifold of each point.
        ndim: Number of axes of all, those of the part last.
    """

    def __init__(self, part: Manifold, ndim: int) -> None:
        self.part = part
        self.ndim = ndim

    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest points."""
        return self.part.projx(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent parts of u at x."""
        return self.part.proju(x, u)


def expect_vocabulary(where: str, vocabulary: int) -> None:
    """Raise `DomainError` for a token with fewer than two values."""
    if vocabulary < 2:
        raise DomainError(f"{where}: vocabulary must be at least 2, got {vocabulary}")


def expect_vertices(where: str, x0: Tensor, x1: Tensor, t: Tensor, vocabulary: int) -> None:
    """Raise unless both ends have one entry for each value of a token, and one shape."""
    expect_ends(where, x0, x1, t)
    if x1.dim() <= t.dim() or x1.shape[-1] != vocabulary:
        raise ShapeError(
            f"{where}: points must end in an axis of {vocabulary} values, got {tuple(x1.shape)}"
        )
