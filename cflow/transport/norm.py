"""Normalising layers whose parameters are set from data, by an explicit call and only once.

`initialize(transport, x)` walks a transport from the data side to the base side and lets each
such layer see the batch that reaches it. Nothing initialises itself on the way through `log_prob`
or `sample`, and a layer that has been set, or loaded, is never set again. One of them keeps moving
all the same: `MovingBatchNorm` follows the batches that training pulls through it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, expect_finite, expect_positive, expect_trailing
from cflow.state import State
from cflow.transport.transport import Chain, Layer, Transport

__all__ = ["ActNorm", "DataDependent", "MovingBatchNorm", "Standardize", "initialize"]


class DataDependent(Layer):
    """A layer with statistics to be set from a batch; `fitted` is saved with the weights.

    Args:
        event_shape: Shape of one point; one scale and one shift for each entry.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_dim=len(tuple(event_shape)))
        self.event_shape = tuple(event_shape)
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, y: Tensor) -> None:
        """Set the statistics so that pulling y gives mean 0 and standard deviation 1.

        Does nothing when they have been set before. Entries that never vary keep scale 1.

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
        rows = y.detach().reshape(-1, *self.event_shape)
        if len(rows) < 2:
            raise DomainError(f"{where}: at least 2 points are needed, got {len(rows)}")
        expect_finite(where, "y", rows)
        scale = rows.std(0)
        self._set(rows.mean(0), torch.where(scale > 0, scale, 1.0))
        self.fitted.fill_(1)

    @abstractmethod
    def _set(self, mean: Tensor, scale: Tensor) -> None:
        """Take over the statistics of a batch."""


class ActNorm(DataDependent):
    """Scale and shift every entry by learned parameters, y = x exp(log_scale) + shift.

    Before `fit` it is the identity.

    Args:
        event_shape: Shape of one point.

    References:
        Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, section 3.1.

    Example:
        >>> layer = ActNorm((2,))
        >>> y = 3 + 2 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> layer.fit(y)
        >>> layer.pull(State(y)).x.std(0).round(decimals=3).tolist()
        [1.0, 1.0]
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.shift = nn.Parameter(torch.zeros(self.event_shape))

    def _set(self, mean: Tensor, scale: Tensor) -> None:
        with torch.no_grad():
            self.shift.copy_(mean)
            self.log_scale.copy_(scale.log())

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum() if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = (y - self.shift) * (-self.log_scale).exp()
        return x, -self.log_scale.sum() if tracked else None


class Standardize(DataDependent):
    """Give data zero mean and unit spread by constants, y = x scale + mean.

    Pull standardises, push restores the data's own units. Before `fit` it is the identity.

    Args:
        event_shape: Shape of one point.

    Example:
        >>> layer = Standardize((1,))
        >>> layer.fit(torch.tensor([[1.0], [3.0]]))
        >>> layer.push(State(torch.zeros(1, 1))).x
        tensor([[2.]])
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))

    def _set(self, mean: Tensor, scale: Tensor) -> None:
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return x * self.scale + self.mean, self.scale.log().sum() if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return (y - self.mean) / self.scale, -self.scale.log().sum() if tracked else None


class MovingBatchNorm(DataDependent):
    """Normalise by moving statistics, then scale and shift by learned parameters.

        pull: x = (y - mean) / sqrt(var + eps) exp(log_scale) + shift,    push: its inverse

    The statistics are those of earlier batches and constants to autograd, so the map is exactly
    invertible, both log-determinants are exact, and no sample sees its batch mates. A pull in
    training mode moves them afterwards, by `momentum` towards the mean and variance of its batch:
    the one layer whose `_pull` is not pure. Evaluation mode never moves them; use it under
    `torch.func` and for anything that must give the same value twice. Before `fit` it is the
    identity, up to eps.

    Args:
        event_shape: Shape of one point; statistics for each entry.
        momentum: Share of the newest batch in the statistics, in (0, 1].
        eps: Added to the variance, in units of the data squared.

    Raises:
        DomainError: Momentum or eps is out of range.

    References:
        Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, appendix B.1; Dinh et al. (2017),
        arXiv 1605.08803, section 3.7.

    Example:
        >>> layer = MovingBatchNorm((1,), momentum=0.5)
        >>> y = torch.tensor([[3.0], [5.0]])
        >>> before, after = layer.pull(State(y)).x, layer.eval().pull(State(y)).x
        >>> before.round(decimals=2).tolist(), layer.mean.item(), layer.var.item()
        ([[3.0], [5.0]], 2.0, 1.5)
    """

    def __init__(
        self, event_shape: Sequence[int], *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__(event_shape)
        expect_positive("MovingBatchNorm", momentum=momentum, eps=eps)
        if momentum > 1:
            raise DomainError(f"MovingBatchNorm: momentum must lie in (0, 1], got {momentum}")
        self.momentum, self.eps = momentum, eps
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.shift = nn.Parameter(torch.zeros(self.event_shape))
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(self.event_shape))
        self.register_buffer("var", torch.ones(self.event_shape))

    def _set(self, mean: Tensor, scale: Tensor) -> None:
        self.mean.copy_(mean)
        self.var.copy_(scale.square())

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        log_factor = self._log_factor()
        y = (x - self.shift) * log_factor.exp() + self.mean
        return y, log_factor.sum() if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        log_factor = self._log_factor()
        x = (y - self.mean) * (-log_factor).exp() + self.shift
        if self.training:
            self._follow(y.detach())
        return x, -log_factor.sum() if tracked else None

    def _log_factor(self) -> Tensor:
        """Return log dy/dx for each entry."""
        return 0.5 * (self.var + self.eps).log() - self.log_scale

    @torch.no_grad()
    def _follow(self, y: Tensor) -> None:
        rows = y.reshape(-1, *self.event_shape).to(self.mean.dtype)
        if len(rows) > 1:  # a single point has no variance
            self.mean.lerp_(rows.mean(0), self.momentum)
            self.var.lerp_(rows.var(0), self.momentum)


def initialize(
    transport: Transport,
    x: Tensor,
    context: Tensor | None = None,
    *,
    generator: Generator | None = None,
) -> None:
    """Set every data-dependent layer that has not been set, from a batch on the data side.

    Args:
        transport: The transport; layers in a `Chain`, however nested, are reached.
        x: A batch on its data side, `(batch, *event)`.
        context: Condition of the batch.
        generator: Source of noise for stochastic layers.

    Raises:
        DomainError: A data-dependent layer stands inside an `Inverse`, whose data side is not ours.

    Example:
        >>> layer = Standardize((1,))
        >>> initialize(Chain(layer), torch.tensor([[1.0], [3.0]]))
        >>> layer.mean
        tensor([2.])
    """
    parts = list(_links(transport))
    waiting = [k for k, part in enumerate(parts) if _waits(part)]
    if not waiting:
        return
    with torch.no_grad():
        for part in reversed(parts[waiting[0] :]):
            if isinstance(part, DataDependent):
                part.fit(x)
            elif _waits(part):
                raise DomainError(
                    f"initialize: a data-dependent layer inside {type(part).__name__} cannot be "
                    "set by pulling data; call its fit with a batch of its own data side"
                )
            x = part.pull(State(x), context, generator=generator).x


def _links(transport: Transport) -> Iterator[Transport]:
    """List the links of nested chains in push order."""
    if isinstance(transport, Chain):
        for part in transport:
            yield from _links(part)
    else:
        yield transport


def _waits(part: Transport) -> bool:
    return any(isinstance(m, DataDependent) and not bool(m.fitted) for m in part.modules())
