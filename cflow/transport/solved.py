"""Exchange how the equations in a transport are solved, and share everything else."""

from cflow.errors import DomainError
from cflow.field import Divergence
from cflow.ode import Adjoint, Euler, Solver, Tuned
from cflow.transport.exchange import exchanged
from cflow.transport.leap import Leap
from cflow.transport.ode import ODE
from cflow.transport.transport import Transport

__all__ = ["with_solver"]


def with_solver(
    transport: Transport,
    solver: Solver | None = None,
    *,
    divergence: Divergence | None = None,
    adjoint: Adjoint | None = None,
) -> Transport:
    """Return the transport with every ODE in it solved in another way; all modules are shared.

    Leaps take `Euler(steps, grid)`: as many leaps, on that grid; or `Tuned`.

    Args:
        transport: The transport.
        solver: How the ODEs are integrated; None, here and below, keeps what each has.
        divergence: How their log-determinants are computed; those of leaps are exact.
        adjoint: How gradients pass through their solves; through leaps they pass directly.

    Raises:
        DomainError: The solver of leaps is neither of these.

    Example:
        >>> from cflow.field import MLPField
        >>> with_solver(ODE(MLPField(2)), Euler(4)).solver
        Euler(steps=4)
    """

    def again(part: Transport) -> Transport | None:
        if isinstance(part, Leap):
            return _leaping(part, solver)
        if not isinstance(part, ODE):
            return None
        return ODE(
            part.field,
            part.solver if solver is None else solver,
            manifold=part.manifold,
            divergence=part.divergence if divergence is None else divergence,
            adjoint=part.adjoint if adjoint is None else adjoint,
            cost=part.cost,
            steer=part.steer,
        )

    return exchanged(transport, again)


def _leaping(leap: Leap, solver: Solver | None) -> Leap | None:
    if solver is None:
        return None
    if not isinstance(solver, Euler | Tuned):
        raise DomainError(
            f"with_solver: a flow map leaps and takes Euler(steps), got {solver}; other solvers "
            "take the velocity that it holds, instantaneous(transport, solver)"
        )
    return Leap(leap.flow_map, solver, manifold=leap.manifold)
