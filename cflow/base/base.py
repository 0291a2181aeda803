"""The contract of a base: the simple law at t = 0 from which a flow starts.

Two narrower contracts say what some laws can do besides: a `Centred` law spreads about a centre,
so that its noise can be scaled (`tempered`); a `Product` has independent entries whose quantiles
are known, so that it can be cut to a box (`Truncated`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from cflow.errors import expect_trailing
from cflow.typing import Batch, Points

__all__ = ["Base", "Centred", "Product"]


class Base(nn.Module, ABC):
    """A law with a density that can be sampled, over points of `event_shape`.

    Densities are in nats, with respect to the volume of the space the points live in. Where a law
    has parameters and can be reparameterised, gradients reach them through `sample`; a law that
    picks (a component, a label, a proposal) passes none to what steers the picking, and says so.

    Args:
        event_shape: Shape of one point, or a number of features.
    """

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__()
        one = isinstance(event_shape, int)
        self.event_shape: tuple[int, ...] = (event_shape,) if one else tuple(event_shape)

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
        """Return log densities `(*batch,)` of points `(*batch, *event_shape)`, in float32 at least.

        A law that takes no condition ignores the context, which may be there for the layers.
        """

    def _enter(self, x: Tensor) -> Tensor:
        """Check the shape of points and widen them to float32 at least."""
        expect_trailing(f"{type(self).__name__}.log_prob", "x", x, self.event_shape)
        return x.to(torch.promote_types(x.dtype, torch.float32))


class Centred(Base):
    """A law whose points are a centre plus noise: scaling the noise gives a law again."""

    @abstractmethod
    def centre(self, context: Tensor | None = None) -> Tensor:
        """Return the centre, of a shape that broadcasts to points; float32 at least."""


class Product(Base):
    """A law of independent entries, each with a known distribution function and quantiles.

    Both methods take ends that broadcast to the event's shape and may be infinite.
    """

    @abstractmethod
    def log_mass(self, low: Tensor, high: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log P(low <= x <= high) for each entry, `(*batch, *event_shape)` or fewer axes."""

    @abstractmethod
    def between(
        self, low: Tensor, high: Tensor, share: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return the points that leave a share of the mass of [low, high] below them.

        Args:
            low: Lower ends.
            high: Upper ends.
            share: Shares in (0, 1), float64, `(*batch, *event_shape)`.
            context: Condition of the law.

        Returns:
            Points like `share`, in float64; differentiable in the parameters of the law.
        """
