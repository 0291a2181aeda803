"""Invertible maps of one number, steered by parameters that a conditioner computes.

A coupling or autoregressive layer applies one of them to every number that it moves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import expect_positive

__all__ = ["AffineMap", "UnivariateMap"]


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
        log_scale, shift = self._split(theta)
        return (y - shift) * (-log_scale).exp(), -log_scale

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = theta[..., 0], theta[..., 1]
        return self.bound * torch.tanh(raw / self.bound), shift
