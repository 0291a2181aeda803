"""Paths of tokens: how a data point is taken apart, token by token, into a point of the base.

    mixture:  x_t = x1 with probability kappa(t), else x0, for each token by itself

Given its end x1, a token of a mixture path jumps straight to it, at rate 1 per unit of the clock
s = -log(1 - kappa); the law of x0 does not enter. So a model that gives p(x1 | x_t) gives rates.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595; Campbell et al.
(2024), Generative flows on discrete state-spaces, arXiv 2402.04997, section 3.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cflow.base import TokenBase
from cflow.errors import DomainError, ShapeError, expect_unit_times
from cflow.field import LinearSchedule, PathSchedule
from cflow.jump.clock import Clock, MixtureClock
from cflow.matching import PathPoint
from cflow.typing import Data, Times

__all__ = ["JumpPath", "MixturePath", "over_tokens"]

LINEAR = LinearSchedule()


class JumpPath(ABC):
    """Connect tokens x0 at t = 0 with tokens x1 at t = 1; concrete paths are frozen dataclasses."""

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """How the path counts time."""

    @abstractmethod
    def expect_base(self, base: TokenBase) -> None:
        """Raise `DomainError` unless the path can start from a base."""

    @abstractmethod
    def sample(self, x0: Data, x1: Data, t: Times, *, noise: Tensor) -> PathPoint:
        """Return the tokens of the paths at times t.

        Args:
            x0: Starts, `(*batch, *event)`, integers.
            x1: Ends, of the same shape.
            t: Times in [0, 1], `(*batch,)`.
            noise: Uniform noise in [0, 1), of the shape of x1.

        Returns:
            Times, tokens, and the ends x1, which are what a model predicts.

        Raises:
            ShapeError: Shapes disagree.
            DomainError: A time lies outside [0, 1].
        """

    @abstractmethod
    def law(self, t: Times, x1: Data, start: Tensor) -> Tensor:
        """Return p_t(x | x1) of each token.

        Args:
            t: Times `(*batch,)`.
            x1: Ends `(*batch, *event)`.
            start: The base's marginals, broadcasting to `(*event, states)`.

        Returns:
            Probabilities `(*batch, *event, states)`.
        """

    @abstractmethod
    def rates(self, t: Times, x: Data, posterior: Tensor) -> Tensor:
        """Return the rates of a process whose ends are known by their posterior alone.

            u(x -> y) = sum over x1 of p(x1 | x_t) u(x -> y | x1)

        Args:
            t: Times `(*batch,)`.
            x: Tokens `(*batch, *event)`.
            posterior: p(x1 | x_t) for each token, `(*batch, *event, states)`; a one-hot vector
                gives the rates of the path itself.

        Returns:
            Rates per unit of the clock, of the shape of the posterior; 0 for staying.
        """

    @abstractmethod
    def posterior(self, x: Data, rates: Tensor) -> Tensor:
        """Return the posterior that rates mean towards the end of the path.

        What they leave of 1 is the chance to be there already. Rates that leave a token with more
        than 1 in all belong to no posterior; they are divided by their sum.

        Args:
            x: Tokens `(*batch, *event)`.
            rates: Rates per unit of the clock, `(*batch, *event, states)`.

        Returns:
            Probabilities of the same shape.
        """


@dataclass(frozen=True)
class MixturePath(JumpPath):
    """Keep each token of the base until it jumps to its end.

    Attributes:
        schedule: Any schedule of an affine path; see `MixtureClock` for what kappa it gives.

    Example:
        >>> x0, x1 = torch.tensor([[7, 7, 7]]), torch.tensor([[1, 2, 3]])
        >>> u = torch.tensor([[0.2, 0.9, 0.4]])
        >>> MixturePath().sample(x0, x1, torch.tensor([0.5]), noise=u).x.tolist()
        [[1, 7, 3]]
    """

    schedule: PathSchedule = LINEAR

    @property
    def clock(self) -> MixtureClock:
        return MixtureClock(self.schedule)

    def expect_base(self, base: TokenBase) -> None:
        return  # from any

    def sample(self, x0: Data, x1: Data, t: Times, *, noise: Tensor) -> PathPoint:
        expect_pairs("MixturePath.sample", x0, x1, t)
        kappa = over_tokens(self.clock.kappa(t), x1)
        return PathPoint(t, torch.where(noise < kappa, x1, x0), x1)

    def law(self, t: Times, x1: Data, start: Tensor) -> Tensor:
        left = over_tokens(self.clock.left(t), x1)[..., None]
        end = functional.one_hot(x1, start.shape[-1]).to(left.dtype)
        return left * start.to(left.dtype) + (1 - left) * end

    def rates(self, t: Times, x: Data, posterior: Tensor) -> Tensor:
        return posterior.scatter(-1, x[..., None], 0.0)

    def posterior(self, x: Data, rates: Tensor) -> Tensor:
        """Return the posterior that gives rates, at any time.

        Example:
            >>> path, x = MixturePath(), torch.tensor([2])
            >>> path.posterior(x, torch.tensor([[0.25, 0.5, 0.0]])).tolist()
            [[0.25, 0.5, 0.25]]
        """
        return completed(x, rates)


def completed(x: Tensor, away: Tensor) -> Tensor:
    """Return probabilities of jumps `(*batch, *event, states)` with what they leave for staying."""
    away = away.scatter(-1, x[..., None], 0.0)
    total = away.sum(-1, keepdim=True)
    return (away / total.clamp_min(1)).scatter(-1, x[..., None], (1 - total).clamp_min(0))


def over_tokens(value: Tensor, x: Tensor) -> Tensor:
    """Append axes, so that one number for each point broadcasts against tokens.

    Example:
        >>> over_tokens(torch.zeros(4), torch.zeros(4, 3, 2)).shape
        torch.Size([4, 1, 1])
    """
    return value.reshape(value.shape + (1,) * (x.dim() - value.dim()))


def expect_pairs(where: str, x0: Tensor, x1: Tensor, t: Tensor) -> None:
    """Raise unless starts and ends have one shape, and there is one time for each."""
    if x0.shape != x1.shape or t.shape != x1.shape[: t.dim()]:
        raise ShapeError(
            f"{where}: x0 and x1 need one shape, and t one time for each point, got "
            f"{tuple(x0.shape)}, {tuple(x1.shape)} and {tuple(t.shape)}"
        )
    for name, x in (("x0", x0), ("x1", x1)):
        if x.is_floating_point():
            raise DomainError(f"{where}: {name} must hold integer tokens, got {x.dtype}")
    expect_unit_times(where, t)
