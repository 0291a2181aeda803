"""Bridges: flow and score of the Schrodinger bridge between two laws, without simulation.

    x_t = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) e,    e ~ N(0, 1)            Brownian bridge
    velocity:  x1 - x0 + sigma (1 - 2 t) / (2 sqrt(t (1 - t))) e
    score:     -e / (sigma sqrt(t (1 - t)))

Regressed over pairs of the entropic plan with reg = 2 sigma^2 (cost |x0 - x1|^2) they become the
velocity v and the score s of the process nearest to sigma times Brownian motion, and

    dx = (v + sigma^2 s / 2) dt + sigma dW      run forward,
    dx = (v - sigma^2 s / 2) dt + sigma dW      run backward,

have the marginals of the flow dx = v dt.
Source: Tong et al. (2024), Simulation-free Schrodinger bridges via score and flow matching, arXiv
2307.03672, equations 8 to 11.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_positive, expect_unit_times
from cflow.matching.coupling import Coupling
from cflow.matching.dropout import ContextDropout
from cflow.matching.loss import UNIFORM, Regression, regression, squared_error
from cflow.matching.path import Path, PathPoint, expect_ends, expect_noise
from cflow.matching.times import TimeLaw
from cflow.ode import march
from cflow.typing import Batch, Points, Times

__all__ = ["BridgePath", "BridgeProcess", "bridge_error", "bridge_matching"]


class BridgePath(Path):
    """Go from x0 to x1 as Brownian motion that is held at both ends.

    The velocity's noise grows without bound towards both ends of time; within a margin of them it
    keeps the size that it has there, and so does not diverge. Points are exact at all times.

    Args:
        sigma: Diffusion, in units of the points per square root of the unit of time.
        margin: Time at each end within which the velocity's noise grows no further.

    Raises:
        DomainError: Sigma is not positive, or the margin not in (0, 1/2).

    References:
        Tong et al. (2024), arXiv 2307.03672, equation 9.

    Example:
        >>> x0, x1, e = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
        >>> BridgePath(0.5).sample(x0, x1, torch.tensor([0.5]), noise=e).x
        tensor([[0.7500]])
    """

    def __init__(self, sigma: float, *, margin: float = 1e-3) -> None:
        expect_positive("BridgePath", sigma=sigma)
        if not 0 < margin < 0.5:
            raise DomainError(f"BridgePath: margin must lie in (0, 1/2), got {margin}")
        self.sigma = sigma
        self.margin = margin

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        expect_ends("BridgePath.sample", x0, x1, t)
        noise = expect_noise("BridgePath.sample", noise, x1)
        inner = t.clamp(self.margin, 1 - self.margin)
        rate = self.sigma * (0.5 - t) / (inner * (1 - inner)).sqrt()
        s, spread, rate = (_over(c, x1) for c in (t, self.spread(t), rate))
        x = torch.lerp(x0, x1, s) + spread * noise
        return PathPoint(t, x, x1 - x0 + rate * noise)

    def spread(self, t: Times) -> Tensor:
        """Return the standard deviation about the straight line, sigma sqrt(t (1 - t))."""
        return self.sigma * (t * (1 - t)).sqrt()

    def over(self, duration: float) -> "BridgePath":
        """Return the bridge that takes a duration other than 1, its time counted from 0 to 1."""
        return BridgePath(self.sigma * math.sqrt(duration), margin=self.margin)

    @property
    def random(self) -> bool:
        return True


def bridge_matching(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    score: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    path: BridgePath,
    coupling: Coupling,
    x1: Points,
    *,
    x0: Points | None = None,
    context: Tensor | None = None,
    source_context: Tensor | None = None,
    t: Times | None = None,
    times: TimeLaw = UNIFORM,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the squared errors of velocity and score, summed, for each pair.

        |v - target|^2 + |sigma sqrt(t (1 - t)) s + e|^2,   averaged over the entries of the event

    The second is the score's error weighted so that its noise is the same at all times (the
    source's lambda, whose network gives sigma^2 s / 2).

    Args:
        field: The velocity v, called as `field(t, x, context)`.
        score: The score s of the law at t, called likewise.
        path: The bridge.
        coupling: For the Schrodinger bridge `EntropicCoupling(reg=2 * path.sigma**2)`.
        x1: Targets, `(m, *event)`.
        x0: Sources, `(n, *event)`; standard normal by default.
        context: Conditions of the targets.
        source_context: Conditions of the sources, which the coupling alone sees.
        t: Times; by default they are drawn from `times`.
        times: The law of the times.
        dropout: Leaves out conditions.
        generator: Source of sources, pairs, times and noise.

    Returns:
        One loss for each pair, `(m,)`.

    Raises:
        ShapeError: Batches disagree, or a network returns another shape than that of x.
        DomainError: Times outside [0, 1].

    References:
        Tong et al. (2024), arXiv 2307.03672, equations 10 and 11.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.matching import IndependentCoupling
        >>> args = MLPField(2), MLPField(2), BridgePath(1.0), IndependentCoupling()
        >>> bridge_matching(*args, torch.randn(16, 2)).shape
        torch.Size([16])
    """
    asked = regression(
        path,
        coupling,
        x1,
        x0=x0,
        context=context,
        source_context=source_context,
        t=t,
        times=times,
        dropout=dropout,
        generator=generator,
    )
    return squared_error(field, asked) + bridge_error(score, asked, path.spread(asked.t))


def bridge_error(
    score: Callable[[Tensor, Tensor, Tensor | None], Tensor], asked: Regression, spread: Tensor
) -> Batch:
    """Return the weighted squared error of a score, `|spread s + e|^2` averaged over the event.

    Args:
        score: Called as `score(t, x, context)`.
        asked: The step's questions; its noise is e.
        spread: Standard deviation of each point given its pair, `(n,)`.

    Returns:
        One error for each pair, times the pair's weight, `(n,)`.

    Raises:
        DomainError: The path was not random.
        ShapeError: The score has another shape than x.
    """
    if asked.noise is None:
        raise DomainError("bridge_error: the score needs a random path, got one without noise")

    def scaled(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        s = score(t, x, context)
        if s.shape != x.shape:
            raise ShapeError(
                f"bridge_error: the score must have the shape of x, {tuple(x.shape)}, got "
                f"{tuple(s.shape)}"
            )
        return _over(spread, x) * s

    return squared_error(scaled, asked._replace(target=-asked.noise))


class BridgeProcess(nn.Module):
    """The stochastic process that a velocity and a score make, in both directions of time.

    Args:
        field: The velocity, called as `field(t, x, context)`.
        score: The score of the law at t, called likewise.
        sigma: Diffusion; that of the bridge.
        event_dim: Axes of one point.

    Raises:
        DomainError: Sigma is negative, or event_dim.

    References:
        Tong et al. (2024), arXiv 2307.03672, equation 8; Anderson (1982), Reverse-time diffusion
        equation models.

    Example:
        >>> from cflow.field import MLPField
        >>> process = BridgeProcess(MLPField(2), MLPField(2), 0.5)
        >>> with torch.no_grad():
        ...     process.trajectory(torch.randn(7, 2), [0.0, 0.5, 1.0]).shape
        torch.Size([3, 7, 2])
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        score: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        sigma: float,
        *,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf or event_dim < 0:
            raise DomainError(
                "BridgeProcess: sigma and event_dim must be 0 or more and finite, got "
                f"sigma={sigma}, event_dim={event_dim}"
            )
        self.field = field
        self.score = score
        self.sigma = sigma
        self.event_dim = event_dim

    def trajectory(
        self,
        x: Points,
        ts: Sequence[float] | Tensor,
        context: Tensor | None = None,
        *,
        steps: int = 100,
        generator: Generator | None = None,
    ) -> Points:
        """Follow points through given times by Euler and Maruyama's scheme.

        Args:
            x: Points at ts[0], `(*batch, *event)`; for every marginal to be right they must follow
                the law at that time, wherever between 0 and 1 it lies.
            ts: Times in [0, 1], rising or falling; where they fall the process runs backward.
            context: Conditions `(*batch, *context)`.
            steps: Steps for a unit of time.
            generator: Source of the noise.

        Returns:
            The points at each time, `(len(ts), *batch, *event)`.

        Raises:
            DomainError: Times lie outside [0, 1] or turn back, or are fewer than two, or there is
                no step.
            ShapeError: x has fewer axes than one point.
        """
        path = ts.tolist() if isinstance(ts, Tensor) else list(ts)
        where = "BridgeProcess.trajectory"
        turns = {(b > a) - (b < a) for a, b in pairwise(path)}
        if len(path) < 2 or len(turns) != 1 or 0 in turns:
            raise DomainError(
                f"{where}: ts must list two times or more, all rising or all falling, got {path}"
            )
        expect_unit_times(where, torch.tensor(path))
        expect_positive(where, steps=steps)
        if x.dim() < self.event_dim:
            raise ShapeError(
                f"{where}: x needs {self.event_dim} axes for one point, got {tuple(x.shape)}"
            )

        def step(t: float, t_next: float, x: Tensor) -> Tensor:
            return self._step(t, t_next, x, context, generator)

        seen = [x]
        for a, b in pairwise(path):
            count = max(1, math.ceil(steps * abs(b - a) - 1e-9))
            grid = [a + (b - a) * k / count for k in range(count)] + [b]
            seen.append(march(step, seen[-1], grid))
        return torch.stack(seen)

    def _step(
        self,
        t: float,
        t_next: float,
        x: Tensor,
        context: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        now = x.new_full(x.shape[: x.dim() - self.event_dim], t)
        h = t_next - t
        drift = self.field(now, x, context)
        if self.sigma == 0:
            return x + h * drift
        # In both directions the score's part draws points back to the mass: h and it change signs.
        half = math.copysign(0.5 * self.sigma**2, h)
        noise = torch.empty_like(x).normal_(generator=generator)
        drift = drift + half * self.score(now, x, context)
        return x + h * drift + self.sigma * math.sqrt(abs(h)) * noise


def _over(c: Tensor, x: Tensor) -> Tensor:
    """Append axes, so that one number per sample broadcasts against points."""
    return c.reshape(c.shape + (1,) * (x.dim() - c.dim()))
