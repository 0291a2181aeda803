"""Chains of coupling layers: the stack that NICE, Real NVP, spline and Flow++ flows share.

Layers move the two halves of the features in turn; after every second one the features are permuted
at random, or mixed by a learned PLU map.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import MLP
from cflow.recipes.orientation import Fast, oriented
from cflow.transport import (
    ActNorm,
    Chain,
    CouplingLayer,
    LULinear,
    Permutation,
    Transport,
    UnivariateMap,
    masks,
)

__all__ = ["Mixing", "coupling_flow"]

Mixing: TypeAlias = Literal["permute", "lu"]
"""How features are mixed: shuffled once and for all, or by a learned PLU map as well."""


def coupling_flow(
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
    scaled: bool = False,
) -> Flow:
    """Build a flow of coupling layers on a standard normal base, the identity up to permutations.

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
        scaled: Put an ActNorm next to the base, which then has a learned mean and scale.

    Raises:
        DomainError: Fewer than two features or one transform.
    """
    if features < 2 or transforms < 1:
        raise DomainError(
            f"{where}: needs 2 features and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
            + ("; a single feature takes an autoregressive recipe such as nsf" * (features == 1))
        )
    parts: list[Transport] = [ActNorm((features,))] if scaled else []
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
    context_shape = (context,) if context else None
    return Flow(Gaussian(features), Chain(*parts), context_shape=context_shape)
