"""The autoregressive layer: every feature is moved by a map that earlier features steer.

    push:  y_i = g(x_i; theta_i),    theta_i = net_i(x_<i, context),    ladj = sum_i log|dg/dx_i|

"Earlier" is an order of the features or any graph without circles. Push takes one pass. Pull needs
x_<i before it can find x_i: `inversion` says how it goes about that, and gradients pass through the
result by the implicit function theorem instead of through the steps.
MAF is `Inverse(AutoregressiveLayer(...))`, fast for densities; IAF is the plain layer.

Source: Papamakarios, Pavlakou and Murray (2017), Masked autoregressive flow, arXiv 1705.07057;
Kingma et al. (2016), Inverse autoregressive flow, arXiv 1606.04934.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_trailing, plain
from cflow.nets import MaskedMLP
from cflow.nets.masked import depths
from cflow.transport.implicit import attach
from cflow.transport.incremental import Incremental
from cflow.transport.inversion import Inversion, Triangular, unrolled
from cflow.transport.transport import Layer
from cflow.transport.univariate import AffineMap, UnivariateMap, in_full_precision

__all__ = ["AutoregressiveLayer"]


class AutoregressiveLayer(Layer):
    """Move every feature, steered by the features before it and by the context.

    Under `torch.compile`, `torch.export` and `torch.func` the pull is written out, one pass of the
    conditioner for each level of the graph, whatever `inversion` says. Otherwise its gradient comes
    from one triangular solve; it cannot be differentiated twice. Dropout of a `MaskedMLP` rests in
    a pull, which has to meet one and the same function in all its steps.

    Args:
        conditioner: A module called as `net(x, context)` that returns `(*batch, D * parameters)`,
            those of feature i from earlier features only. A `MaskedMLP` holds its own adjacency.
        univariate: The map of one number; `AffineMap()` if None.
        adjacency: For any other conditioner, true at (i, j) where output i reads feature j.
        inversion: How the pull runs; `Incremental()` if None.

    Raises:
        DomainError: The adjacency is missing, given twice, or has a circle; or conditioner and map
            differ in the number of parameters.

    Example:
        >>> from cflow.state import State
        >>> layer = AutoregressiveLayer(MaskedMLP(3, 2, hidden_features=(16, 16)))
        >>> x = torch.randn(4, 3)
        >>> torch.allclose(layer.pull(layer.push(State(x))).x, x, atol=1e-5)
        True
    """

    def __init__(
        self,
        conditioner: Callable[[Tensor, Tensor | None], Tensor],
        univariate: UnivariateMap | None = None,
        *,
        adjacency: Tensor | None = None,
        inversion: Inversion | None = None,
    ) -> None:
        super().__init__(event_dim=1)
        self.univariate = AffineMap() if univariate is None else univariate
        self.conditioner = conditioner
        self.inversion = Incremental() if inversion is None else inversion
        if isinstance(conditioner, MaskedMLP):
            if conditioner.parameters_each != self.univariate.parameters:
                raise DomainError(
                    f"AutoregressiveLayer: {self.univariate} needs {self.univariate.parameters} "
                    f"parameters for each feature, the MaskedMLP gives "
                    f"{conditioner.parameters_each}"
                )
            if adjacency is not None:
                raise DomainError("AutoregressiveLayer: a MaskedMLP brings its own adjacency")
            depths(conditioner.adjacency)
            self._depth = ()
        else:
            if adjacency is None:
                raise DomainError(
                    "AutoregressiveLayer: a conditioner other than MaskedMLP needs an adjacency, "
                    "such as cflow.nets.adjacency_of_order(range(features))"
                )
            self._depth = tuple(depths(torch.as_tensor(adjacency, dtype=torch.bool)).tolist())
        self.inversion.check(max(self.depth) + 1)

    @property
    def depth(self) -> tuple[int, ...]:
        """For each feature the longest chain of features that leads to it."""
        net = self.conditioner
        return net.depth if isinstance(net, MaskedMLP) else self._depth

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        expect_trailing("AutoregressiveLayer.push", "x", x, (len(self.depth),))
        theta = self._split(self.conditioner(x, context))
        y, slopes = in_full_precision(self.univariate.push, x, theta)
        return y, slopes if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        expect_trailing("AutoregressiveLayer.pull", "y", y, (len(self.depth),))
        net = self.conditioner if isinstance(self.conditioner, MaskedMLP) else None
        system = Triangular(self._steer, self.univariate, self.depth, net)
        if not plain():  # gradients are not always those of plain autograd there
            x, slopes = unrolled(system, y, context)
            return x, slopes if tracked else None
        rows = y.reshape(-1, y.shape[-1])
        given = None if context is None else context.reshape(-1, *context.shape[y.dim() - 1 :])
        with torch.no_grad():
            x, slopes = self.inversion.solve(system, rows, given)
        sources = (y, context, *self.parameters())
        if torch.is_grad_enabled() and any(s is not None and s.requires_grad for s in sources):
            x = attach(system, x, rows, given)
            if tracked:  # once more at the solution, for a log-determinant with gradients
                slopes = -system.push(x, given)[1]
        return x.reshape(y.shape), slopes.reshape(y.shape) if tracked else None

    def _steer(self, x: Tensor, context: Tensor | None) -> Tensor:
        net = self.conditioner
        return self._split((net.steady if isinstance(net, MaskedMLP) else net)(x, context))

    def _split(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (len(self.depth), self.univariate.parameters))
