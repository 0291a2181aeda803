"""The invertible DenseNet: a contraction whose layers keep what they were given.

    h_{k+1} = [r h_k, s a(W_k h_k + V_k context + b_k)],  r^2 + s^2 = 1,    g(x) = W h_K + b

Each step is 1-Lipschitz, since its parts are, and the learned share (r, s) weighs old against new.
Source: Perugachi-Diaz et al. (2021), Invertible DenseNets with concatenated LipSwish, arXiv
2102.02694, sections 3.1 to 3.4.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.nets.lipschitz import (
    CLipSwish,
    Contraction,
    LipSwish,
    Prepared,
    context_maps,
    context_term,
    layer_share,
    linears,
)
from cflow.nets.spectral import SpectralLinear

__all__ = ["LipschitzDenseNet"]


class LipschitzDenseNet(Contraction):
    """A densely connected network on vectors with a Lipschitz constant of at most `coefficient`.

    Args:
        features: Length of the last axis of x, and of the result.
        context: Length of the context vector; 0 for none.
        depth: Dense layers.
        growth: Features that each of them adds.
        concatenated: Activate by `CLipSwish`, which fills the growth with half as many rows of
            weights; `LipSwish` otherwise.
        coefficient: The bound, in (0, 1).
        tolerance: How far below its bound a layer's norm may end, relatively.

    Raises:
        DomainError: Sizes below 1, an odd growth for pairs, or a coefficient out of range.

    References:
        Perugachi-Diaz et al. (2021), arXiv 2102.02694, equations 8 to 12.

    Example:
        >>> net = LipschitzDenseNet(2, depth=3, growth=16, coefficient=0.9)
        >>> net(torch.zeros(5, 2)).shape, net.certificate() <= 0.9
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        features: int,
        *,
        context: int = 0,
        depth: int = 3,
        growth: int = 16,
        concatenated: bool = True,
        coefficient: float = 0.98,
        tolerance: float = 0.01,
    ) -> None:
        super().__init__()
        layer_share("LipschitzDenseNet", coefficient, 1)
        if depth < 1 or growth < 1 or (concatenated and growth % 2):
            raise DomainError(
                "LipschitzDenseNet: depth and growth must be positive, and growth even for "
                f"CLipSwish, got depth={depth}, growth={growth}"
            )
        rows = growth // 2 if concatenated else growth
        self.layers = nn.ModuleList(
            SpectralLinear(features + k * growth, rows, coefficient=1.0, tolerance=tolerance)
            for k in range(depth)
        )
        self.activations = nn.ModuleList(
            CLipSwish() if concatenated else LipSwish() for _ in range(depth)
        )
        self.inputs = context_maps(context, [rows] * depth)
        self.raw_shares = nn.Parameter(torch.zeros(depth, 2))
        self.last = SpectralLinear(
            features + depth * growth, features, coefficient=coefficient, tolerance=tolerance
        )

    def prepared(self) -> Prepared:
        weights = [layer.bounded_weight() for layer in linears(self.layers)]
        shares = nn.functional.softplus(self.raw_shares.to(weights[0].dtype))
        shares = shares / torch.linalg.vector_norm(shares, dim=-1, keepdim=True)
        return partial(self._run, weights, shares, self.last.bounded_weight())

    def certificate(self) -> float:
        steps = (max(1.0, layer.certificate()) for layer in linears(self.layers))
        return math.prod(steps) * self.last.certificate()

    def _run(
        self, weights: list[Tensor], shares: Tensor, last: Tensor, x: Tensor, context: Tensor | None
    ) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, last.dtype))
        shares = shares.to(h.dtype)
        for k, layer in enumerate(linears(self.layers)):
            z = nn.functional.linear(h, weights[k].to(h.dtype), layer.bias.to(h.dtype))
            new = self.activations[k](z + context_term(self.inputs, k, z, context))
            h = torch.cat([shares[k, 0] * h, shares[k, 1] * new], dim=-1)
        return nn.functional.linear(h, last.to(h.dtype), self.last.bias.to(h.dtype))
