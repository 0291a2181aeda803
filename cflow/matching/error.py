"""Errors of a velocity: what `matching` minimises where the plain square is not wanted.

    squared:      |v - u|^2 / D
    pseudo-Huber: sqrt(|v - u|^2 + c^2) - c
    feature:      error of f(x + (1 - t) v) from f(x + (1 - t) u)

for a predicted v and a wanted u of D entries. The second grows like the distance itself, so that
single pairs far off pull less; the third measures the end of the straight line that v points along
by what a network f sees in it.
Source: Song and Dhariwal (2023), Improved techniques for training consistency models, arXiv
2310.14189, section 3.3; Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, and Lee et al.
(2024), Improving the training of rectified flows, arXiv 2405.20320, for errors of features (LPIPS).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cflow.errors import ShapeError, expect_positive
from cflow.manifold import Manifold
from cflow.typing import Batch, Points, Times

__all__ = ["FeatureError", "PseudoHuber", "RiemannianError", "SquaredError", "VelocityError"]


class VelocityError(ABC):
    """Measure how far a prediction is from what was wanted; concrete ones are frozen."""

    @abstractmethod
    def __call__(self, t: Times, x: Points, v: Points, target: Points) -> Batch:
        """Return one error for each sample.

        Args:
            t: Times `(n,)`.
            x: Points at these times, `(n, *event)`.
            v: What the field says, of the shape of x.
            target: What it ought to say.

        Returns:
            Errors `(n,)`, 0 or more.
        """

    @property
    @abstractmethod
    def straight(self) -> bool:
        """Whether it follows v to t = 1, so that v must be the velocity of a `LinearPath`."""


@dataclass(frozen=True)
class SquaredError(VelocityError):
    """The mean squared error over the entries of the event; its minimum is the marginal velocity.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> SquaredError()(torch.zeros(1), x, x, x + torch.tensor([3.0, 4.0]))
        tensor([12.5000])
    """

    def __call__(self, t: Times, x: Points, v: Points, target: Points) -> Batch:
        error = nn.functional.mse_loss(v, target, reduction="none")
        return error.flatten(1).mean(1) if error.dim() > 1 else error

    @property
    def straight(self) -> bool:
        return False


@dataclass(frozen=True)
class RiemannianError(VelocityError):
    """The squared error in the metric of a manifold, over its dimension: |v - u|_g^2 / dim.

    Its minimum is the marginal velocity, as that of the plain square; the two differ in how much
    they care about which points. They are the same where the metric is that of the space around.

    Attributes:
        manifold: One of `cflow.manifold`.

    References:
        Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, equation 7.

    Example:
        >>> from cflow.manifold import Sphere
        >>> x, east = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> RiemannianError(Sphere())(torch.zeros(1), x, 2 * east, 0 * east)
        tensor([2.])
    """

    manifold: Manifold

    def __call__(self, t: Times, x: Points, v: Points, target: Points) -> Batch:
        gap = self.manifold.proju(x, v - target)
        return self.manifold.inner(x, gap, gap) / self.manifold.dim(x.shape[1:])

    @property
    def straight(self) -> bool:
        return False


@dataclass(frozen=True)
class PseudoHuber(VelocityError):
    """A distance that is smooth at zero, over the whole event: sqrt(|v - u|^2 + c^2) - c.

    Its minimum at a point is no mean but lies nearer the median, so it belongs to pairs that a
    field has made, which hardly cross; over independent pairs it is biased.

    Attributes:
        c: Distance below which it is a square, in units of a velocity; 0.00054 sqrt(D) by default.

    Raises:
        DomainError: c is not positive.

    References:
        Song and Dhariwal (2023), arXiv 2310.14189, section 3.3, with its choice of c.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> PseudoHuber(c=12.0)(torch.zeros(1), x, x, x + torch.tensor([3.0, 4.0]))
        tensor([1.])
    """

    c: float | None = None

    def __post_init__(self) -> None:
        if self.c is not None:
            expect_positive("PseudoHuber", c=self.c)

    def __call__(self, t: Times, x: Points, v: Points, target: Points) -> Batch:
        square = (v - target).square()
        square = square.flatten(1).sum(1) if square.dim() > 1 else square
        c = 0.00054 * math.sqrt(v.numel() / len(v)) if self.c is None else self.c
        return square / ((square + c * c).sqrt() + c)  # the difference of roots, no digit lost

    @property
    def straight(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class FeatureError(VelocityError):
    """Compare what a network sees in the predicted end and in the true one.

    The ends are those of the straight line, x + (1 - t) v, in the space of the ODE. At t = 1 both
    are x, so nothing is learned there: a pull of one step wants another error.

    Attributes:
        features: Maps points `(n, *event)` to one tensor `(n, *features)`, or to a tuple of them,
            whose errors add up. A module is not trained, but put it into evaluation mode yourself.
        error: How two tensors of features are compared.

    References:
        Liu et al. (2023), arXiv 2209.03003; Lee et al. (2024), arXiv 2405.20320.

    Example:
        >>> total = FeatureError(lambda x: x.sum(1))
        >>> x = torch.zeros(1, 2)
        >>> total(torch.tensor([0.5]), x, x, x + torch.tensor([3.0, 1.0]))
        tensor([4.])
    """

    features: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = field(repr=False)
    error: VelocityError = field(default_factory=SquaredError)

    def __call__(self, t: Times, x: Points, v: Points, target: Points) -> Batch:
        rest = (1 - t).reshape(-1, *(1,) * (x.dim() - 1))
        with torch.no_grad():
            wanted = self._seen(x + rest * target)
        found = self._seen(x + rest * v)
        errors = [self.error(t, a, b, a) for a, b in zip(wanted, found, strict=True)]
        return torch.stack(errors).sum(0)

    @property
    def straight(self) -> bool:
        return True

    def _seen(self, x: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.features, nn.Module):
            fixed = {name: p.detach() for name, p in self.features.named_parameters()}
            seen = torch.func.functional_call(self.features, fixed, (x,))
        else:
            seen = self.features(x)
        seen = seen if isinstance(seen, tuple) else (seen,)
        for part in seen:
            if part.shape[:1] != x.shape[:1]:
                raise ShapeError(
                    f"FeatureError: features must have one row for each of the {len(x)} points, "
                    f"got {tuple(part.shape)}"
                )
        return seen
