"""Neural spline flows: rational-quadratic splines, autoregressive or in coupling layers.

Source: Durkan et al. (2019), Neural spline flows, arXiv 1906.04032.
"""

from collections.abc import Sequence
from typing import Literal

from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.recipes.autoregressive import autoregressive_flow
from cflow.recipes.coupling import coupling_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import RationalQuadraticMap

__all__ = ["nsf"]


@recipe
def nsf(
    features: int,
    context: int = 0,
    *,
    kind: Literal["autoregressive", "coupling"] = "autoregressive",
    transforms: int = 5,
    hidden_features: Sequence[int] = (512, 512),
    bins: int = 8,
    bound: float = 5.0,
    mixing: Literal["permute", "lu"] = "permute",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a neural spline flow on vectors; it starts as the identity, up to permutations.

    Splines map [-bound, bound] to itself and leave everything outside as it is: standardise the
    data first. Coupling layers take one pass in either direction, and permute the features at
    random after every second layer; autoregressive ones read the features in turn forwards and
    backwards, fit better, and invert in many small steps.

    Args:
        features: Coordinates of a point; coupling layers need 2.
        context: Length of the context vector; 0 for an unconditional flow.
        kind: Which layers.
        transforms: Number of layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bins: Pieces of each spline.
        bound: Half the side of the box that the splines bend.
        mixing: Only turn round (permute) features between layers, or mix by a PLU map as well.
        normalize: Put an ActNorm after each layer; call `flow.initialize(batch)` before training.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass.

    Raises:
        DomainError: Too few features, or no transform, or an unknown kind.

    Example:
        >>> nsf(features=4, transforms=2, hidden_features=(16,)).sample(3).shape
        torch.Size([3, 4])
    """
    univariate = RationalQuadraticMap(bins=bins, bound=bound)
    if kind == "autoregressive":
        return autoregressive_flow(
            "nsf",
            features,
            context,
            univariate,
            transforms=transforms,
            hidden_features=hidden_features,
            fast=fast,
            order="lu" if mixing == "lu" else "reverse",
            normalize=normalize,
            residual=residual,
            dropout=dropout,
        )
    if kind == "coupling":
        return coupling_flow(
            "nsf",
            features,
            context,
            univariate,
            transforms=transforms,
            hidden_features=hidden_features,
            fast=fast,
            mixing=mixing,
            normalize=normalize,
            residual=residual,
            dropout=dropout,
        )
    raise DomainError(f"nsf: kind must be 'autoregressive' or 'coupling', got {kind!r}")
