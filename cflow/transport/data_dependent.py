"""Layers whose parameters are set from data, by an explicit call and only once.

`initialize(transport, x)` pulls a batch from the data side while each such layer waits for what
reaches it, wherever in the transport it stands: containers need to know nothing of it. Nothing
initialises itself on the way through `log_prob` or `sample`, and a layer that has been set, or
loaded, is never set again.

Where several processes train together (torch.distributed), the statistics are those of all their
batches, and the same in every process.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, distributed, nn

from cflow.errors import DomainError, expect_finite, expect_trailing
from cflow.state import State
from cflow.transport.transport import Chain, Inverse, Layer, Transport

__all__ = ["DataDependent", "initialize"]


class DataDependent(Layer):
    """A layer with statistics to be set from a batch; `fitted` is saved with the weights.

    Authors write `_push`, `_normalize` (its inverse) and `_set`. On images, `Channelwise` makes one
    for each channel.

    Args:
        event_shape: Shape of one point; one scale and one shift for each entry.

    Attributes:
        fitting: True while `initialize` runs; the layer then takes the batch that is pulled.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_dim=len(tuple(event_shape)))
        self.event_shape = tuple(event_shape)
        self.fitting = False
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, y: Tensor) -> None:
        """Set the statistics so that pulling y gives mean 0 and standard deviation 1.

        Does nothing when they have been set before. Entries that never vary keep scale 1. Where
        torch.distributed is initialised, all processes must call it together, each with its own
        share of the batch.

        Args:
            y: Points on the data side, `(*batch, *event_shape)`, at least two of them.

        Raises:
            ShapeError: The points have another event shape.
            DomainError: Fewer than two points, or values that are not finite.
        """
        if bool(self.fitted):
            return
        where = f"{type(self).__name__}.fit"
        expect_trailing(where, "y", y, self.event_shape)
        rows = y.detach().to(torch.promote_types(y.dtype, torch.float32))
        rows = rows.reshape(-1, *self.event_shape) if self.event_shape else rows.flatten()
        mean, var = _moments(where, rows)
        scale = var.sqrt()
        constant = scale <= 4 * torch.finfo(rows.dtype).eps * mean.abs()  # rounding of the mean
        self._set(mean, torch.where(constant, 1.0, scale))
        self.fitted.fill_(1)

    @abstractmethod
    def _normalize(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Undo `_push` and return log|det dx/dy| where tracked."""

    @abstractmethod
    def _set(self, mean: Tensor, scale: Tensor) -> None:
        """Take over the statistics of a batch."""

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.fitting:
            self.fit(y)
        return self._normalize(y, context, tracked=tracked)


def _moments(where: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of the rows of all processes."""
    together = distributed.is_available() and distributed.is_initialized()

    def over_all(value: Tensor) -> Tensor:
        if together:
            distributed.all_reduce(value)
        return value

    # Every process reduces before any of them raises, so that none is left waiting.
    count = over_all(rows.new_tensor(float(len(rows))))
    mean = over_all(rows.sum(0)) / count.clamp(min=1)
    var = over_all((rows - mean).square().sum(0)) / (count - 1).clamp(min=1)
    if count < 2:
        raise DomainError(f"{where}: at least 2 points are needed, got {int(count)}")
    expect_finite(where, "y", rows)
    if not bool(torch.isfinite(var).all()):
        raise DomainError(
            f"{where}: y must be finite and its variance too; the points of another process are "
            "not, or these are too large to be squared"
        )
    return mean, var


def initialize(
    transport: Transport,
    x: Tensor,
    context: Tensor | None = None,
    *,
    generator: Generator | None = None,
) -> None:
    """Set every data-dependent layer that has not been set, from a batch on the data side.

    Where torch.distributed is initialised, all processes call it together, each with its share.

    Args:
        transport: The transport; layers are reached wherever its pull passes through theirs.
        x: A batch on its data side, `(batch, *event)`.
        context: Condition of the batch.
        generator: Source of noise for stochastic layers.

    Raises:
        DomainError: A data-dependent layer stands inside an `Inverse`, whose data side is not ours,
            or where the pull does not come by.

    Example:
        >>> from cflow.transport import Standardize
        >>> layer = Standardize((1,))
        >>> initialize(Chain(layer), torch.tensor([[1.0], [3.0]]))
        >>> layer.mean
        tensor([2.])
    """
    if any(isinstance(m, Inverse) and _waiting(m) for m in transport.modules()):
        raise DomainError(
            "initialize: a data-dependent layer inside Inverse cannot be set by pulling data; take "
            "it out of the Inverse, or call its fit with a batch of its own data side"
        )
    parts = list(_links(transport))
    while parts and not _waiting(parts[0]):
        parts.pop(0)  # a solve on the base side is not needed
    layers = [m for m in transport.modules() if isinstance(m, DataDependent)]
    for layer in layers:
        layer.fitting = True
    try:
        with torch.no_grad():
            for part in reversed(parts):
                x = part.pull(State(x), context, generator=generator).x
    finally:
        for layer in layers:
            layer.fitting = False
    if _waiting(transport):
        raise DomainError(
            f"initialize: the pull did not reach {len(_waiting(transport))} data-dependent layers; "
            "call their fit with a batch of their own data side"
        )


def _links(transport: Transport) -> Iterator[Transport]:
    """List the links of nested chains in push order."""
    if isinstance(transport, Chain):
        for part in transport:
            yield from _links(part)
    else:
        yield transport


def _waiting(part: nn.Module) -> list[DataDependent]:
    """List the data-dependent layers inside that have not been set."""
    return [m for m in part.modules() if isinstance(m, DataDependent) and not bool(m.fitted)]
