"""Normal laws with learned means and spreads: diagonal, full, one for each class.

log p(x) = -|L^-1 (x - m)|^2 / 2 - log det L - n log(2 pi) / 2,    x = m + L e,  e ~ N(0, 1)
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from cflow.base.base import Centred, Product
from cflow.base.entries import noise, normal_log_prob, summed, wide
from cflow.base.interval import normal_between, normal_log_mass
from cflow.errors import DomainError, expect_positive, expect_trailing
from cflow.typing import Batch, Points

__all__ = ["ClassConditional", "DiagonalGaussian", "FullGaussian"]


class DiagonalGaussian(Centred, Product):
    """Independent normal entries with learned means and scales; it starts as the standard law.

    With a conditioner the means and log-scales get its output added. Scales are
    `exp(log_scale)`, positive by construction; nothing else keeps them from zero.

    Args:
        event_shape: Shape of one point, or a number of features.
        conditioner: Called as `net(context)`; returns `(*batch, 2 * entries)`: shifts of the means,
            then of the log-scales, flat. It may compute in low precision.

    Raises:
        DomainError: There is a conditioner and no context.
        ShapeError: The conditioner returns another number of values.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, arXiv 1312.6114, for draws
        through which gradients flow.

    Example:
        >>> DiagonalGaussian(2).log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        conditioner: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.conditioner = conditioner

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        mean, log_scale = self._law(context)
        e = noise((*shape, *self.event_shape), self.mean, generator)
        return (mean + log_scale.exp() * e).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        return summed(normal_log_prob(self._enter(x), *self._law(context)), len(self.event_shape))

    def centre(self, context: Tensor | None = None) -> Tensor:
        return self._law(context)[0]

    def log_mass(self, low: Tensor, high: Tensor, context: Tensor | None = None) -> Tensor:
        return normal_log_mass(low, high, *self._law(context))

    def between(
        self, low: Tensor, high: Tensor, share: Tensor, context: Tensor | None = None
    ) -> Tensor:
        return normal_between(low, high, share, *self._law(context))

    def _law(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return means and log-scales, in float32 at least."""
        mean, log_scale = wide(self.mean), wide(self.log_scale)
        if self.conditioner is None:
            return mean, log_scale
        if context is None:
            raise DomainError("DiagonalGaussian: its conditioner needs a context, got none")
        moves = wide(self.conditioner(context))
        where, size = "DiagonalGaussian", 2 * mean.numel()
        expect_trailing(where, "what the conditioner returns", moves, (size,))
        shift, log_factor = moves.unflatten(-1, (2, *self.event_shape)).unbind(moves.dim() - 1)
        return mean + shift, log_scale + log_factor


class FullGaussian(Centred):
    """A normal law of vectors with a learned mean and Cholesky factor; it starts as standard.

    The factor has `exp(log_diagonal)` on its diagonal, so that the covariance is positive definite.

    Args:
        features: Entries of a point.

    Raises:
        DomainError: There is no feature.

    Example:
        >>> FullGaussian(2).log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        expect_positive("FullGaussian", features=features)
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.below = nn.Parameter(torch.zeros(features * (features - 1) // 2))
        self.places: Tensor
        self.register_buffer("places", torch.tril_indices(features, features, -1))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        e = noise((*shape, *self.event_shape), self.mean, generator)
        return (wide(self.mean) + e @ self.cholesky().mT).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        gap, factor = self._enter(x) - wide(self.mean), self.cholesky().to(self._wider(x))
        one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        z = gap.to(factor.dtype) @ torch.linalg.solve_triangular(factor, one, upper=False).mT
        log_volume = wide(self.log_diagonal).sum()
        return -0.5 * (z.square().sum(-1) + len(factor) * math.log(2 * math.pi)) - log_volume

    def centre(self, context: Tensor | None = None) -> Tensor:
        return wide(self.mean)

    def cholesky(self) -> Tensor:
        """Return the lower Cholesky factor L of the covariance L L^T, in float32 at least."""
        diagonal = torch.diag_embed(wide(self.log_diagonal).exp())
        return diagonal.index_put((self.places[0], self.places[1]), wide(self.below))

    def _wider(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(wide(x).dtype, self.mean.dtype)


class ClassConditional(Centred, Product):
    """One diagonal normal law for each class; the context is a label, an integer of shape ().

    A label outside 0 .. classes-1 raises torch's `IndexError`. Gradients through `sample` reach the
    laws of the labels that were given; to labels there is none.

    Args:
        classes: Number of classes.
        event_shape: Shape of one point, or a number of features.
        spread: Standard deviation of the random means at the start, in units of the points.

    Raises:
        DomainError: There is no class, the spread is not positive, or labels are missing or not
            integers.

    References:
        Izmailov et al. (2020), Semi-supervised learning with normalizing flows, arXiv 1912.13025,
        for a class-conditional normal base.

    Example:
        >>> base = ClassConditional(3, 2)
        >>> base.log_prob(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4])
    """

    def __init__(
        self, classes: int, event_shape: Sequence[int] | int, *, spread: float = 1.0
    ) -> None:
        super().__init__(event_shape)
        expect_positive("ClassConditional", classes=classes, spread=spread)
        self.mean = nn.Parameter(spread * torch.randn(classes, *self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(classes, *self.event_shape))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        mean, log_scale = self._law(context)
        e = noise((*shape, *self.event_shape), self.mean, generator)
        return (mean + log_scale.exp() * e).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        return summed(normal_log_prob(self._enter(x), *self._law(context)), len(self.event_shape))

    def centre(self, context: Tensor | None = None) -> Tensor:
        return self._law(context)[0]

    def log_mass(self, low: Tensor, high: Tensor, context: Tensor | None = None) -> Tensor:
        return normal_log_mass(low, high, *self._law(context))

    def between(
        self, low: Tensor, high: Tensor, share: Tensor, context: Tensor | None = None
    ) -> Tensor:
        return normal_between(low, high, share, *self._law(context))

    def _law(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return means and log-scales of the labels' classes, in float32 at least."""
        if context is None or context.is_floating_point():
            got = "none" if context is None else str(context.dtype)
            raise DomainError(f"ClassConditional: the context must be integer labels, got {got}")
        label = context.long()  # an embedding takes no bytes
        return self._row(self.mean, label), self._row(self.log_scale, label)

    def _row(self, table: Tensor, label: Tensor) -> Tensor:
        # an embedding, because plain indexing takes -1 for the last class
        row = functional.embedding(label, wide(table).reshape(len(table), -1))
        return row.reshape(*label.shape, *self.event_shape)
