"""Paths where no geodesic is known: down the gradient of a distance, simulated.

    dx/dt = k'(t)/k(t) d grad d / |grad d|^2,   d = d(x, x1),    so that d(x_t, x1) = k(t) d(x0, x1)

with k = 1 - alpha of a schedule, from 1 to 0. All it asks of a manifold is a premetric: a distance
that is zero only from a point to itself, such as the spectral ones of a mesh.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, equation 13.
"""

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_positive, plain
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
        expect_ends("PremetricPath.sample", x0, x1, t)
        return PathPoint(t, *(part[0] for part in self._walked("sample", x0, x1, t[None])))

    def trajectory(self, x0: Points, x1: Points, ts: Times) -> PathPoint:
        """Return the points of each path at several times, all from one simulation of it.

        It takes about as many steps as `sample` does for a single time, and so makes many points
        to train on for little; those of one path are not independent.

        Args:
            x0: Starts, `(*batch, *event)`.
            x1: Ends, of the same shape.
            ts: Rising times in [0, 1] for each path, `(n, *batch)`.

        Returns:
            Times, points and velocities, with an axis for the times in front of all others.

        Raises:
            ShapeError: Shapes disagree.
            DomainError: Times lie outside [0, 1] or turn back; ends lie off the manifold.

        Example:
            >>> from cflow.manifold import Euclidean
            >>> path, ts = PremetricPath(Euclidean()), torch.tensor([[0.0], [0.5], [1.0]])
            >>> path.trajectory(torch.zeros(1, 1), torch.tensor([[8.0]]), ts).x.flatten()
            tensor([0., 4., 8.])
        """
        if not ts.dim() or not len(ts):
            raise ShapeError(
                "PremetricPath.trajectory: ts needs an axis of one time or more in front of those "
                f"of the batch, got {tuple(ts.shape)}"
            )
        many = (len(ts), *x0.shape)
        expect_ends("PremetricPath.trajectory", x0.expand(many), x1.expand(many), ts)
        if plain() and bool((ts.diff(dim=0) < 0).any()):
            raise DomainError("PremetricPath.trajectory: the times of each path must rise")
        return PathPoint(ts, *self._walked("trajectory", x0, x1, ts))

    @torch.no_grad()
    def _walked(self, method: str, x0: Tensor, x1: Tensor, ts: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and velocities at rising times `(n, *batch)`."""
        where, space = f"PremetricPath.{method}", self._manifold
        expect_on(where, "x0", space, x0)
        expect_on(where, "x1", space, x1)
        whole, x, last = space.dist(x0, x1), x0, torch.zeros_like(ts[0])
        dist, down = self._down(x, x1)
        points, velocities = [], []
        between = -(-self.steps // len(ts))
        for t in ts:
            for k in range(1, between + 1):
                left = 1 - self._schedule(last + (t - last) * (k / between)).alpha
                x = space.projx(space.expmap(x, self._over(dist - left * whole, x) * down))
                dist, down = self._down(x, x1)
            points.append(x)
            # d / k is the whole way; the quotient itself would blow up errors of steps near the end
            velocities.append(self._over(self._schedule(t).d_alpha * whole, x) * down)
            last = t
        return torch.stack(points), torch.stack(velocities)

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
        weights = (slope.unsqueeze(axis) * vectors).flatten(axis + 1).sum(-1)
        if not space.orthonormal_frame:
            point = x.unsqueeze(axis).unsqueeze(axis)
            one, other = vectors.unsqueeze(axis + 1), vectors.unsqueeze(axis)
            g = space.inner(*torch.broadcast_tensors(point, one, other))
            weights = torch.linalg.solve(g, weights)
        return (self._over(weights, x) * vectors).sum(axis)

    def _over(self, factor: Tensor, x: Tensor) -> Tensor:
        return factor.reshape(factor.shape + (1,) * self._manifold.ndim)
