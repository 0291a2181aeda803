"""The one ODE of a flow, and what stands before and after it.

Training a field touches neither: a field is matched between the two ends of its ODE.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cflow.errors import DomainError
from cflow.transport.ode import ODE
from cflow.transport.transport import Chain, Transport

__all__ = ["Around", "around_ode", "links"]


class Around(NamedTuple):
    """Hold the parts of a transport before its ODE, the ODE, and the parts after it."""

    before: Chain
    ode: ODE
    after: Chain


def around_ode(where: str, transport: Transport) -> Around:
    """Find the ODE of a transport that is one, or a chain with exactly one; all parts are shared.

    Args:
        where: Name of the caller, for the error.
        transport: The transport; chains in chains are looked into, other containers are parts.

    Raises:
        DomainError: There is not exactly one ODE.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.transport import Affine
        >>> parts = around_ode("page", Chain(ODE(MLPField(2)), Affine(2.0)))
        >>> len(parts.before), len(parts.after)
        (0, 1)
    """
    parts = list(links(transport))
    places = [k for k, part in enumerate(parts) if isinstance(part, ODE)]
    if len(places) != 1:
        raise DomainError(
            f"{where}: the flow must have exactly one ODE, by itself or in a chain, found "
            f"{len(places)} in {type(transport).__name__}; it is the field of one ODE that is "
            "trained and measured"
        )
    place = places[0]
    ode = parts[place]
    assert isinstance(ode, ODE)
    return Around(Chain(*parts[:place]), ode, Chain(*parts[place + 1 :]))


def links(transport: Transport) -> Iterator[Transport]:
    """Give the parts of a transport in push order, chains in chains looked into."""
    if not isinstance(transport, Chain):
        yield transport
        return
    for part in transport:
        yield from links(part)
