"""Paths on manifolds: along geodesics, in closed form where the manifold has one.

    x_t = exp_{x0}(k(t) log_{x0}(x1)),      target = k'(t) times the velocity of that geodesic

with k = alpha of a schedule, k(0) = 0 and k(1) = 1.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, section 3.2.
"""

from abc import abstractmethod

from torch import Tensor

from cflow.errors import DomainError
from cflow.field import LinearSchedule, PathSchedule
from cflow.manifold import Geodesics, Manifold, Projector, expect_on, geodesic_by_jvp
from cflow.matching.path import Path, PathPoint, expect_ends
from cflow.typing import Points, Times

__all__ = ["GeodesicPath", "ManifoldPath", "expect_source"]


class ManifoldPath(Path):
    """A path that stays on a manifold, whose sources have to be drawn there as well."""

    @property
    @abstractmethod
    def manifold(self) -> Projector:
        """Where it runs."""

    @property
    @abstractmethod
    def schedule(self) -> PathSchedule:
        """How far it has got at which time: alpha."""


class GeodesicPath(ManifoldPath):
    """Follow the shortest geodesic from source to target.

    Args:
        manifold: Where the points live; one of `cflow.manifold`, or of geoopt, whose velocity is
            had by forward differentiation.
        schedule: Its alpha(t) says how far along the geodesic x_t is.

    Raises:
        DomainError: On use, ends that lie off the manifold, or that no single shortest geodesic
            joins, such as antipodes on a sphere.

    References:
        Chen and Lipman (2024), arXiv 2302.03660.

    Example:
        >>> import torch
        >>> from cflow.manifold import Torus
        >>> x0, x1, t = torch.tensor([[350.0]]), torch.tensor([[20.0]]), torch.tensor([0.5])
        >>> point = GeodesicPath(Torus(360.0)).sample(x0, x1, t)
        >>> point.x, point.target
        (tensor([[5.]]), tensor([[30.]]))
    """

    def __init__(self, manifold: Geodesics, schedule: PathSchedule | None = None) -> None:
        self._manifold = manifold
        self._schedule = LinearSchedule() if schedule is None else schedule

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        where, space = "GeodesicPath.sample", self._manifold
        expect_ends(where, x0, x1, t)
        expect_on(where, "x0", space, x0)
        expect_on(where, "x1", space, x1)
        c = self._schedule(t)
        u = space.logmap(x0, x1)
        if isinstance(space, Manifold):
            x, velocity = space.geodesic(x0, u, c.alpha)
        else:
            x, velocity = geodesic_by_jvp(space, x0, u, c.alpha)
        rate = c.d_alpha.reshape(t.shape + (1,) * (x1.dim() - t.dim()))
        return PathPoint(t, x, rate * velocity)

    @property
    def random(self) -> bool:
        return False

    @property
    def manifold(self) -> Geodesics:
        return self._manifold

    @property
    def schedule(self) -> PathSchedule:
        return self._schedule


def expect_source(where: str, path: Path) -> None:
    """Raise `DomainError` for a path on a manifold, where normal noise is no source."""
    if isinstance(path, ManifoldPath):
        raise DomainError(
            f"{where}: the path runs on {path.manifold}, where standard normal noise does not lie; "
            "give sources, x0=flow.base.sample((len(x1),))"
        )
