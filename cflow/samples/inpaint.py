"""Inpainting: draw the missing entries of points whose other entries are known.

    known:    x_t = alpha x + sigma e, put in place after each step
    missing:  along the velocity given the known entries, that of `PosteriorField`

The missing entries then follow their conditional law, wherever p(x1 | x_t) is normal; that is the
approximation which remains. Without that guidance the velocity sees the known entries only through
their noise, and the missing ones answer too late. RePaint repairs this by going over each stretch
of the way again, with noise added in between,

    back:     x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) e,

which keeps the law of the time, so that known and missing entries settle together. They settle as
if the mean of log p_t over the noise of the known entries were the log-density given their clean
values. The two agree as sigma goes to 0, so the error falls with more returns, slowly, for any law.
Source: Lugmayr et al. (2022), RePaint, arXiv 2201.09865, algorithm 1 and section 4.2; for the
guidance see `cflow.samples.inverse`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_finite, expect_floating
from cflow.samples.curved import CurvedHeun
from cflow.samples.inverse import REACH, EndCovariance, PosteriorField, TweedieCovariance
from cflow.samples.options import expect_count
from cflow.samples.sampler import Moment, PathSampler, Plan, Velocity, Walk
from cflow.typing import Points

__all__ = ["inpaint"]

TWEEDIE = TweedieCovariance()


def inpaint(
    field: Velocity,
    x: Points,
    *,
    observed: Tensor,
    context: Tensor | None = None,
    sampler: PathSampler | None = None,
    covariance: EndCovariance | None = TWEEDIE,
    iterations: int = 5,
    reach: float = REACH,
    resamplings: int = 1,
    jump: int = 5,
    generator: Generator | None = None,
    progress: bool = False,
) -> Points:
    """Draw missing entries given the others, which come back bit by bit as they were.

    By default each evaluation is guided by the known entries, at the cost of `iterations` + 1 more
    products with the field's Jacobian, and one run suffices. `covariance=None` needs no gradients;
    then take 10 `resamplings` or more, which cost as many runs.

    Args:
        field: The velocity, called as `field(t, x, context)`; its base must be standard normal.
        x: Points `(n, *event)`; what stands in missing entries does not matter, NaN included. Pass
            `x.expand(n, *event)` to draw several times given the same.
        observed: True at known entries; any shape that broadcasts to that of x.
        context: Conditions `(n, *context)`.
        sampler: How steps are taken, and the path; `CurvedHeun(50)` by default.
        covariance: That of the data given a noisy point, `TweedieCovariance()`; None for RePaint,
            without guidance.
        iterations: Steps of the conjugate gradient method in each evaluation; as many as entries
            are known solve exactly, few are enough.
        reach: Bound of the guidance, as for `PosteriorField`; `inf` for none.
        resamplings: How many times each stretch is gone over, 1 or more.
        jump: Steps that make one stretch, 1 or more.
        generator: Source of all noise.
        progress: Show a bar of the steps where there is a terminal.

    Returns:
        Points of the shape of x, without gradients.

    Raises:
        DomainError: `observed` is not boolean, an observed entry is not finite, or a count is not
            positive.
        ShapeError: `observed` does not broadcast to the points, or as for `PathSampler.sample`.
        SolverError: The points are no longer finite.

    Example:
        >>> from cflow.field import MLPField
        >>> x = torch.tensor([[0.5, float("nan")]]).expand(7, 2)
        >>> drawn = inpaint(MLPField(2), x, observed=~x.isnan())
        >>> drawn.shape, bool((drawn[:, 0] == 0.5).all())
        (torch.Size([7, 2]), True)
    """
    expect_floating("inpaint", x)
    if observed.dtype != torch.bool:
        raise DomainError(
            f"inpaint: observed must be boolean, True where an entry is known, got {observed.dtype}"
        )
    try:
        known = observed.expand(x.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"inpaint: observed must broadcast to the points {tuple(x.shape)}, got "
            f"{tuple(observed.shape)}"
        ) from error
    expect_count("inpaint", iterations=iterations, resamplings=resamplings, jump=jump)
    values = torch.where(known, x, 0.0)
    expect_finite("inpaint", "observed entries of x", values)
    way = CurvedHeun() if sampler is None else sampler
    if covariance is not None:
        field = PosteriorField(
            field,
            lambda z: torch.where(known, z, 0.0),
            y=values,
            noise=0.0,
            schedule=way.plan(0.0, 1.0).schedule,
            covariance=covariance,
            iterations=iterations,
            reach=reach,
        )
    painter = _Painter(way, values, known, resamplings=resamplings, jump=jump)
    with torch.no_grad():
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        drawn = painter.sample(field, noise, context, generator=generator, progress=progress)
        return torch.where(known, x, drawn)


@dataclass(frozen=True, eq=False)
class _Painter(PathSampler):
    """Go over stretches of another sampler's way, and put the known entries in place."""

    sampler: PathSampler
    values: Tensor
    known: Tensor
    resamplings: int
    jump: int

    def plan(self, start: float, end: float) -> Plan:
        schedule, once = self.sampler.plan(start, end)
        times = once[:1]
        for first in range(0, len(once) - 1, self.jump):
            stretch = once[first : first + self.jump + 1]
            times += stretch[1:] + stretch * (self.resamplings - 1)
        return Plan(schedule, times)

    @property
    def random(self) -> bool:
        return True

    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        if then.t < now.t:
            kept = then.alpha / now.alpha
            fresh = math.sqrt(max(0.0, then.sigma**2 - (kept * now.sigma) ** 2))
            x = kept * x + fresh * walk.noise(x)
        else:
            x = self.sampler.step(walk, now, then, x)
        there = then.alpha * self.values + then.sigma * walk.noise(x)
        return torch.where(self.known, there, x)
