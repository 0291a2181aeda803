"""Adams-Bashforth methods: one evaluation a step at order 2 or 3, for cheap few-step sampling.

    y_{n+1} = y_n + h_n sum_j w_j f_{n-j},    w_j = int_0^1 l_j(s) ds

with l_j the Lagrange polynomials through the last times, so that steps may have any sizes.
Source: Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, III.1, III.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.ode.fixed import Carry, FixedStep
from cflow.ode.problem import Problem
from cflow.ode.step import advance, stages
from cflow.ode.tableau import BOGACKI_SHAMPINE, HEUN, MIDPOINT, Tableau, Terms
from cflow.ode.ticks import Tick

__all__ = ["AdamsBashforth2", "AdamsBashforth3"]


@dataclass(frozen=True, repr=False)
class AdamsBashforth2(FixedStep):
    """Order 2, one evaluation a step; the first step is Euler's, which keeps the order.

    Example:
        >>> import torch
        >>> solution = AdamsBashforth2(50).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> round(solution.y.item(), 3), int(solution.nfe)
        (0.368, 50)
    """

    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    memory: ClassVar[int] = 1

    def _advance(
        self, problem: Problem, tick: Tick, carry: Carry
    ) -> tuple[list[Tensor], list[list[Tensor]], int]:
        slope = carry.slope or problem.f(tick.times[0], carry.y, problem.args)
        y = advance(carry.y, tick.h, _weights(tick, carry), [slope, *carry.past])
        return y, [slope], int(carry.slope is None)

    @property
    def _interpolant(self) -> Tableau:
        return HEUN


@dataclass(frozen=True, repr=False)
class AdamsBashforth3(FixedStep):
    """Order 3, one evaluation a step and one more; starts with a midpoint step, then order 2.

    Example:
        >>> import torch
        >>> solution = AdamsBashforth3(50).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> round(solution.y.item(), 5), int(solution.nfe)
        (0.36788, 51)
    """

    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5)
    memory: ClassVar[int] = 2

    def _advance(
        self, problem: Problem, tick: Tick, carry: Carry
    ) -> tuple[list[Tensor], list[list[Tensor]], int]:
        known = carry.slope is not None
        if not carry.past:
            y, slopes = stages(
                MIDPOINT, problem, problem.args, tick.times, tick.h, carry.y, k1=carry.slope
            )
            return y, slopes[:1], 2 - known
        slope = carry.slope or problem.f(tick.times[0], carry.y, problem.args)
        y = advance(carry.y, tick.h, _weights(tick, carry), [slope, *carry.past])
        return y, [slope], 1 - known

    @property
    def _interpolant(self) -> Tableau:
        return BOGACKI_SHAMPINE


def _weights(tick: Tick, carry: Carry) -> Terms:
    """Return the numbers and weights of the slopes at hand, newest first."""
    if not carry.past:
        return ((0, 1.0),)
    r = tick.ratios[0]
    if len(carry.past) == 1:
        return ((0, 1 + 0.5 / r), (1, -0.5 / r))
    q = r + tick.ratios[1]  # the three times stand at 0, -r and -q, in units of this step
    newest = 1 + (r + q) / (2 * r * q) + 1 / (3 * r * q)
    middle = -(q / 2 + 1 / 3) / (r * (q - r))
    oldest = (r / 2 + 1 / 3) / (q * (q - r))
    return ((0, newest), (1, middle), (2, oldest))
