"""Monotone Bernstein polynomials on a box, continued as straight lines or kept inside.

    y = sum_k c_k C(n, k) t^k (1 - t)^(n - k),    t = (x + bound) / (2 bound),    c_k increasing,
    dy/dx = n / (2 bound) sum_k (c_{k+1} - c_k) C(n - 1, k) t^k (1 - t)^(n - 1 - k).

Equally spaced coefficients are the identity. Source: Ramasinghe et al. (2021), Robust normalizing
flows using Bernstein-type polynomials, arXiv 2102.03509; Sick et al. (2021), Deep transformation
models, arXiv 2004.00464.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.transport.inverse_root import root
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["BernsteinMap"]


@dataclass(frozen=True)
class BernsteinMap(UnivariateMap):
    """Bend [-bound, bound] by a polynomial of degree n with increasing coefficients.

    Steps between coefficients are (2 bound / n) exp(r) with |r| below `log_range`. With linear
    tails they are that and one parameter shifts the whole (n + 1 parameters); the lines outside
    continue with the slopes at the ends. Without tails the steps are scaled to fill the box (n
    parameters), which the map takes onto itself; outside of it y = x and the log-slope is zero. All
    parameters at zero give the identity. Push is closed; pull is a search on the bracket that the
    slopes' bounds give.

    Attributes:
        degree: Degree n of the polynomial.
        bound: Half the side of the box around zero.
        tails: "linear" for the whole line, "none" for points in the box.
        log_range: Largest |log| of a step before scaling, in nats.

    Raises:
        DomainError: An option lies outside its range.

    Example:
        >>> bend = BernsteinMap(degree=4)
        >>> theta = torch.tensor([[1.0, -1.0, 0.0, 2.0, 0.5]])
        >>> back, _ = bend.pull(bend.push(torch.tensor([7.0]), theta)[0], theta)
        >>> back.round(decimals=3)
        tensor([7.])
    """

    degree: int = 16
    bound: float = 5.0
    tails: Literal["linear", "none"] = "linear"
    log_range: float = 3.0

    def __post_init__(self) -> None:
        expect_positive("BernsteinMap", bound=self.bound, log_range=self.log_range)
        if not 2 <= self.degree <= 64:
            raise DomainError(f"BernsteinMap: degree must lie in 2..64, got {self.degree}")
        if self.tails not in ("linear", "none"):
            raise DomainError(f"BernsteinMap: tails must be 'linear' or 'none', got {self.tails!r}")

    @property
    def parameters(self) -> int:
        return self.degree + (self.tails == "linear")

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        steps, shift = self._steps(theta)
        n, side = self.degree, 2 * self.bound
        inside = x.clamp(-self.bound, self.bound)
        t = ((inside + self.bound) / side)[..., None]
        k = torch.arange(n, dtype=x.dtype, device=x.device)
        lower = _basis(t, k, n - 1)
        # sum_k c_k B_{k,n} with c_k = c_0 + steps before k: a step counts where its tail does.
        tails = _basis(t, torch.arange(n + 1, dtype=x.dtype, device=x.device), n)
        tails = tails.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        y = (steps * tails).sum(-1) - self.bound + shift
        slope = (steps * lower).sum(-1) * (n / side)
        if self.tails == "linear":
            return y + (x - inside) * slope, slope.log()
        within = x.abs() <= self.bound
        return torch.where(within, y, x), torch.where(within, slope.log(), 0.0)

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        if self.tails == "none":
            reach = y.detach().abs().clamp_min(self.bound)
            return root("BernsteinMap.pull", self._push, y, theta, low=-reach, high=reach)
        steps, shift = self._steps(theta.detach())
        start = shift - self.bound
        end = start + steps.sum(-1)
        steepest = math.exp(self.log_range)
        low = -self.bound + (y.detach() - start).clamp_max(0) * steepest
        high = self.bound + (y.detach() - end).clamp_min(0) * steepest
        return root("BernsteinMap.pull", self._push, y, theta, low=low, high=high)

    def _steps(self, theta: Tensor) -> tuple[Tensor, Tensor | float]:
        raw = theta[..., : self.degree]
        steps = (self.log_range * torch.tanh(raw / self.log_range)).exp()
        if self.tails == "linear":
            return steps * (2 * self.bound / self.degree), theta[..., -1]
        return steps * (2 * self.bound / steps.sum(-1, keepdim=True)), 0.0


def _basis(t: Tensor, k: Tensor, n: int) -> Tensor:
    """Return the n + 1 Bernstein polynomials of degree n at t, on a last axis."""
    binomial = torch.tensor([math.comb(n, i) for i in range(n + 1)], dtype=t.dtype, device=t.device)
    return binomial * t.pow(k) * (1 - t).pow(n - k)
