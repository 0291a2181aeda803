"""Paths between a source point and a target point, with the velocity that a field regresses.

    linear: x_t = (1 - t) x0 + t x1,    target = x1 - x0

Source: Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747; Liu et al.
(2023), Flow straight and fast, arXiv 2209.03003, equation 1.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from cflow.errors import ShapeError, expect_unit_times
from cflow.typing import Points, Times

__all__ = ["LinearPath", "Path", "PathPoint"]


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
            DomainError: A time lies outside [0, 1].
        """


class LinearPath(Path):
    """Go straight, at constant speed.

    Example:
        >>> import torch
        >>> LinearPath().sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25])).x
        tensor([[0.2500, 0.2500]])
    """

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        if x0.shape != x1.shape or x1.shape[: t.dim()] != t.shape:
            raise ShapeError(
                "LinearPath.sample: x0 and x1 must have one shape and t its leading axes, got "
                f"x0 {tuple(x0.shape)}, x1 {tuple(x1.shape)}, t {tuple(t.shape)}"
            )
        expect_unit_times("LinearPath.sample", t)
        s = t.reshape(t.shape + (1,) * (x1.dim() - t.dim()))
        return PathPoint(t, (1 - s) * x0 + s * x1, x1 - x0)
