"""Paths along a metric between tokens, and the schedule that is optimal without one.

    p_t(x | x1) = softmax_x(-beta(t) d(x, x1)),    beta(t) = scale (t / (1 - t))^power

From uniform tokens, beta = 0, to x1, beta = infinity, through its neighbours: for grey levels,
ordinal values, or words with embeddings. Among all rates with this law, those of least kinetic
energy only ever come nearer; with the clock s = beta they are

    u(x -> y | x1) = p_t(y | x1) max(0, d(x, x1) - d(y, x1)).

Where no token is nearer than another, the law of least energy is a mixture again, along a great
circle of the square roots of probabilities:

    1 - kappa(t) = sin^2((1 - t) omega) / sin^2(omega),    cos^2(omega) = p_0(x1)

Source: Shaul et al. (2024), Flow matching with general discrete paths: a kinetic-optimal
perspective, arXiv 2412.03487.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.base import TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.field import Coefficients, PathSchedule
from cflow.jump.clock import Clock
from cflow.jump.path import JumpPath, completed, expect_pairs, over_tokens
from cflow.matching import PathPoint
from cflow.typing import Data, Times

__all__ = ["KineticSchedule", "MetricPath"]


@dataclass(frozen=True)
class MetricClock(Clock):
    """Count s = beta(t) = scale (t / (1 - t))^power."""

    scale: float
    power: float

    def __call__(self, t: Times) -> Tensor:
        return self.scale * (t / (1 - t)) ** self.power

    def speed(self, t: Times) -> Tensor:
        return self.scale * self.power * (t / (1 - t)) ** (self.power - 1) / (1 - t).square()

    def time(self, s: Tensor) -> Times:
        ratio = (s / self.scale) ** (1 / self.power)
        return torch.where(torch.isinf(s), 1.0, ratio / (1 + ratio))


@dataclass(frozen=True, eq=False)
class MetricPath(JumpPath):
    """Let tokens come nearer to their ends, from uniform ones; the base is `UniformTokens`.

    Rates take `states` squared numbers for each token, so that it is meant for a few hundred
    states at most.

    Attributes:
        distance: Distances between tokens `(states, states)`, 0 on the diagonal and positive
            elsewhere; best about 1 between neighbours.
        scale: Factor on beta.
        power: How beta rises.

    Raises:
        ShapeError: The distances are no square matrix.
        DomainError: They are not positive off the diagonal, or an option is out of range.

    References:
        Shaul et al. (2024), arXiv 2412.03487.

    Example:
        >>> levels = torch.arange(4.0)
        >>> path = MetricPath((levels[:, None] - levels).abs())
        >>> at_half = path.law(torch.tensor([0.5]), torch.tensor([[1]]), torch.full((4,), 0.25))
        >>> (at_half[0, 0] > 0.04).tolist()
        [True, True, True, False]
    """

    distance: Tensor
    scale: float = 3.0
    power: float = 1.0

    def __post_init__(self) -> None:
        d = self.distance
        if d.dim() != 2 or d.shape[0] != d.shape[1]:
            raise ShapeError(f"MetricPath: distance must be (states, states), got {tuple(d.shape)}")
        apart = ~torch.eye(len(d), dtype=torch.bool, device=d.device)
        if not bool((d.diagonal() == 0).all() and (d[apart] > 0).all() and d.isfinite().all()):
            raise DomainError(
                "MetricPath: distances must be 0 from a token to itself, positive and finite to "
                "all others"
            )
        expect_positive("MetricPath", scale=self.scale, power=self.power)

    @property
    def clock(self) -> Clock:
        return MetricClock(self.scale, self.power)

    def expect_base(self, base: TokenBase) -> None:
        if not isinstance(base, UniformTokens) or base.vocabulary != len(self.distance):
            raise DomainError(
                f"MetricPath: starts from uniform tokens of {len(self.distance)} values, got "
                f"{type(base).__name__} of {base.vocabulary}; take UniformTokens, or a MixturePath"
            )

    def sample(self, x0: Data, x1: Data, t: Times, *, noise: Tensor) -> PathPoint:
        expect_pairs("MetricPath.sample", x0, x1, t)
        below = self._law(t, x1, noise.dtype).cumsum(-1)
        x = torch.searchsorted(below, noise[..., None] * below[..., -1:], right=True)[..., 0]
        return PathPoint(t, x.clamp_max(len(self.distance) - 1), x1)

    def law(self, t: Times, x1: Data, start: Tensor) -> Tensor:
        return self._law(t, x1, torch.promote_types(t.dtype, start.dtype))

    def rates(self, t: Times, x: Data, posterior: Tensor) -> Tensor:
        d = self.distance.to(posterior)
        ends = torch.arange(len(d), device=x.device).expand(*t.shape, len(d))
        law = self._law(t, ends, posterior.dtype)  # (*batch, x1, y)
        law = law.reshape(*t.shape, *(1,) * (x.dim() - t.dim()), *law.shape[-2:])
        nearer = (d[x][..., :, None] - d.T).clamp_min(0)  # (*batch, *event, x1, y)
        return torch.einsum("...i,...iy->...y", posterior, law * nearer)

    def posterior(self, x: Data, rates: Tensor) -> Tensor:
        # at t = 1 a token that ends in y != x goes there at rate d(x, y)
        d = self.distance.to(rates)[x]
        return completed(x, rates / torch.where(d == 0, 1.0, d))

    def _law(self, t: Tensor, x1: Tensor, dtype: torch.dtype) -> Tensor:
        beta = over_tokens(self.clock(t), x1)[..., None].to(dtype)
        d = self.distance.to(x1.device, dtype)[x1]
        exponent = torch.where(d == 0, 0.0, -beta * d)  # at t = 1 beta is infinite
        return exponent.softmax(-1)


@dataclass(frozen=True)
class KineticSchedule(PathSchedule):
    """The mixture of least kinetic energy: kappa = 1 - sin^2((1 - t) omega) / sin^2(omega).

    Attributes:
        chance: Probability p_0(x1) of a token's end under the base: 0 for masks, which gives
            kappa = sin^2(pi t / 2), and 1 / vocabulary for uniform tokens.

    Raises:
        DomainError: The probability lies outside [0, 1).

    References:
        Shaul et al. (2024), arXiv 2412.03487.

    Example:
        >>> round(KineticSchedule()(torch.tensor([0.5])).alpha.item(), 6)
        0.5
    """

    chance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.chance < 1:
            raise DomainError(
                f"KineticSchedule: chance must lie in [0, 1), got {self.chance}; it is the "
                "probability that the base draws a token's end"
            )

    @property
    def omega(self) -> float:
        """The angle between base and data, in radians."""
        return math.acos(math.sqrt(self.chance))

    def __call__(self, t: Times) -> Coefficients:
        w = self.omega
        bottom = math.sin(w) ** 2
        left = ((1 - t) * w).sin().square() / bottom
        slope = w * (2 * (1 - t) * w).sin() / bottom
        return Coefficients(1 - left, left, slope, -slope)

    def time(self, log_ratio: Tensor) -> Times:
        left = torch.sigmoid(-log_ratio)
        return 1 - torch.asin((left.sqrt() * math.sin(self.omega)).clamp_max(1)) / self.omega
