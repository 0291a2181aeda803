"""What a network predicts along an affine path, and the way from each prediction to each other.

    x = alpha x1 + sigma x0,    v = alpha' x1 + sigma' x0,    score = -x0 / sigma

Any of velocity, x1, noise (x0) and score tells, together with x and t, both ends; the ends tell the
rest. So a network trained on one of them samples and scores as a velocity field. The score is that
of a standard normal base. Divisions by a coefficient that vanishes at an end of time take its value
`MARGIN` before that end.
Source: Lipman et al. (2024), Flow matching guide and code, arXiv 2412.06264, table 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cflow.errors import ShapeError
from cflow.field.field import Field
from cflow.field.schedule import MARGIN as HELD
from cflow.field.schedule import PathSchedule, moving
from cflow.typing import Batch, Points, Times

__all__ = [
    "Ends",
    "PredictNoise",
    "PredictScore",
    "PredictVelocity",
    "PredictX1",
    "Prediction",
    "PredictionField",
    "convert",
]

MARGIN = 1e-3  # of time


class Ends(NamedTuple):
    """Hold the two ends of a path as they are expected at one of its points."""

    x0: Tensor
    x1: Tensor


class Prediction(ABC):
    """Say what a network's output means; concrete ones are frozen dataclasses."""

    @abstractmethod
    def ends(self, t: Times, x: Points, value: Points, schedule: PathSchedule) -> Ends:
        """Return both ends, from a prediction at x.

        Args:
            t: Times `(*batch,)`.
            x: Points `(*batch, *event)`.
            value: What was predicted there, of the shape of x.
            schedule: The path's coefficients.
        """

    @abstractmethod
    def value(self, t: Times, x0: Points, x1: Points, schedule: PathSchedule) -> Points:
        """Return what is predicted on the path from x0 to x1 at time t: the regression target."""

    @abstractmethod
    def weight(self, t: Times, schedule: PathSchedule) -> Batch:
        """Return the factor that turns its squared error into that of the velocity, `(*batch,)`."""


@dataclass(frozen=True)
class PredictVelocity(Prediction):
    """The velocity alpha' x1 + sigma' x0 itself.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule
        >>> t, x, v = torch.tensor([0.5]), torch.tensor([[1.0]]), torch.tensor([[2.0]])
        >>> PredictVelocity().ends(t, x, v, LinearSchedule())
        Ends(x0=tensor([[0.]]), x1=tensor([[2.]]))
    """

    def ends(self, t: Times, x: Points, value: Points, schedule: PathSchedule) -> Ends:
        c = schedule(moving(schedule, t)).over(x)
        w = c.wronskian
        return Ends((c.d_alpha * x - c.alpha * value) / w, (c.sigma * value - c.d_sigma * x) / w)

    def value(self, t: Times, x0: Points, x1: Points, schedule: PathSchedule) -> Points:
        c = schedule(t).over(x1)
        return c.d_alpha * x1 + c.d_sigma * x0

    def weight(self, t: Times, schedule: PathSchedule) -> Batch:
        return t.new_ones(t.shape)


@dataclass(frozen=True)
class PredictX1(Prediction):
    """The data end x1, the denoised point.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule
        >>> PredictX1().weight(torch.tensor([0.5]), LinearSchedule())
        tensor([4.])
    """

    def ends(self, t: Times, x: Points, value: Points, schedule: PathSchedule) -> Ends:
        sigma = schedule(_inner(t)).over(x).sigma
        return Ends((x - schedule(t).over(x).alpha * value) / sigma, value)

    def value(self, t: Times, x0: Points, x1: Points, schedule: PathSchedule) -> Points:
        return x1

    def weight(self, t: Times, schedule: PathSchedule) -> Batch:
        c = schedule(_inner(t))
        return (c.wronskian / c.sigma).square()


@dataclass(frozen=True)
class PredictNoise(Prediction):
    """The base end x0, the noise.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule
        >>> t, x, noise = torch.tensor([0.5]), torch.tensor([[1.0]]), torch.tensor([[0.0]])
        >>> PredictNoise().ends(t, x, noise, LinearSchedule()).x1
        tensor([[2.]])
    """

    def ends(self, t: Times, x: Points, value: Points, schedule: PathSchedule) -> Ends:
        alpha = schedule(_inner(t)).over(x).alpha
        return Ends(value, (x - schedule(t).over(x).sigma * value) / alpha)

    def value(self, t: Times, x0: Points, x1: Points, schedule: PathSchedule) -> Points:
        return x0

    def weight(self, t: Times, schedule: PathSchedule) -> Batch:
        c = schedule(_inner(t))
        return (c.wronskian / c.alpha).square()


@dataclass(frozen=True)
class PredictScore(Prediction):
    """The score grad log p_t(x) = -x0 / sigma; the base must be standard normal.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule
        >>> x0, x1 = torch.ones(1, 1), torch.zeros(1, 1)
        >>> PredictScore().value(torch.tensor([0.5]), x0, x1, LinearSchedule())
        tensor([[-2.]])
    """

    def ends(self, t: Times, x: Points, value: Points, schedule: PathSchedule) -> Ends:
        # Times a derivative of sigma that is held this near to the end, sigma must be, too.
        noise = -schedule(t.clamp_max(1 - HELD)).over(x).sigma * value
        return PredictNoise().ends(t, x, noise, schedule)

    def value(self, t: Times, x0: Points, x1: Points, schedule: PathSchedule) -> Points:
        return -x0 / schedule(_inner(t)).over(x0).sigma

    def weight(self, t: Times, schedule: PathSchedule) -> Batch:
        c = schedule(_inner(t))
        return (c.wronskian * c.sigma / c.alpha).square()


def convert(
    value: Points,
    t: Times,
    x: Points,
    schedule: PathSchedule,
    *,
    source: Prediction,
    target: Prediction,
) -> Points:
    """Turn one prediction at x into another.

    Args:
        value: What is known, of the shape of x.
        t: Times `(*batch,)`.
        x: Points `(*batch, *event)`.
        schedule: The path's coefficients.
        source: What `value` is.
        target: What is wanted.

    Returns:
        The other prediction, of the shape of x.

    Raises:
        ShapeError: The value has another shape than x, or t is not its leading axes.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule
        >>> t, x, x1 = torch.tensor([0.5]), torch.zeros(1, 2), torch.ones(1, 2)
        >>> convert(x1, t, x, LinearSchedule(), source=PredictX1(), target=PredictVelocity())
        tensor([[2., 2.]])
    """
    if value.shape != x.shape or x.shape[: t.dim()] != t.shape:
        raise ShapeError(
            "convert: the value must have the shape of x and t its leading axes, got "
            f"value {tuple(value.shape)}, x {tuple(x.shape)}, t {tuple(t.shape)}"
        )
    if source == target:
        return value
    return target.value(t, *source.ends(t, x, value, schedule), schedule)


class PredictionField(Field):
    """The velocity field of a network that predicts something else.

    Args:
        net: Called as `net(t, x, context)`; what `matching` trained with the same prediction.
        schedule: The schedule that it was trained on.
        prediction: What its output is.

    Example:
        >>> import torch
        >>> from cflow.field import LinearSchedule, MLPField
        >>> field = PredictionField(MLPField(2), LinearSchedule(), PredictX1())
        >>> field(torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        schedule: PathSchedule,
        prediction: Prediction,
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        value = self.net(t, x, context)
        return convert(value, t, x, self.schedule, source=self.prediction, target=PredictVelocity())


def _inner(t: Tensor) -> Tensor:
    """Keep times a margin away from both ends."""
    return t.clamp(MARGIN, 1 - MARGIN)
