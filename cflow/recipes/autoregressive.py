"""Chains of masked autoregressive layers: the stack that MAF, IAF, spline and neural flows share.

Layers read the features in an order and its reverse in turn, or in orders drawn at random. Their
conditioners have rectified linear units, as those of the papers.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import MaskedMLP
from cflow.recipes.orientation import Fast, oriented
from cflow.transport import (
    ActNorm,
    AutoregressiveLayer,
    Chain,
    LULinear,
    Transport,
    UnivariateMap,
)

__all__ = ["Order", "autoregressive_flow"]

Order: TypeAlias = Literal["reverse", "random", "lu"]
"""How features change places between layers: turned round, drawn anew, or turned round and mixed by
a learned PLU map."""


def autoregressive_flow(
    where: str,
    features: int,
    context: int,
    univariate: UnivariateMap,
    *,
    transforms: int,
    hidden_features: Sequence[int],
    fast: Fast,
    order: Order = "reverse",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    scaled: bool = False,
) -> Flow:
    """Build a flow of autoregressive layers on a standard normal base, starting as the identity.

    Args:
        where: Name of the recipe, for errors.
        features: Coordinates of a point.
        context: Length of the context vector.
        univariate: The map that moves each number.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        fast: Which direction takes one pass: the density's (MAF) or the sampler's (IAF).
        order: How features change places from layer to layer.
        normalize: Put an ActNorm after each layer.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        scaled: Put an ActNorm next to the base, which then has a learned mean and scale.

    Raises:
        DomainError: No feature or no transform.
    """
    if features < 1 or transforms < 1:
        raise DomainError(
            f"{where}: needs 1 feature and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
        )
    parts: list[Transport] = [ActNorm((features,))] if scaled else []
    for k in range(transforms):
        places = torch.arange(features)
        if order == "random":
            places = torch.randperm(features)
        elif k % 2:
            places = places.flip(0)
        conditioner = MaskedMLP(
            features,
            univariate.parameters,
            order=places,
            context=context,
            hidden_features=hidden_features,
            activation=nn.functional.relu,
            residual=residual,
            dropout=dropout,
            zero_last=True,
        )
        parts.append(oriented(AutoregressiveLayer(conditioner, univariate), fast))
        if normalize:
            parts.append(ActNorm((features,)))
        if order == "lu" and features > 1 and k + 1 < transforms:
            parts.append(oriented(LULinear(features), fast))
    context_shape = (context,) if context else None
    return Flow(Gaussian(features), Chain(*parts), context_shape=context_shape)
