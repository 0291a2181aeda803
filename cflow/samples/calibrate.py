"""Choose solver and time grid for a trained flow and a number of evaluations, without training.

    error(solver) = sqrt(E |x_solver - x_fine|^2 / event size),    same noise for both

Every candidate spends the same number of evaluations. Standard solvers on standard grids are tried
first; the best of them are tuned to the field (`tuning.py`) on half of the noise, and what counts
is the error on the other half, so the choice is never worse than the standard ones by more than
chance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.manifold import Euclidean
from cflow.ode import (
    RK4,
    AdamsBashforth2,
    AdamsBashforth3,
    CosineGrid,
    Dopri5,
    EDMGrid,
    Euler,
    Grid,
    Heun,
    Midpoint,
    Solver,
    UniformGrid,
)
from cflow.samples.options import expect_count
from cflow.samples.tuning import Slope, scheme_of, tuned_scheme
from cflow.state import State
from cflow.transport import ODE, Leap, Transport, instantaneous, with_solver
from cflow.transport.around import around_ode

__all__ = ["Calibration", "calibrate"]

GRIDS = (UniformGrid(), CosineGrid(), EDMGrid(), EDMGrid(sigma_max=10.0, rho=3.0))
TUNED = 3  # candidates from which the search for times and weights starts


@dataclass(frozen=True)
class Calibration:
    """Say which solver was chosen, and how far every candidate stayed from the fine solve.

    Attributes:
        solver: The choice, for `flow.with_solver` or `Sampler`.
        error: Its root mean squared error on held-out noise, per entry, in the units of the points
            at the end of the ODE.
        errors: That of all candidates, best first.
    """

    solver: Solver
    error: float
    errors: dict[str, float]


def calibrate(
    flow: Flow,
    steps: int = 4,
    *,
    context: Tensor | None = None,
    n: int = 512,
    reference: Solver | None = None,
    tune: bool = True,
    batch: int = 256,
    generator: Generator | None = None,
    progress: bool = False,
) -> Calibration:
    """Return the solver that follows a fine solve most closely with a number of evaluations.

    Args:
        flow: A flow with one ODE, or one `Leap`, in evaluation mode; parts before it are run as
            they are, parts after it do not count.
        steps: Evaluations of the field for one sample.
        context: Conditions to draw with, `(n, *context_shape)`: those that the sampler will meet.
        n: Draws, half of them to tune on and half to choose by.
        reference: The fine solve; `Dopri5(rtol=1e-5, atol=1e-5)` by default. A distilled flow is
            right at its own few steps alone: give their solver.
        tune: Search times and weights as well; without it the choice is one of the standard ones.
        batch: Draws that are solved together.
        generator: Source of the noise.
        progress: Show a bar of the candidates where there is a terminal.

    Returns:
        The choice and the errors of all candidates.

    Raises:
        DomainError: There is not exactly one ODE or leap, a number is out of range, or the context
            is not one for each draw.
        SolverError: The fine solve failed.

    References:
        Karras et al. (2022), arXiv 2206.00364, for the grids; Shaul et al. (2024), arXiv
        2403.01329.

    Example:
        >>> from cflow import recipes
        >>> flow = recipes.cnf(2, hidden_features=(16,)).eval()
        >>> result = calibrate(flow, 2, n=64, generator=torch.Generator().manual_seed(0))
        >>> result.error == min(result.errors.values())
        True
    """
    expect_count("calibrate", steps=steps, batch=batch)
    expect_count("calibrate", least=4, n=n)
    if context is not None and len(context) != n:
        raise DomainError(
            f"calibrate: give one condition for each of the n={n} draws, got {len(context)}"
        )
    before, ode, _ = around_ode("calibrate", instantaneous(flow.transport))
    leaps = [leap for leap in flow.transport.modules() if isinstance(leap, Leap)]
    part: Transport = leaps[0] if leaps else ode
    with torch.no_grad():
        x0 = flow.base.sample((n,), context, generator=generator)
        x0 = before.push(State(x0), context, generator=generator).x
    fine = with_solver(ode, reference or Dopri5(rtol=1e-5, atol=1e-5))
    x1 = _pushed(fine, x0, context, batch)
    half = n // 2
    tuning, held = slice(0, half), slice(half, n)
    rows = lambda which: (x0[which], x1[which], None if context is None else context[which])

    def error(solver: Solver, which: slice) -> float:
        a, b, c = rows(which)
        miss = _pushed(with_solver(part, solver), a, c, batch) - b
        return miss.square().mean().sqrt().item()

    standard = list(_leaps(steps) if isinstance(part, Leap) else _solvers(steps))
    bar = lambda solvers, name: tqdm(
        solvers, desc=name, disable=None if progress else True, leave=False
    )
    errors = {solver: error(solver, tuning) for solver in bar(standard, "solvers")}
    ranked = sorted(errors, key=lambda solver: errors[solver])
    found: list[Solver] = []
    if tune:
        found = [
            solver
            for start in bar(_starts(ranked, part, steps), "tuning")
            if (solver := _tuned(part, start, *rows(tuning), batch)) is not None
        ]
    held_errors = {solver: error(solver, held) for solver in (*ranked, *found)}
    order = sorted(held_errors, key=lambda solver: held_errors[solver])
    return Calibration(
        order[0], held_errors[order[0]], {str(solver): held_errors[solver] for solver in order}
    )


def _solvers(steps: int) -> Iterator[Solver]:
    """Give all standard solvers that spend so many evaluations."""
    for grid in GRIDS:
        yield Euler(steps, grid)
        if steps > 1:
            yield AdamsBashforth2(steps, grid)
        if steps > 2:
            yield AdamsBashforth3(steps - 1, grid)
        if steps % 2 == 0:
            yield Midpoint(steps // 2, grid)
            yield Heun(steps // 2, grid)
        if steps % 4 == 0:
            yield RK4(steps // 4, grid)


def _leaps(steps: int) -> Iterator[Solver]:
    """Give all ways to leap with at most so many evaluations: fewer leaps may err less."""
    grids: tuple[Grid, ...] = GRIDS
    for count in range(1, steps + 1):
        for grid in grids if count > 1 else grids[:1]:
            yield Euler(count, grid)


def _starts(ranked: list[Solver], part: Transport, most: int) -> list[Solver]:
    """Return the best candidates from which a search can start, each a method of its own."""
    if isinstance(part, ODE) and not isinstance(part.manifold, Euclidean):
        return []  # points that are projected after each step are no sums of slopes
    starts: dict[str, Solver] = {}
    for solver in ranked:
        scheme = scheme_of(solver)
        if scheme is not None and (isinstance(part, ODE) or len(scheme.times) == most):
            starts.setdefault(str(scheme), solver)
    return [*starts.values()][:TUNED]


def _tuned(
    part: Transport,
    start: Solver,
    x0: Tensor,
    x1: Tensor,
    context: Tensor | None,
    batch: int,
) -> Solver | None:
    scheme = scheme_of(start)
    assert scheme is not None
    slope: Slope = part.flow_map if isinstance(part, Leap) else _at_start(cast(ODE, part).field)
    scheme = tuned_scheme(slope, scheme, x0, x1, context, batch=batch)
    rising = all(b - a > 1e-6 for a, b in pairwise([*scheme.times.tolist(), 1.0]))
    return scheme.solver() if rising else None


def _at_start(field: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Slope:
    """See a velocity as a slope of steps, which knows their end but does not ask."""
    return lambda r, t, x, context: field(r, x, context)


def _pushed(part: Transport, x0: Tensor, context: Tensor | None, batch: int) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                part.push(
                    State(x0[k : k + batch]), None if context is None else context[k : k + batch]
                ).x
                for k in range(0, len(x0), batch)
            ]
        )
