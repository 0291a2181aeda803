"""The bench on which a transport is checked: copies of it, points for it, and calls of it."""

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError
from cflow.state import State, tracked
from cflow.testing.demands import Demands
from cflow.transport import Transport

__all__ = ["Bench", "Side", "gap", "ladj_of", "perturb", "start"]

Side: TypeAlias = Literal["base", "data"]
"""Where points start: on the base side, to be pushed, or on the data side, to be pulled."""


@dataclass(frozen=True)
class Bench:
    """Hold the transport under test and what goes through it.

    Attributes:
        transport: The map; only copies of it are run.
        shape: Event shape on the base side.
        context: Shape of one condition, or None.
        classes: Number of classes where the context is integer labels, else 0.
        demands: What is asked.
    """

    transport: Transport
    shape: tuple[int, ...]
    context: tuple[int, ...] | None
    classes: int
    demands: Demands

    @property
    def exact(self) -> bool:
        """Whether ladj is a function of the point, not a random estimate."""
        return self.transport.likelihood == "exact"

    def make(self, seed: int | None = 0) -> Transport:
        """Copy the transport to float64; perturb its parameters, or not where seed is None."""
        transport = copy.deepcopy(self.transport).to(torch.float64).eval()
        if seed is not None:
            perturb(transport, self.demands.spread, self.demands.seed + seed)
        return transport

    def draw(self, *batch: int, seed: int = 1) -> tuple[Tensor, Tensor | None]:
        """Draw points of the base side and their conditions."""
        source = Generator().manual_seed(self.demands.seed + seed)
        x = self.demands.points(*batch, *self.shape, dtype=torch.float64, generator=source)
        if self.context is None:
            return x, None
        size = (*batch, *self.context)
        if self.classes:
            return x, torch.randint(self.classes, size, generator=source)
        return x, torch.randn(size, dtype=torch.float64, generator=source)

    def other(self, context: Tensor) -> Tensor:
        """Return another condition for each point."""
        return (context + 1) % self.classes if self.classes else context + 1

    def side(self, transport: Transport, side: Side, *batch: int) -> tuple[Tensor, Tensor | None]:
        """Draw points of the base side, and carry them to the data side where that is asked."""
        x, context = self.draw(*batch)
        if side == "data":
            x = self.run(transport, "base", State(x), context).x.detach()
        return x, context

    def run(self, transport: Transport, side: Side, state: State, context: Tensor | None) -> State:
        """Push from the base side or pull from the data side, with the same noise every time."""
        method = transport.push if side == "base" else transport.pull
        noise = Generator(state.x.device).manual_seed(self.demands.seed + 2)
        return method(state, context, generator=noise)

    def apart(self, a: State, b: State) -> float:
        """Return the largest difference of points, and of ladj where that is not random."""
        largest = gap(a.x, b.x)
        return max(largest, gap(ladj_of(a), ladj_of(b))) if self.exact else largest


def perturb(module: nn.Module, spread: float, seed: int) -> None:
    """Add normal noise to every parameter."""
    source = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += spread * torch.randn(p.shape, dtype=torch.float64, generator=source).to(p)


def start(x: Tensor, batch: int = 1) -> State:
    """Track points with so many batch axes."""
    return tracked(x, event_dim=x.dim() - batch)


def ladj_of(state: State) -> Tensor:
    """Return the ladj of a state that was tracked."""
    if state.ladj is None:
        raise DomainError("ladj is None although it was tracked")
    return state.ladj


def gap(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference; NaN where there is one."""
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0
