"""Numerical inverse of increasing maps of one number, entry by entry, with exact gradients.

A bracket is kept around each root; every step is Newton's where that stays inside and at least
halves the step before the last, and bisection otherwise (Press et al., Numerical Recipes, section
9.4, `rtsafe`). An entry that has settled stays where it is, so that its root does not depend on its
batch mates; the search ends with the last of them, in a traced graph after a fixed number of steps.
At the root x* the result is one Newton step in which x* is a constant,

    x = x* - (f(x*; theta) - y) / f'(x*; theta),

whose derivatives to y and theta are those of the implicit function theorem: dx/dy = 1 / f',
dx/dtheta = -(df/dtheta) / f'. First derivatives are exact, higher ones are not.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cflow.errors import SolverError, plain

__all__ = ["bracket", "root"]

Move: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def root(
    where: str,
    push: Move,
    y: Tensor,
    theta: Tensor,
    *,
    low: Tensor | float | None = None,
    high: Tensor | float | None = None,
    steps: int = 60,
) -> tuple[Tensor, Tensor]:
    """Invert an increasing map and return x with log|dx/dy|.

    Args:
        where: Who asks, for errors.
        push: The map: `push(x, theta)` returns y and log dy/dx.
        y: Its values.
        theta: Its parameters, `(*y.shape, parameters)`.
        low: A number known to lie below each root; None searches for one.
        high: A number known to lie above.
        steps: Evaluations of the map at most; halving alone gains 2^-steps.

    Raises:
        SolverError: An entry with a finite y was not reached within rounding. Values are looked at
            only where they are known: not inside a traced graph or under `torch.func`.

    Example:
        >>> cube = lambda x, theta: (x + x**3, torch.log1p(3 * x**2))
        >>> root("cube", cube, torch.tensor([2.0]), torch.zeros(1, 0))[0]
        tensor([1.])
    """
    with torch.no_grad():
        target, fixed = y.detach(), theta.detach()
        if low is None or high is None:
            low, high = bracket(push, target, fixed)
        start = _search(push, target, fixed, torch.as_tensor(low), torch.as_tensor(high), steps)
    value, log_slope = push(start, theta)
    x = start - (value - y) * (-log_slope).exp()
    reached, log_slope = push(x, theta)
    _expect_reached(where, x, y, reached, log_slope)
    return x, -log_slope


def _search(push: Move, y: Tensor, theta: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    low = torch.zeros_like(y) + low.detach().to(y.dtype)
    high = torch.zeros_like(y) + high.detach().to(y.dtype)
    x = (low + high) / 2
    last = before = high - low
    settled, eps = torch.zeros_like(y, dtype=torch.bool), torch.finfo(y.dtype).eps
    for _ in range(steps):
        value, log_slope = push(x, theta)
        error = value - y
        below = error < 0
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        newton = x - error * (-log_slope).exp()
        good = (newton >= low) & (newton <= high) & ((newton - x).abs() <= before.abs() / 2)
        # A small error alone says little where the map is flat, a small step where it is steep.
        near = (newton - x).abs() <= 64 * eps * x.abs().clamp_min(1)
        settled = settled | (near & (error.abs() <= eps * y.abs().clamp_min(1)))
        new = torch.where(settled, x, torch.where(good, newton, (low + high) / 2))
        before, last, x = last, new - x, new
        settled = settled | (last.abs() <= eps / 2 * x.abs().clamp_min(1))
        if plain() and bool(settled.all()):
            break
    return x


def bracket(push: Move, y: Tensor, theta: Tensor, *, moves: int = 12) -> tuple[Tensor, Tensor]:
    """Return numbers around the roots of maps of the whole line, by steps that grow fourfold.

    Args:
        push: The map.
        y: Its values.
        theta: Its parameters.
        moves: Times that both ends move out, to 4^moves (1 + |y|) from y in the end.
    """
    size = 1 + y.abs()
    low, high = y - size, y + size
    for k in range(moves):
        reach = 4.0 ** (k + 1) * size
        above, below = push(low, theta)[0] > y, push(high, theta)[0] < y
        if plain() and not bool((above | below).any()):
            break
        low, high = torch.where(above, y - reach, low), torch.where(below, y + reach, high)
    return low, high


def _expect_reached(where: str, x: Tensor, y: Tensor, reached: Tensor, log_slope: Tensor) -> None:
    """Raise unless the map of x is y, up to the rounding of y, of x, and of the map's terms."""
    if not plain():
        return
    eps = torch.finfo(x.dtype).eps
    scale = 1 + y.abs() + (1 + x.abs()) * log_slope.exp()
    missed = torch.isfinite(y) & ~((reached - y).abs() <= 512 * eps * scale)
    if not bool(missed.any()):
        return
    place = tuple(torch.nonzero(missed)[0].tolist())
    raise SolverError(
        f"{where}: the inverse was not reached at entry {place}: y = {y[place].item():g}, the map "
        f"of x = {x[place].item():g} is {reached[place].item():g} ({int(missed.sum())} of "
        f"{missed.numel()} entries); check that its parameters are finite, or compute in float64"
    )
