"""From leaps to the flow of the velocity that their map holds: the teacher it came with."""

from cflow.field import InstantField
from cflow.transport.exchange import exchanged
from cflow.transport.leap import Leap
from cflow.transport.ode import ODE
from cflow.transport.transport import Transport

__all__ = ["instantaneous"]


def instantaneous(transport: Transport) -> Transport:
    """Return the transport with every leap exchanged for the ODE of the velocity its map holds.

        dx/dt = u(t, t, x)

    All modules are shared. The map of a mean flow is trained to hold the velocity of flow matching,
    so the likelihood of this ODE is that of flow matching, while the leaps have their own. It is
    solved by `Dopri5()`; `with_solver` exchanges that, and puts a solver in place.

    Args:
        transport: The transport.

    Example:
        >>> from cflow.field import FourierTime, MLPField, NetworkFlowMap, SpanTime
        >>> time = SpanTime(FourierTime(4), FourierTime(4))
        >>> leap = Leap(NetworkFlowMap(MLPField(2, time=time)))
        >>> type(instantaneous(leap)).__name__
        'ODE'
    """

    def solved(part: Transport) -> Transport | None:
        if not isinstance(part, Leap):
            return None
        return ODE(InstantField(part.flow_map), manifold=part.manifold)

    return exchanged(transport, solved)
