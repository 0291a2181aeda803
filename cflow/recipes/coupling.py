"""Chains of coupling layers: the stack that NICE, Real NVP, spline and Flow++ flows share.

Layers move the two halves of the features in turn; after every second one the features are permuted
at random, or mixed by a learned PLU map.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from cflow.errors import DomainError
from cflow.nets import MLP
from cflow.recipes.orientation import Fast, oriented
from cflow.transport import (
    ActNorm,
    CouplingLayer,
    LULinear,
    Permutation,
    Transport,
    UnivariateMap,
    masks,
)

__all__ = ["Mixing", "coupling_layers"]

Mixing: TypeAlias = Literal["permute", "lu"]
"""How features are mixed: shuffled once and for all, or by a learned PLU map as well."""


def coupling_layers(
    where: str,
    features: int,
    context: int,
    univariate: UnivariateMap,
    *,
    transforms: int,
    hidden_features: Sequence[int],
    fast: Fast,
    mixing: Mixing = "permute",
    normalize: bool = True,
    residual: bool = False,
    dropout: float = 0.0,
) -> list[Transport]:
    """Build the parts of a chain, each starting as the identity up to its permutation.

    Args:
        where: Name of the recipe, for errors.
        features: Coordinates of a point, at least 2.
        context: Length of the context vector.
        univariate: The map that moves each number.
        transforms: Number of coupling layers.
        hidden_features: Widths of each conditioner's hidden layers.
        fast: Which direction is the closed form of the univariate map.
        mixing: How features are mixed after every second layer.
        normalize: Put an ActNorm after each layer.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.

    Raises:
        DomainError: Fewer than two features or one transform.
    """
    if features < 2 or transforms < 1:
        raise DomainError(
            f"{where}: needs 2 features and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
            + ("; a single feature takes an autoregressive recipe such as nsf" * (features == 1))
        )
    parts: list[Transport] = []
    for k in range(transforms):
        moved = masks.halves(features, flip=k % 2 == 1)
        moves = int(moved.sum())
        conditioner = MLP(
            features - moves,
            moves * univariate.parameters,
            context=context,
            hidden_features=hidden_features,
            residual=residual,
            dropout=dropout,
            zero_last=True,
        )
        parts.append(oriented(CouplingLayer(moved, conditioner, univariate), fast))
        if normalize:
            parts.append(ActNorm((features,)))
        if k % 2 and k + 1 < transforms:
            parts.append(Permutation(torch.randperm(features)))
            if mixing == "lu":
                parts.append(oriented(LULinear(features), fast))
    return parts
