"""Invertible maps of one number, steered by parameters that a conditioner computes.

A coupling or autoregressive layer applies one of them to every number that it moves. Maps whose
inverse has no closed form have it in `push`; a layer that should be fast for densities stands in an
`Inverse`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import expect_positive

__all__ = ["AdditiveMap", "AffineMap", "UnivariateMap", "in_full_precision"]


class UnivariateMap(ABC):
    """Map numbers one by one, `(...)`, given `parameters` numbers for each, `(..., parameters)`.

    All parameters at zero must mean the identity, so that layers can start from it.
    """

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many parameters steer one number."""

    @abstractmethod
    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log|dy/dx|, entry by entry."""

    @abstractmethod
    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|dx/dy|, entry by entry."""


@dataclass(frozen=True)
class AffineMap(UnivariateMap):
    """Scale and shift, y = x exp(s) + b with s = bound tanh(raw / bound).

    The bound keeps one layer's scale within exp(+-bound), so far inputs stay finite.

    Attributes:
        bound: Largest absolute log-scale of one layer, in nats.

    References:
        Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, equation 8.

    Example:
        >>> AffineMap().push(torch.ones(1), torch.tensor([[0.0, 5.0]]))
        (tensor([6.]), tensor([0.]))
    """

    bound: float = 3.0

    def __post_init__(self) -> None:
        expect_positive("AffineMap", bound=self.bound)

    @property
    def parameters(self) -> int:
        return 2

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(theta)
        return x * log_scale.exp() + shift, log_scale

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(theta, -self.bound)
        return (y - shift) * log_scale.exp(), log_scale

    def _split(self, theta: Tensor, signed: float | None = None) -> tuple[Tensor, Tensor]:
        """Return the log-scale, of the other sign where the bound comes with it, and the shift."""
        raw, shift = theta.unbind(-1)
        return torch.tanh(raw / self.bound) * (self.bound if signed is None else signed), shift


@dataclass(frozen=True)
class AdditiveMap(UnivariateMap):
    """Shift only, y = x + b; the log-slope is zero and volumes are kept.

    References:
        Dinh et al. (2015), NICE, arXiv 1410.8516, section 3.2.

    Example:
        >>> AdditiveMap().push(torch.ones(1), torch.tensor([[2.0]]))
        (tensor([3.]), tensor([0.]))
    """

    @property
    def parameters(self) -> int:
        return 1

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return x + theta[..., 0], torch.zeros_like(x)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return y - theta[..., 0], torch.zeros_like(y)


def in_full_precision(
    move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply a map in float32 at least, whatever the conditioner's precision; x keeps its dtype."""
    wide = torch.promote_types(torch.promote_types(x.dtype, theta.dtype), torch.float32)
    y, slopes = move(x.to(wide), theta.to(wide))
    return y.to(x.dtype), slopes
