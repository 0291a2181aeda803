"""Dirichlet flows: tokens as vertices of the simplex, reached through laws of Dirichlet.

    p_t(x | x1 = i) = Dir(1 + s e_i),    s(t) = (1 + end)^t - 1,    v(t, x | i) = c(x_i) (e_i - x)

    c(y) = -s'(t) d/ds I_y(1 + s, K - 1) / (f(y) (1 - y))

with I the regularised incomplete beta function and f its derivative in y, the density of x_i. A
point of the path is a mixture of noise and vertex, x_t = x_0 + b (e_i - x_0) with x_0 ~ Dir(1) and
b ~ Beta(s, K). The source lets s grow evenly; here it grows like a power, because then

    c(y) <= s' / (1 + s) = log(1 + end)

at all times, so that a step of Euler's of up to 1 / log(1 + end) never leaves the simplex.
Source: Stark et al. (2024), Dirichlet flow matching with applications to DNA sequence design, arXiv
2402.05841, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cflow.base import Base
from cflow.errors import expect_positive
from cflow.jump.vertex_dequantize import EvenSimplex, VertexDequantize, nudged
from cflow.jump.vertices import VertexPath, expect_vertices, expect_vocabulary
from cflow.manifold import Euclidean, Projector
from cflow.matching.path import PathPoint, expect_noise
from cflow.typing import Points, Times

__all__ = ["DirichletPath"]

TIMES, SPACING = 64, 0.125  # of the table: its cells in t, and their width in log y
REACH = 20.0  # log y goes so far below -log K; from there on c(y) / y is linear in it
NODES, DECAYS = 64, 45.0  # of the integrals, which are cut where they fell by e^-45


@dataclass(frozen=True, eq=False)
class DirichletPath(VertexPath):
    """Draw points nearer to a vertex the later it is.

    At t = 1 they are near, not at it: the largest entry of a point there is that of another value
    with probability (K - 1) 2^-(1 + end) at most, for K values, and the others have 1 / (K + end)
    each in the mean.

    Attributes:
        vocabulary: How many values K a token has, at least 2.
        end: The s of t = 1.

    Raises:
        DomainError: The vocabulary is below 2, or the end not positive.

    References:
        Stark et al. (2024), arXiv 2402.05841.

    Example:
        >>> path = DirichletPath(3)
        >>> x, middle = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([0.5])
        >>> v = path.velocity(middle, x, torch.tensor([[1.0, 0.0, 0.0]]))
        >>> [round(k, 3) for k in v[0].tolist()]
        [0.915, -0.343, -0.572]
    """

    vocabulary: int
    end: float = 20.0
    cells: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expect_vocabulary("DirichletPath", self.vocabulary)
        expect_positive("DirichletPath", end=self.end)
        object.__setattr__(self, "cells", _cells(self.vocabulary, self.end))

    def concentration(self, t: Times) -> Tensor:
        """Return s(t), from 0 to `end`."""
        return torch.expm1(math.log1p(self.end) * t)

    def evidence(self, t: Times, x: Points) -> Tensor:
        """Return log p_t(x | x1 = i) = s log x_i, up to a constant: what x itself says of its end.

        Logits that are the sum of this and of what a network says, which then only has to learn
        what the other tokens say, are nearer to the posterior from the start.

        Args:
            t: Times `(*batch,)`.
            x: Points `(*batch, *event, vocabulary)`.
        """
        return _beside(self.concentration(t), x) * x.clamp_min(torch.finfo(x.dtype).tiny).log()

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        """Return points of the path; arguments as for any `Path`.

        Args:
            x0: Starts from Dir(1), `(*batch, *event, vocabulary)`.
            x1: Vertices, unit vectors of the same shape.
            t: Times in [0, 1], `(*batch,)`.
            noise: Standard normal noise of the shape of x1.
        """
        where = "DirichletPath.sample"
        expect_vertices(where, x0, x1, t, self.vocabulary)
        s = _beside(self.concentration(t), x1)
        b = nudged(s, expect_noise(where, noise, x1))
        x = x0 + b * (x1 - x0)
        own = (x * x1).sum(-1)
        return PathPoint(t, x, self.rates(t, own)[..., None] * (x1 - x))

    @property
    def random(self) -> bool:
        return True

    def velocity(self, t: Times, x: Points, posterior: Tensor) -> Points:
        pulls = posterior.to(x.dtype) * self.rates(t, x)
        return self.tangent(x, pulls - pulls.sum(-1, keepdim=True) * x)

    def tangent(self, x: Points, u: Points) -> Points:
        return u - u.mean(-1, keepdim=True)

    def base(self, event_shape: Sequence[int]) -> Base:
        return EvenSimplex((*event_shape, self.vocabulary))

    def manifold(self, axes: int) -> Projector:
        return Euclidean(axes + 1)  # flat, and the velocity keeps sums as they are

    def nearest(self, axes: int) -> VertexDequantize:
        return VertexDequantize(self.vocabulary, self.end, event_dim=axes)

    def rates(self, t: Times, y: Tensor) -> Tensor:
        """Return c(y), how fast a point goes to a vertex of which it has the share y.

        Args:
            t: Times `(*batch,)`; beyond [0, 1] those of its ends.
            y: Shares in [0, 1], `(*batch, ...)`.

        Returns:
            Rates per unit of time, of the shape of y, with a continuous derivative in y.
        """
        wide = torch.promote_types(y.dtype, torch.float32)
        cells = self.cells.to(device=y.device, dtype=wide)
        s = _beside(self.concentration(t.to(wide)), y)
        row = _beside(t.to(wide).clamp(0, 1) * len(cells), y)
        y_wide = y.to(wide).clamp_min(torch.finfo(y.dtype).tiny)
        column = y_wide.log() / SPACING + cells.shape[1]
        i = row.detach().floor().clamp_max(len(cells) - 1).long()
        j = column.detach().floor().clamp(0, cells.shape[1] - 1).long()
        cell = cells[i, j].unbind(-2)
        u, w = row - i, column.clamp_min(0) - j
        inside = _horner([_horner(c.unbind(-1), w) for c in cell], u)
        ratio = inside - SPACING / (1 + s) * column.clamp_max(0)  # linear below the first column
        return (math.log1p(self.end) * (1 + s) * ratio * y_wide).to(y.dtype)


def _beside(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(value.shape + (1,) * (x.dim() - value.dim()))


def _horner(coefficients: Sequence[Tensor], u: Tensor) -> Tensor:
    """Return sum_k c_k u^k."""
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * u + c
    return total


@cache
def _cells(vocabulary: int, end: float) -> Tensor:
    """Return c(y) / (s' y) as a cubic in t and log y on each cell of a grid.

    Shape (times, columns, 4, 4), float64: coefficients of powers of where in the cell t is, and of
    where log y is. The last column ends at log y = 0.
    """
    from scipy.interpolate import CubicSpline  # takes longer to import than cflow

    t = np.linspace(0, 1, TIMES + 1)
    columns = math.ceil((math.log(vocabulary) + REACH) / SPACING)
    z = -SPACING * np.arange(columns, -1.0, -1.0)
    value = _ratio(np.expm1(math.log1p(end) * t)[:, None], z, vocabulary - 1)
    in_t = CubicSpline(np.arange(TIMES + 1), value, axis=0).c[::-1]
    both = CubicSpline(np.arange(columns + 1), in_t, axis=2).c[::-1]
    # axes are now the power of log y, the column, the power of t, the time
    return torch.from_numpy(np.ascontiguousarray(both.transpose(3, 1, 2, 0)))


def _ratio(s: np.ndarray, z: np.ndarray, m: int) -> np.ndarray:
    """Return c(y) / (s' y) at y = e^z by quadrature; s and z broadcast.

    With a = 1 + s and E = digamma(a) - digamma(a + m) the mean of log y,

        c / s' = int_0^y u^(a-1) (1-u)^(m-1) (E - log u) du / (y^(a-1) (1-y)^m)

    The integral from y to 1 of log u - E is the same, as both add to zero. Below E the first is
    taken, above the second, so that nothing cancels; u = y e^-r and 1 - u = (1 - y) e^-r make them
    decay like exponentials.
    """
    from scipy.special import digamma

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = 0.5 * (nodes + 1), 0.5 * weights
    a = 1 + s[..., None]
    mean = digamma(a) - digamma(a + m)
    z = z[..., None]
    low = np.minimum(z, mean)
    off = np.log1p(-np.exp(low))
    span = (DECAYS - (m - 1) * off) / a
    r = span * nodes
    fall = np.exp((m - 1) * (np.log1p(-np.exp(low - r)) - off) - a * r - off)
    below = (fall * (mean - low + r) * span) @ weights
    high = np.maximum(z, mean)
    span = (DECAYS - (a - 1) * high) / m
    r = span * nodes
    log_u = np.log1p(np.expm1(high) * np.exp(-r))
    fall = np.exp((a - 1) * (log_u - high) - m * r - high)
    above = (fall * (log_u - mean) * span) @ weights
    return np.where((z < mean)[..., 0], below, above)
