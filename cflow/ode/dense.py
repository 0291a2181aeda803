"""Dense output: the solution between its steps as a function of time.

Each accepted step is kept with its slopes; a query finds the step that holds its time, sample by
sample, and evaluates that step's interpolant. Gradients pass to the states and slopes of the steps.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.ode.problem import Problem, Time
from cflow.ode.step import Step, Width, between
from cflow.ode.tableau import Tableau

__all__ = ["Dense", "Piece"]


class Piece(NamedTuple):
    """Hold one step of some samples.

    Attributes:
        rows: Numbers of the samples, `(rows,)`.
        start: Times at which the step starts.
        end: Times at which it ends.
        step: States and slopes.
        h: Its size.
        tableau: The method that made it.
    """

    rows: np.ndarray
    start: np.ndarray
    end: np.ndarray
    step: Step
    h: Width
    tableau: Tableau


class Dense:
    """Evaluate a solution at any time between t0 and t1.

    Args:
        problem: The problem that was solved.
        pieces: Its steps, in the order in which they were taken.
        reached: Time that each sample reached, `(batch,)`; None where nothing was solved.

    Example:
        >>> from cflow.ode import Dopri5
        >>> y0 = torch.ones(1, 1)
        >>> solution = Dopri5(1e-6, 1e-6).solve(lambda t, y: -y, y0, 0.0, 1.0, dense=True)
        >>> round(solution.dense(0.5).item(), 4)
        0.6065
    """

    def __init__(self, problem: Problem, pieces: list[Piece], reached: np.ndarray | None) -> None:
        self._problem = problem
        self._pieces = pieces
        self._reached = reached

    def __call__(self, t: Time) -> Any:  # noqa: ANN401
        """Return the state at t.

        Args:
            t: A number, or one time for each sample, `(batch,)`.

        Raises:
            DomainError: A time lies outside the span that its sample was solved on.
        """
        return self._problem.tree(self.leaves(t))

    def leaves(self, t: Time) -> list[Tensor]:
        """Return the state at t as flat leaves."""
        problem, project = self._problem, self._problem.project
        times = np.broadcast_to(np.asarray(t, dtype=np.float64), (problem.batch,))
        out, waiting = list(problem.leaves), np.ones(problem.batch, dtype=bool)
        reached = self._reached
        if reached is None:
            return out
        for piece in self._pieces:
            at = times[piece.rows]
            low = np.minimum(piece.start, piece.end)
            inside = waiting[piece.rows] & (at >= low) & (at <= np.maximum(piece.start, piece.end))
            if not inside.any():
                continue
            waiting[piece.rows[inside]] = False
            share = np.where(inside, (at - piece.start) / (piece.end - piece.start), 0.0)
            states = between(piece.tableau, piece.step, piece.h, share)
            if project is not None:
                states = project(states)
            pick = torch.from_numpy(np.flatnonzero(inside)).to(out[0].device)
            rows = torch.from_numpy(piece.rows[inside]).to(out[0].device)
            out = [
                leaf.index_copy(0, rows, state.index_select(0, pick))
                for leaf, state in zip(out, states, strict=True)
            ]
        if waiting.any():
            first = int(np.flatnonzero(waiting)[0])
            raise DomainError(
                f"Dense: sample {first} was solved up to t={reached[first]:.6g}, got "
                f"t={times[first]:.6g}; ask within the span of the solve"
            )
        return out
