"""Autoregressive layers: orders and graphs, ways to invert them, maps, contexts."""

import torch
from case import TransportCase
from torch import Tensor, nn

from cflow.nets import MaskedMLP, adjacency_of_order, adjacency_of_passes
from cflow.transport import (
    AffineMap,
    AutoregressiveLayer,
    GaussSeidel,
    Incremental,
    Inverse,
    Inversion,
    Jacobi,
    Passes,
    RationalQuadraticMap,
    UnivariateMap,
)


class Triangle(nn.Module):
    """A conditioner that is no MaskedMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 4))
        self.bias = nn.Parameter(torch.zeros(8))
        self.mask: Tensor
        mask = adjacency_of_order(range(4)).repeat_interleave(2, dim=0)
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x.to(self.weight.dtype)
        return nn.functional.linear(torch.sin(x), self.weight * self.mask, self.bias)


def layer(
    links: Tensor,
    context: int = 0,
    *,
    univariate: UnivariateMap | None = None,
    inversion: Inversion | None = None,
) -> AutoregressiveLayer:
    univariate = AffineMap() if univariate is None else univariate
    net = MaskedMLP(
        links, univariate.parameters, context=context, hidden_features=(8, 8), residual=True
    )
    return AutoregressiveLayer(net, univariate, inversion=inversion)


CASES = [
    TransportCase(
        "inverse autoregressive, context",
        lambda: Inverse(layer(adjacency_of_order([1, 3, 0, 2]), 2, inversion=Incremental(2))),
        event=(4,),
        context=(2,),
    ),
    TransportCase(
        "autoregressive", lambda: layer(adjacency_of_order(range(4))), event=(4,), compiled=False
    ),
    TransportCase(
        "autoregressive, spline",
        lambda: layer(adjacency_of_order([2, 0, 1]), univariate=RationalQuadraticMap(3)),
        compiled=False,
    ),
    TransportCase(
        "autoregressive, two passes, context",
        lambda: layer(adjacency_of_passes(4, 2), 2, inversion=Passes(2)),
        event=(4,),
        context=(2,),
        compiled=False,
    ),
    TransportCase(
        "autoregressive, Jacobi",
        lambda: layer(adjacency_of_order(range(4)), inversion=Jacobi(1e-13)),
        event=(4,),
        compiled=False,
    ),
    TransportCase(
        "autoregressive, Gauss-Seidel, context",
        lambda: layer(adjacency_of_order(range(4)), 2, inversion=GaussSeidel(2, 1e-13)),
        event=(4,),
        context=(2,),
        compiled=False,
    ),
    TransportCase(
        "autoregressive, other conditioner",
        lambda: AutoregressiveLayer(Triangle(), adjacency=adjacency_of_order(range(4))),
        event=(4,),
        compiled=False,
    ),
]
