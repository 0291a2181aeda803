"""Progress bars for solves: how far time has come, and how many evaluations it took.

A solver is wrapped, so that fixed and adaptive solvers, in either direction, in chains and with
densities, are all seen in the same way, and nothing below knows of bars.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from cflow.ode import Direct, Solution, Solver
from cflow.ode.problem import Problem, Span
from cflow.transport import ODE, Transport, with_solver
from cflow.transport.exchange import exchanged

__all__ = ["WatchedSolver", "watched"]

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True, repr=False)
class WatchedSolver(Solver):
    """Solve as another solver does, and show a bar of the time reached by the slowest sample.

    Attributes:
        solver: What solves.

    Example:
        >>> import torch
        >>> from cflow.ode import Euler
        >>> WatchedSolver(Euler(4)).solve(lambda t, y: y, torch.ones(1, 1), 0.0, 1.0).y
        tensor([[2.4414]])
    """

    solver: Solver

    @property
    def per_sample(self) -> bool:
        return self.solver.per_sample

    @property
    def adaptive(self) -> bool:
        return self.solver.adaptive

    def _solve(self, problem: Problem, span: Span) -> Solution:
        name = type(self.solver).__name__
        nfe = 0
        with tqdm(total=1.0, desc=name, bar_format=FORMAT, disable=None, leave=False) as bar:

            def field(t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
                nonlocal nfe
                nfe += 1
                share = ((t - span.t0) / (span.t1 - span.t0)).min().item()
                bar.set_postfix(nfe=nfe, refresh=False)
                bar.update(max(0.0, share - bar.n))  # trials that were rejected start again
                return problem.field(t, y, *args)

            return self.solver._solve(replace(problem, field=field), span)


def watched(transport: Transport) -> Transport:
    """Return the transport with a bar for every solve of its ODEs; all modules are shared.

    Gradients would pass through the steps themselves, so it is meant for runs without.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.ode import Euler
        >>> watched(ODE(MLPField(2), Euler(4))).solver
        WatchedSolver(solver=Euler(steps=4))
    """

    def seen(part: Transport) -> Transport | None:
        if not isinstance(part, ODE):
            return None
        return with_solver(part, WatchedSolver(part.solver), adjoint=Direct())

    return exchanged(transport, seen)
