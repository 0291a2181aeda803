"""The contract of a base: the simple law at t = 0 from which a flow starts."""

from abc import ABC, abstractmethod

from torch import Generator, Tensor, nn

from cflow.typing import Batch, Points

__all__ = ["Base"]


class Base(nn.Module, ABC):
    """A law with a density that can be sampled, over points of `event_shape`.

    Densities are in nats, with respect to the volume of the space the points live in.

    Args:
        event_shape: Shape of one point.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = event_shape

    @abstractmethod
    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        """Draw points, `(*shape, *event_shape)`; a context comes with batch axes `shape`."""

    @abstractmethod
    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        """Return log densities `(*batch,)` of points `(*batch, *event_shape)`."""
