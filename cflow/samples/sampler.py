"""The contract of a sampler: carry points along a path by any trained velocity, step by step.

From the velocity v at x both ends of the path follow, as they are expected there, and every sampler
here steps from x by mixing them anew:

    x = alpha x1 + sigma x0,    v = alpha' x1 + sigma' x0,    x_next = alpha_next x1 + sigma_next x0

with x0 = E[x0 | x_t = x] and x1 = E[x1 | x_t = x]. Nothing is divided by a coefficient that
vanishes, as the score is, so both ends of time are as good as any other. What differs between
samplers is how much of the expected x0 is replaced by fresh noise on the way. The solvers of
`cflow.ode` follow the same field; they see a velocity alone, neither its path nor noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.errors import DomainError, ShapeError, SolverError, expect_floating
from cflow.field import (
    Ends,
    LinearSchedule,
    MixtureField,
    PathSchedule,
    PredictionField,
    PredictVelocity,
    RetimedField,
)
from cflow.field.schedule import moving
from cflow.ode import Grid, UniformGrid, march
from cflow.samples.options import expect_count
from cflow.typing import Points

__all__ = [
    "Moment",
    "PathSampler",
    "Plan",
    "SteppingSampler",
    "Velocity",
    "Walk",
    "carried",
    "mixed",
]

LINEAR = LinearSchedule()
UNIFORM = UniformGrid()

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Plan(NamedTuple):
    """Hold the path that a sampler follows, and the times of its steps in the order of travel."""

    schedule: PathSchedule
    times: list[float]


class Moment(NamedTuple):
    """Hold one time of a plan as numbers.

    Attributes:
        t: The time.
        alpha: The data's share there.
        sigma: The noise's share there.
        ask: Where the field is asked: t, or a margin further in where the path stands still at an
            end, because there the velocity tells nothing.
    """

    t: float
    alpha: float
    sigma: float
    ask: float


@dataclass(frozen=True)
class Walk:
    """Hold what one run of a sampler has in common: the field and its path, context and noise."""

    field: Velocity
    schedule: PathSchedule
    context: Tensor | None
    generator: Generator | None

    def ends(self, now: Moment, x: Points) -> Ends:
        """Return both ends of the path as they are expected at x `(n, *event)`: one evaluation.

        Raises:
            ShapeError: The field returns another shape than that of x.
        """
        t = x.new_full(x.shape[:1], now.ask)
        v = self.field(t, x, self.context)
        if v.shape != x.shape:
            raise ShapeError(
                f"PathSampler: the field must return the shape of the points {tuple(x.shape)}, got "
                f"{tuple(v.shape)}"
            )
        return PredictVelocity().ends(t, x, v, self.schedule)

    def noise(self, like: Points) -> Points:
        """Draw standard normal noise of the shape, dtype and device of a tensor."""
        return torch.randn(
            like.shape, dtype=like.dtype, device=like.device, generator=self.generator
        )


class PathSampler(ABC):
    """Turn noise into data along a path; concrete samplers are frozen dataclasses of options.

    Authors write `plan`, `random` and `step`; a sampler that wraps another one hands on its plan.
    """

    @abstractmethod
    def plan(self, start: float, end: float) -> Plan:
        """Return the path and the times of the steps from `start` to `end`, both included."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether noise is drawn on the way; it is standard normal, and so must the base be."""

    @abstractmethod
    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        """Carry points from one moment to the next, writing into no argument.

        Args:
            walk: Gives the expected ends at a point, and noise.
            now: Where x stands.
            then: Where the step ends.
            x: Points `(n, *event)`.

        Returns:
            Points at `then`.
        """

    def sample(
        self,
        field: Velocity,
        x0: Points,
        context: Tensor | None = None,
        *,
        start: float = 0.0,
        end: float = 1.0,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Points:
        """Carry points along the path, from noise to data or, with end < start, back.

        Gradients flow; wrap it in `torch.no_grad()` where none are wanted, as `draw` does.

        Args:
            field: The velocity, called as `field(t, x, context)` with t `(n,)`; trained on the
                sampler's schedule. Other predictions come in through `PredictionField`, other
                schedules through `RetimedField`.
            x0: Points at the start, `(n, *event)`; standard normal noise at start = 0.
            context: Conditions `(n, *context)`.
            start: Time at which x0 stands, in [0, 1].
            end: Time at which the points are wanted, in [0, 1].
            generator: Source of the noise that is drawn on the way.
            progress: Show a bar of the steps where there is a terminal.

        Returns:
            Points at the end, `(n, *event)`.

        Raises:
            DomainError: A time lies outside [0, 1], the grid does not fit, the points are
                integers, or the field is one that knows its schedule and it is another.
            ShapeError: Points without a batch axis, a context of another length, or a field that
                returns another shape.
            SolverError: The points are no longer finite.

        Example:
            >>> from cflow.field import MLPField
            >>> from cflow.samples import CurvedEuler
            >>> CurvedEuler(4).sample(MLPField(2), torch.randn(5, 2)).shape
            torch.Size([5, 2])
        """
        where = f"{type(self).__name__}.sample"
        expect_floating(where, x0)
        if x0.dim() < 1 or (context is not None and context.shape[:1] != x0.shape[:1]):
            raise ShapeError(
                f"{where}: points and context must share one leading batch axis, got "
                f"{tuple(x0.shape)} and {None if context is None else tuple(context.shape)}; "
                "flatten several batch axes, expand a single condition"
            )
        for name, t in (("start", start), ("end", end)):
            if not 0 <= t <= 1:
                raise DomainError(f"{where}: {name} must lie in [0, 1] (0 = base), got {t}")
        if start == end or not len(x0):
            return x0
        schedule, times = self.plan(start, end)
        _expect_schedule(where, field, schedule)
        walk = Walk(field, schedule, context, generator)
        silent = None if progress else True  # None: silent where there is no terminal
        with tqdm(total=len(times) - 1, desc="steps", disable=silent, leave=False) as bar:

            def step(now: Moment, then: Moment, x: Tensor) -> Tensor:
                x = self.step(walk, now, then, x)
                bar.update()
                return x

            x = march(step, x0, _moments(schedule, times))
        bad = ~torch.isfinite(x.flatten(1) if x.dim() > 1 else x[:, None]).all(1)
        if bool(bad.any()):
            raise SolverError(
                f"{where}: {int(bad.sum())} of {len(x)} samples are not finite at t={end:g}, the "
                f"first is number {int(bad.nonzero()[0])}; check that the field is finite from "
                f"t={start:g} on and was trained on {schedule!r}, or take more steps"
            )
        return x


@dataclass(frozen=True)
class SteppingSampler(PathSampler):
    """A sampler with a schedule and a grid of its own; what differs is the step.

    Attributes:
        steps: Number of steps, at least 1.
        schedule: The path that the field was trained on.
        grid: Where the steps fall from start to end; a `TimeGrid` has its own number of them.

    Raises:
        DomainError: `steps` is not a whole number of at least 1.
    """

    steps: int = 50
    schedule: PathSchedule = LINEAR
    grid: Grid = UNIFORM

    def __post_init__(self) -> None:
        expect_count(type(self).__name__, steps=self.steps)

    def plan(self, start: float, end: float) -> Plan:
        low, high = min(start, end), max(start, end)
        shares = self.grid.shares(self.steps, low, high)[1:-1]
        times = [low, *(low + (high - low) * s for s in shares), high]
        return Plan(self.schedule, times if start <= end else times[::-1])


def mixed(ends: Ends, then: Moment, kept: float, fresh: float, noise: Tensor | None) -> Tensor:
    """Return alpha x1 + sigma (kept x0 + fresh noise): the mixture that every step ends in."""
    x = then.alpha * ends.x1 + (then.sigma * kept) * ends.x0
    return x if noise is None else x + (then.sigma * fresh) * noise


def carried(
    walk: Walk, now: Moment, then: Moment, x: Tensor, *, kept: float, fresh: float, order: int
) -> Tensor:
    """Take the step that all samplers share, by freezing x1 over it.

        order 1: x1 as expected at the start of the step
        order 2: the mean of that and of x1 as expected where the first try ends, with the same
                 noise; x0 = (x - alpha x1) / sigma then follows from x, and the step is repeated

    Given x1, the rest x - alpha x1 = sigma x0 of a point follows a linear equation, which the step
    solves exactly; so it is stable however strong the noise is. Order 2 is Heun's scheme, of weak
    order 2 for noise that does not depend on the point. It costs two evaluations, save for steps to
    or from a time without noise, where the ends are known.
    """
    ends = walk.ends(now, x)
    noise = walk.noise(x) if fresh and then.sigma else None
    ahead = mixed(ends, then, kept, fresh, noise)
    if order == 1 or now.sigma == 0 or then.sigma == 0:
        return ahead
    x1 = 0.5 * (ends.x1 + walk.ends(then, ahead).x1)
    return mixed(Ends((x - now.alpha * x1) / now.sigma, x1), then, kept, fresh, noise)


def _expect_schedule(where: str, field: Velocity, schedule: PathSchedule) -> None:
    """Raise `DomainError` for a field that says its schedule where that is not the sampler's."""
    own = None
    if isinstance(field, PredictionField | MixtureField):
        own = field.schedule
    if isinstance(field, RetimedField):
        own = field.new
    if own is not None and own != schedule:
        raise DomainError(
            f"{where}: the field belongs to {own!r} and the sampler follows {schedule!r}; give the "
            "sampler schedule=..., or wrap the field in RetimedField(field, old, new)"
        )


def _moments(schedule: PathSchedule, times: list[float]) -> list[Moment]:
    t = torch.tensor(times, dtype=torch.float64)
    c = schedule(t)
    columns = (times, c.alpha.tolist(), c.sigma.tolist(), moving(schedule, t).tolist())
    return [Moment(*row) for row in zip(*columns, strict=True)]
