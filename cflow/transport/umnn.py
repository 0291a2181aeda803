"""Unconstrained monotonic maps: the integral of a small positive network, by fixed quadrature.

    y = shift + int_0^x g(t) dt,    log g(t) = c + sum_j v_j tanh(a_j (t - c_j)),

taken over [-bound, bound] by Gauss-Legendre nodes tau_i on [0, 1] with weights w_i,

    y = shift + x sum_i w_i g(x tau_i),    dy/dx = sum_i w_i (g + x tau_i g')(x tau_i),

and continued outside as a straight line. The log-slope is the exact derivative of that sum, so that
densities are those of the map that samples pass through; it differs from g(x) by the error of the
quadrature alone. Source: Wehenkel and Louppe (2019), Unconstrained monotonic neural networks,
arXiv 1908.05164, equation 1 (there Clenshaw-Curtis).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.transport.inverse_root import root
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["UnconstrainedMonotonicMap"]


@dataclass(frozen=True)
class UnconstrainedMonotonicMap(UnivariateMap):
    """Integrate exp of a one-layer tanh network whose weights are the parameters.

    Each unit has a rate a_j in (1/2, 2), an amplitude v_j in (-1, 1) and an own fixed centre c_j in
    the box, so log g stays within +-(units + 1) and g is smooth enough for few nodes: with the
    defaults the log-slope differs from log g(x) by less than 1e-4 nats for any parameters. One
    more parameter scales, one shifts: 2 units + 2 in all, and zeros give the identity. Pull is a
    search.

    Attributes:
        units: Hidden units of the network.
        bound: Half the side of the box around zero in which the slope varies.
        nodes: Points of the quadrature.

    Raises:
        DomainError: An option lies outside its range.

    Example:
        >>> integral = UnconstrainedMonotonicMap(units=3)
        >>> integral.push(torch.tensor([8.0]), torch.zeros(1, integral.parameters))
        (tensor([8.]), tensor([0.]))
    """

    units: int = 6
    bound: float = 5.0
    nodes: int = 32
    _rule: tuple[tuple[float, ...], tuple[float, ...]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        expect_positive("UnconstrainedMonotonicMap", bound=self.bound)
        if self.units < 1 or self.nodes < 2:
            raise DomainError(
                f"UnconstrainedMonotonicMap: units must be 1 and nodes 2 or more, got "
                f"{self.units}, {self.nodes}"
            )
        # Computed once and kept: a compiler cannot look into NumPy.
        object.__setattr__(self, "_rule", _legendre(self.nodes))

    @property
    def parameters(self) -> int:
        return 2 * self.units + 2

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        nodes, weights = self._rule
        tau = torch.tensor(nodes, dtype=x.dtype, device=x.device)
        weight = torch.tensor(weights, dtype=x.dtype, device=x.device)
        t = inside[..., None] * tau
        log_g, rate = self._network(t, theta)
        g = weight * log_g.exp()
        slope = (g * (1 + t * rate)).sum(-1)
        y = theta[..., -1] + inside * g.sum(-1) + (x - inside) * slope
        return y, slope.log()

    def _network(self, t: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return log g and its derivative at every node, t `(..., nodes)`."""
        raw_rate, raw_height = theta[..., :-2].unflatten(-1, (2, self.units)).unbind(-2)
        rate = (math.log(2) * torch.tanh(raw_rate)).exp()[..., None, :]
        height = torch.tanh(raw_height)[..., None, :]
        edge = self.bound * (1 - 1 / self.units)
        centre = torch.linspace(-edge, edge, self.units, dtype=t.dtype, device=t.device)
        h = torch.tanh(rate * (t[..., None] - centre))
        level = torch.tanh(theta[..., -2, None])
        return level + (height * h).sum(-1), (height * rate * (1 - h * h)).sum(-1)

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        steepest = math.exp(self.units + 1)
        reach = (y - theta[..., -1]).detach() * (1.01 * steepest)
        low, high = reach.clamp_max(0), reach.clamp_min(0)
        where = "UnconstrainedMonotonicMap.pull"
        return root(where, self._push, y, theta, low=low, high=high, steps=80)


def _legendre(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist())
