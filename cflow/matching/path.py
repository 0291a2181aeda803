"""Paths between a source point and a target point, with the velocity that a field regresses.

    linear: x_t = (1 - t) x0 + t x1,                            target = x1 - x0
    affine: x_t = alpha(t) x1 + sigma(t) x0 + noise e,          target = alpha' x1 + sigma' x0

Source: Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747; Liu et al.
(2023), Flow straight and fast, arXiv 2209.03003, equation 1; Tong et al. (2024), Improving and
generalizing flow-based generative models, arXiv 2302.00482, equation 14.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_unit_times
from cflow.field import LinearSchedule, PathSchedule
from cflow.typing import Points, Times

__all__ = ["AffinePath", "LinearPath", "Path", "PathPoint", "SchedulePath"]


class PathPoint(NamedTuple):
    """Hold one point of a path: its time `(*batch,)`, itself, and the velocity there."""

    t: Tensor
    x: Tensor
    target: Tensor


class Path(ABC):
    """Connect x0 at t = 0 with x1 at t = 1."""

    @abstractmethod
    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        """Return the points of the paths at times t.

        Args:
            x0: Starts, `(*batch, *event)`.
            x1: Ends, of the same shape.
            t: Times in [0, 1], `(*batch,)`.
            noise: Standard normal noise of the shape of x1, for paths that are random.

        Returns:
            Times, points and velocities.

        Raises:
            ShapeError: Shapes disagree.
            DomainError: A time lies outside [0, 1], or a random path got no noise.
        """

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether `sample` needs noise."""


class SchedulePath(Path):
    """A path whose points are mixed from their ends by a schedule.

    Only along these can a network predict x1, noise or score instead of the velocity.
    """

    @property
    @abstractmethod
    def schedule(self) -> PathSchedule:
        """The coefficients alpha and sigma."""


class LinearPath(SchedulePath):
    """Go straight, at constant speed.

    Example:
        >>> import torch
        >>> LinearPath().sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25])).x
        tensor([[0.2500, 0.2500]])
    """

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        expect_ends("LinearPath.sample", x0, x1, t)
        s = t.reshape(t.shape + (1,) * (x1.dim() - t.dim()))
        return PathPoint(t, torch.lerp(x0, x1, s), x1 - x0)

    @property
    def random(self) -> bool:
        return False

    @property
    def schedule(self) -> PathSchedule:
        return LinearSchedule()


class AffinePath(SchedulePath):
    """Mix the ends by any schedule, and blur the point by noise of constant scale.

    With `LinearSchedule()` and noise this is the path of conditional flow matching; with
    `LipmanSchedule(sigma_min)` that of Lipman et al., whose target is finite at t = 1.

    Args:
        schedule: The coefficients.
        noise: Standard deviation of the blur, in units of the points.

    Example:
        >>> import torch
        >>> from cflow.field import CosineSchedule
        >>> path = AffinePath(CosineSchedule())
        >>> path.sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([1.0])).x
        tensor([[1., 1.]])
    """

    def __init__(self, schedule: PathSchedule, *, noise: float = 0.0) -> None:
        if not 0 <= noise < float("inf"):
            raise DomainError(f"AffinePath: noise must be 0 or positive and finite, got {noise}")
        self._schedule = schedule
        self.noise = noise

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        expect_ends("AffinePath.sample", x0, x1, t)
        c = self._schedule(t).over(x1)
        x = c.alpha * x1 + c.sigma * x0
        if self.random:
            x = x + self.noise * expect_noise("AffinePath.sample", noise, x)
        return PathPoint(t, x, c.d_alpha * x1 + c.d_sigma * x0)

    @property
    def random(self) -> bool:
        return self.noise > 0

    @property
    def schedule(self) -> PathSchedule:
        return self._schedule


def expect_ends(where: str, x0: Tensor, x1: Tensor, t: Tensor) -> None:
    """Raise unless the ends have one shape, and t its leading axes with values in [0, 1]."""
    if x0.shape != x1.shape or x1.shape[: t.dim()] != t.shape:
        raise ShapeError(
            f"{where}: x0 and x1 must have one shape and t its leading axes, got "
            f"x0 {tuple(x0.shape)}, x1 {tuple(x1.shape)}, t {tuple(t.shape)}"
        )
    expect_unit_times(where, t)


def expect_noise(where: str, noise: Tensor | None, x: Tensor) -> Tensor:
    """Return the noise of a random path, or raise if there is none of the shape of its points."""
    if noise is None or noise.shape != x.shape:
        got = None if noise is None else tuple(noise.shape)
        raise DomainError(
            f"{where}: this path is random and needs standard normal noise of shape "
            f"{tuple(x.shape)}, got {got}; pass noise=torch.randn_like(x1)"
        )
    return noise
