"""Normalising layers: their statistics are set from data, see `data_dependent.py`.

One of them keeps moving all the same: `MovingBatchNorm` follows the batches that training pulls
through it. All of them work entry by entry; on images, `Channelwise` makes them one per channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_positive
from cflow.transport.data_dependent import DataDependent

__all__ = ["ActNorm", "MovingBatchNorm", "Standardize"]


class ActNorm(DataDependent):
    """Scale and shift every entry by learned parameters, y = x exp(log_scale) + shift.

    Before `fit` it is the identity.

    Args:
        event_shape: Shape of one point.

    References:
        Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, section 3.1.

    Example:
        >>> from cflow.state import State
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
        y = x * self.log_scale.exp() + self.shift
        return y.to(x.dtype), _total(self.log_scale) if tracked else None

    def _normalize(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = (y - self.shift) * (-self.log_scale).exp()
        return x.to(y.dtype), -_total(self.log_scale) if tracked else None


class Standardize(DataDependent):
    """Give data zero mean and unit spread by constants, y = x scale + mean.

    Pull standardises, push restores the data's own units. Before `fit` it is the identity.

    Args:
        event_shape: Shape of one point.

    Example:
        >>> from cflow.state import State
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
        y = x * self.scale + self.mean
        return y.to(x.dtype), _total(self.scale.log()) if tracked else None

    def _normalize(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = (y - self.mean) / self.scale
        return x.to(y.dtype), -_total(self.scale.log()) if tracked else None


class MovingBatchNorm(DataDependent):
    """Normalise by moving statistics, then scale and shift by learned parameters.

        pull: x = (y - mean) / sqrt(var + eps) exp(log_scale) + shift,    push: its inverse

    The statistics are those of earlier batches and constants to autograd, so the map is exactly
    invertible, both log-determinants are exact, and no sample sees its batch mates. A pull in
    training mode moves them afterwards, by `momentum` towards the mean and variance of its batch:
    the one layer whose pull is not pure. Evaluation mode never moves them; use it under
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
        >>> from cflow.state import State
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
        return y.to(x.dtype), _total(log_factor) if tracked else None

    def _normalize(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        log_factor = self._log_factor()
        x = (y - self.mean) * (-log_factor).exp() + self.shift
        if self.training and not self.fitting:
            self._follow(y.detach())
        return x.to(y.dtype), -_total(log_factor) if tracked else None

    def _log_factor(self) -> Tensor:
        """Return log dy/dx for each entry."""
        return 0.5 * (self.var + self.eps).log() - self.log_scale

    @torch.no_grad()
    def _follow(self, y: Tensor) -> None:
        rows = y.reshape(-1, *self.event_shape).to(self.mean.dtype)
        if len(rows) > 1:  # a single point has no variance
            self.mean.lerp_(rows.mean(0), self.momentum)
            self.var.lerp_(rows.var(0), self.momentum)


def _total(log_factors: Tensor) -> Tensor:
    """Sum in float32 at least."""
    return log_factors.to(torch.promote_types(log_factors.dtype, torch.float32)).sum()
