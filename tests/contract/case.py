"""What a case of the contract suite is: a transport, its points, and how exact it must be."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cflow.manifold import Manifold
from cflow.transport import Transport

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TransportCase:
    """A transport, what goes through it, and how exactly it must come back.

    `round_trip` bounds pull(push(x)) - x and the cancelling of ladj; `jacobian` bounds ladj against
    the determinant of an autograd Jacobian. Both are rounding for layers, solver error for ODEs.
    On a `manifold` that determinant is between its tangent spaces and Riemannian volumes.
    """

    name: str
    build: Callable[[], Transport]
    event: Shape = (3,)
    context: Shape | None = None
    round_trip: float = 1e-10
    jacobian: float = 1e-9
    points: Callable[..., Tensor] = torch.randn
    contexts: Callable[..., Tensor] = torch.randn
    traceable: bool = True  # compiles, exports and vmaps: everything but adaptive solving
    compiled: bool = (
        True  # is compiled and exported here, which costs seconds; else in the docs' table
    )
    manifold: Manifold | None = None  # where the points live; None for flat space
    spread: float = 0.3  # standard deviation of the parameters, away from their initialisation

    def make(self, seed: int = 0) -> Transport:
        """Build the transport away from its initialisation: every parameter is perturbed."""
        torch.manual_seed(seed)
        transport = self.build()
        for parameter in transport.parameters():
            nn.init.normal_(parameter, std=self.spread)
        return transport

    def draw(self, *batch: int, seed: int = 1) -> tuple[Tensor, Tensor | None]:
        """Draw points on the base side, and a context for them."""
        torch.manual_seed(seed)
        x = self.points(*batch, *self.event)
        return x, None if self.context is None else self.contexts(*batch, *self.context)
