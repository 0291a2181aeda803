"""One explicit Runge-Kutta step on flat leaves, and the states between its two ends.

    k_i = f(t_i, y + h sum_j a_ij k_j),    y_next = y + h sum_i b_i k_i

The step size h is a number for all samples, or one for each. The order of the arithmetic does not
depend on the batch, so a field that works row by row gives each row the same bits in any company.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cflow.ode.problem import Problem
from cflow.ode.tableau import Tableau, Terms

__all__ = ["Method", "RungeKutta", "Step", "Width", "advance", "between", "stages", "widths"]

Width: TypeAlias = float | list[Tensor]
"""A step size: one number, or for each leaf a tensor that broadcasts against it."""


class Step(NamedTuple):
    """Hold what one step gave.

    Attributes:
        carry: What the next step starts from.
        y: The state at the start of the step.
        y_next: The state at its end.
        slopes: Slopes k_i, each a list of leaves.
        error: Error of y_next, leaf by leaf, over h; None without an estimate.
        evaluations: Evaluations of the field.
    """

    carry: list[Tensor]
    y: list[Tensor]
    y_next: list[Tensor]
    slopes: list[list[Tensor]]
    error: list[Tensor] | None
    evaluations: int


class Method(ABC):
    """A one-step method: what it carries from step to step, and how it steps.

    Attributes:
        nodes: Times at which a step asks the field, as shares of the step.
    """

    nodes: tuple[float, ...]

    @abstractmethod
    def start(self, y: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        """Return what the first step starts from, given the slope at y."""

    @abstractmethod
    def resume(self, carry: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        """Return what a step starts from after a stop, given the slope there."""

    @abstractmethod
    def state(self, carry: list[Tensor]) -> list[Tensor]:
        """Return the state in what is carried."""

    @abstractmethod
    def step(
        self,
        problem: Problem,
        carry: list[Tensor],
        args: tuple[Any, ...],
        times: Sequence[Tensor],
        h: Width,
    ) -> Step:
        """Take one step; `times` are those of `nodes`."""


@dataclass(frozen=True)
class RungeKutta(Method):
    """Step with a tableau, carrying state and slope: the slope is asked once for each state."""

    tableau: Tableau

    @property
    def nodes(self) -> tuple[float, ...]:  # type: ignore[override]
        """The tableau's nodes, and the end of the step for the slope there."""
        return (0.0, *self.tableau.c) if self.tableau.fsal else (0.0, *self.tableau.c, 1.0)

    def start(self, y: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        return [*y, *slope]

    def resume(self, carry: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        return [*self.state(carry), *slope]

    def state(self, carry: list[Tensor]) -> list[Tensor]:
        return carry[: len(carry) // 2]

    def step(
        self,
        problem: Problem,
        carry: list[Tensor],
        args: tuple[Any, ...],
        times: Sequence[Tensor],
        h: Width,
    ) -> Step:
        count = len(carry) // 2
        y, slope = carry[:count], carry[count:]
        y_next, slopes = stages(self.tableau, problem, args, times, h, y, k1=slope)
        evaluations = self.tableau.stages - 1
        error = None
        if self.tableau.error is not None:
            with torch.no_grad():
                error = combine(self.tableau.estimate, slopes)
        if problem.project is not None:
            y_next = problem.project(y_next)
        if problem.project is not None or not self.tableau.fsal:
            slope = problem.f(times[-1], y_next, args)
            evaluations += 1
        else:
            slope = slopes[-1]
        return Step([*y_next, *slope], y, y_next, slopes, error, evaluations)


def stages(
    tableau: Tableau,
    problem: Problem,
    args: tuple[Any, ...],
    times: Sequence[Tensor],
    h: Width,
    y: list[Tensor],
    *,
    k1: list[Tensor] | None = None,
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Run one explicit step of size h from y; return the next state and all slopes.

    `k1` hands in the first slope where the caller has it. With a tableau that is first same as
    last, the last slope is that of the next state.
    """
    slopes = [problem.f(times[0], y, args) if k1 is None else k1]
    stage = y
    for row, t in zip(tableau.sums, times[1:], strict=False):
        stage = advance(y, h, row, slopes)
        slopes.append(problem.f(t, stage, args))
    return stage if tableau.fsal else advance(y, h, tableau.result, slopes), slopes


def advance(y: list[Tensor], h: Width, terms: Terms, slopes: list[list[Tensor]]) -> list[Tensor]:
    """Return y + h sum_i w_i k_i, leaf by leaf, each leaf in its own dtype."""
    if isinstance(h, list):
        change = combine(terms, slopes)
        if len(y) == 1:
            return [torch.addcmul(y[0], h[0], change[0])]
        return [torch.addcmul(leaf, w, d) for leaf, w, d in zip(y, h, change, strict=True)]
    out = []
    for index, leaf in enumerate(y):
        for k, weight in terms:
            leaf = torch.add(leaf, slopes[k][index], alpha=h * weight)
        out.append(leaf)
    return out


def combine(terms: Terms, slopes: list[list[Tensor]]) -> list[Tensor]:
    """Return sum_i w_i k_i, leaf by leaf."""
    add = torch.add
    (first, weight), *rest = terms
    out = []
    for index in range(len(slopes[0])):
        total = slopes[first][index] * weight
        for k, w in rest:
            total = add(total, slopes[k][index], alpha=w)
        out.append(total)
    return out


def widths(h: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Shape one step size for each sample `(batch,)` to multiply each leaf."""
    return [h.to(leaf.dtype).reshape(h.shape + (1,) * (leaf.dim() - 1)) for leaf in leaves]


def between(tableau: Tableau, step: Step, h: Width, share: np.ndarray) -> list[Tensor]:
    """Return the states at shares of a step, one share for each row.

    Follows the tableau's own polynomials; else the cubic through both ends and their slopes; for
    order 1, the straight line.

    Args:
        tableau: The method of the step.
        step: A step whose slopes include that of its end (first same as last, or appended).
        h: Its size.
        share: `(rows,)`, 0 at the start and 1 at the end.
    """
    powers = np.stack([share, share**2, share**3, share**4])
    if tableau.dense is not None:
        weights = np.asarray(tableau.dense) @ powers
        gain = np.zeros_like(share)
    elif tableau.order == 1:
        weights, gain = np.zeros((len(step.slopes), len(share))), share
    else:  # Hermite: y + gain (y_next - y) + h (w_0 k_first + w_last k_last)
        gain = 3 * powers[1] - 2 * powers[2]
        weights = np.zeros((len(step.slopes), len(share)))
        weights[0] += powers[0] - 2 * powers[1] + powers[2]
        weights[-1] += powers[2] - powers[1]
    out = []
    for index, (leaf, end) in enumerate(zip(step.y, step.y_next, strict=True)):
        table = (
            torch.from_numpy(np.concatenate([weights, gain[None]])).to(leaf.dtype).to(leaf.device)
        )
        table = table.reshape(*table.shape, *(1,) * (leaf.dim() - 1))
        change = sum(
            (w * k[index] for w, k in zip(table[:-1], step.slopes, strict=True)),
            torch.zeros_like(leaf),
        )
        width = h[index] if isinstance(h, list) else h
        out.append(leaf + table[-1] * (end - leaf) + width * change)
    return out
