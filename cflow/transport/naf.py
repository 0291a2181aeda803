"""Neural autoregressive maps: deep sigmoidal flows, small monotone networks of one number.

    x_{l+1} = logit(sum_j w_lj sigmoid(a_lj x_l + b_lj)),    w_l = softmax,  a_lj > 0

Each layer covers the whole line (see `logistic_mixture`), so densities are normalised.
Source: Huang et al. (2018), Neural autoregressive flows, arXiv 1804.00779, equation 8.
"""

from dataclasses import dataclass

from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.transport.inverse_root import root
from cflow.transport.logistic_mixture import expect_share, logistic_mixture, units
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["NeuralMap"]


@dataclass(frozen=True)
class NeuralMap(UnivariateMap):
    """Apply a stack of sigmoidal layers whose weights are the parameters.

    All parameters at zero give the identity. Pull inverts the layers one by one, each by a search.

    Attributes:
        units: Sigmoids in a layer; three parameters for each.
        layers: Depth of the stack.
        log_range: Largest |log a|, so that one layer's slope lies within exp(+-log_range) where
            its sigmoids do not overlap.
        anchor: Weight, in (0, 1), of one more unit that is fixed as the identity: it keeps the
            slope between far units from vanishing.

    Raises:
        DomainError: No unit or no layer, or a bound that is not positive.

    Example:
        >>> import torch
        >>> net = NeuralMap(units=4, layers=2)
        >>> net.push(torch.tensor([0.7]), torch.zeros(1, net.parameters))[0]
        tensor([0.7000])
    """

    units: int = 8
    layers: int = 2
    log_range: float = 3.0
    anchor: float = 0.01

    def __post_init__(self) -> None:
        expect_positive("NeuralMap", log_range=self.log_range, anchor=self.anchor)
        if min(self.units, self.layers) < 1:
            raise DomainError(
                f"NeuralMap: units and layers must be 1 or more, got {self.units}, {self.layers}"
            )
        expect_share("NeuralMap", self.anchor)

    @property
    def parameters(self) -> int:
        return 3 * self.units * self.layers

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for raw in theta.unflatten(-1, (self.layers, -1)).unbind(-2):
            x, slope = self._layer(x, raw)
            total = total + slope
        return x, total

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for raw in reversed(theta.unflatten(-1, (self.layers, -1)).unbind(-2)):
            low, high = units(raw.detach(), log_range=self.log_range, anchor=self.anchor).around(
                y.detach()
            )
            y, slope = root("NeuralMap.pull", self._layer, y, raw, low=low, high=high)
            total = total + slope
        return y, total

    def _layer(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return logistic_mixture(x, units(raw, log_range=self.log_range, anchor=self.anchor))
