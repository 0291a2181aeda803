"""How gradients pass through a solve: an adjoint stands above the solver, never below it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cflow.ode.problem import Time
from cflow.ode.solver import Solution, Solver

__all__ = ["Adjoint", "Direct"]


class Adjoint(ABC):
    """Run a solver and decide what its backward pass keeps or recomputes."""

    @abstractmethod
    def solve(
        self,
        solver: Solver,
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        t0: Time,
        t1: Time,
        *,
        args: tuple[Any, ...] = (),
        parameters: Iterable[Tensor] = (),
        project: Callable[[Any], Any] | None = None,
        save_at: Sequence[float] | Tensor | None = None,
        stop_at: Sequence[float] | Tensor = (),
    ) -> Solution:
        """Solve as `Solver.solve` does; `parameters` are those of f that want gradients."""


@dataclass(frozen=True)
class Direct(Adjoint):
    """Differentiate through the steps themselves: exact for the scheme, memory grows with steps.

    Example:
        >>> Direct()
        Direct()
    """

    def solve(
        self,
        solver: Solver,
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        t0: Time,
        t1: Time,
        *,
        args: tuple[Any, ...] = (),
        parameters: Iterable[Tensor] = (),
        project: Callable[[Any], Any] | None = None,
        save_at: Sequence[float] | Tensor | None = None,
        stop_at: Sequence[float] | Tensor = (),
    ) -> Solution:
        """Call the solver; autograd records its steps."""
        return solver.solve(
            f,
            y0,
            t0,
            t1,
            args=args,
            project=project,
            save_at=save_at,
            stop_at=stop_at,
            parameters=parameters,
        )
