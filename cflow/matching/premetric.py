"""Paths where no geodesic is known: down the gradient of a distance, simulated.

    dx/dt = k'(t)/k(t) d grad d / |grad d|^2,   d = d(x, x1),    so that d(x_t, x1) = k(t) d(x0, x1)

with k = 1 - alpha of a schedule, from 1 to 0. All it asks of a manifold is a premetric: a distance
that is zero only from a point to itself, such as the spectral ones of a mesh.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, equation 13.
"""

import torch
from torch import Tensor

from cflow.errors import expect_positive
from cflow.field import LinearSchedule, PathSchedule
from cflow.manifold import Manifold, expect_on
from cflow.matching.geodesic import ManifoldPath
from cflow.matching.path import PathPoint, expect_ends
from cflow.typing import Points, Times

__all__ = ["PremetricPath"]


class PremetricPath(ManifoldPath):
    """Follow the gradient of a manifold's distance from source to target, by small steps.

    A step goes as far along the gradient as the distance says it should be by then, so errors of
    one step are made good by the next. No gradient passes through the steps.

    Args:
        manifold: Where the points live.
        steps: Steps from the source to x_t.
        schedule: Its alpha(t) says what share of the distance is left behind.

    Raises:
        DomainError: steps is not positive; on use, ends that lie off the manifold.

    References:
        Chen and Lipman (2024), arXiv 2302.03660.

    Example:
        >>> from cflow.manifold import Euclidean
        >>> path = PremetricPath(Euclidean(), steps=1)
        >>> point = path.sample(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
        >>> point.x, point.target
        (tensor([[1.5000, 2.0000]]), tensor([[3., 4.]]))
    """

    def __init__(
        self, manifold: Manifold, *, steps: int = 50, schedule: PathSchedule | None = None
    ) -> None:
        expect_positive("PremetricPath", steps=steps)
        self._manifold = manifold
        self.steps = steps
        self._schedule = LinearSchedule() if schedule is None else schedule

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        where, space = "PremetricPath.sample", self._manifold
        expect_ends(where, x0, x1, t)
        expect_on(where, "x0", space, x0)
        expect_on(where, "x1", space, x1)
        with torch.no_grad():
            whole, x = space.dist(x0, x1), x0
            for k in range(1, self.steps + 1):
                left = 1 - self._schedule(t * (k / self.steps)).alpha
                dist, down = self._down(x, x1)
                x = space.projx(space.expmap(x, self._over(dist - left * whole, x) * down))
            c = self._schedule(t)
            dist, down = self._down(x, x1)
            # the distance that is left over k(t) is the whole way, also where both are zero
            speed = c.d_alpha * torch.where(c.alpha < 1, dist / (1 - c.alpha), whole)
            return PathPoint(t, x, self._over(speed, x) * down)

    @property
    def random(self) -> bool:
        return False

    @property
    def manifold(self) -> Manifold:
        return self._manifold

    @property
    def schedule(self) -> PathSchedule:
        return self._schedule

    def _down(self, x: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance, and minus its gradient over the square of the gradient's length."""
        with torch.enable_grad():
            there = x.detach().requires_grad_()
            dist = self._manifold.dist(there, x1.detach())
            (slope,) = torch.autograd.grad(dist.sum(), there)
        slope = self._gradient(x, slope)
        square = self._manifold.inner(x, slope, slope)
        floor = torch.finfo(x.dtype).tiny
        factor = torch.where(square > 0, -1 / square.clamp_min(floor), 0.0)
        return dist.detach(), self._over(factor, x) * slope

    def _gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Turn partial derivatives into the Riemannian gradient, by the metric in a frame."""
        space, axis = self._manifold, x.dim() - self._manifold.ndim
        frame = space.frame(x)
        if frame is None:
            event = x.shape[axis:]
            unit = torch.eye(event.numel(), dtype=x.dtype, device=x.device)
            vectors = unit.reshape(-1, *event).expand(*x.shape[:axis], -1, *event)
        else:
            vectors = frame[0]
        point = x.unsqueeze(axis).unsqueeze(axis)
        one, other = vectors.unsqueeze(axis + 1), vectors.unsqueeze(axis)
        g = space.inner(*torch.broadcast_tensors(point, one, other))
        along = (slope.unsqueeze(axis) * vectors).flatten(axis + 1).sum(-1)
        weights = torch.linalg.solve(g, along)
        return (self._over(weights, x) * vectors).sum(axis)

    def _over(self, factor: Tensor, x: Tensor) -> Tensor:
        return factor.reshape(factor.shape + (1,) * self._manifold.ndim)
