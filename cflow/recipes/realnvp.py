"""Real NVP: affine coupling layers, zero solver steps.

Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803.
"""

from collections.abc import Sequence

import torch

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import MLP
from cflow.recipes.recipe import recipe
from cflow.transport import ActNorm, AffineMap, Chain, CouplingLayer, Permutation, Transport

__all__ = ["realnvp"]


@recipe
def realnvp(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden_features: Sequence[int] = (128, 128),
    bound: float = 3.0,
    dropout: float = 0.0,
) -> Flow:
    """Build a Real NVP flow on vectors, with ActNorm between layers; it starts as the identity.

    Layers move the two halves of the features in turn; after every second one the features are
    permuted at random. Call `flow.initialize(batch)` before training to set the ActNorms.

    Args:
        features: Coordinates of a point, at least 2.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of coupling layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bound: Largest absolute log-scale of one layer.
        dropout: Dropout probability of the conditioners.

    Raises:
        DomainError: Fewer than two features or one transform.

    Example:
        >>> flow = realnvp(features=4, transforms=2)
        >>> flow.log_prob(torch.zeros(3, 4)).shape
        torch.Size([3])
    """
    if features < 2 or transforms < 1:
        raise DomainError(
            f"realnvp: needs 2 features and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
        )
    univariate = AffineMap(bound)
    parts: list[Transport] = []
    for k in range(transforms):
        moved = (torch.arange(features) < features // 2) ^ (k % 2 == 0)
        moves = int(moved.sum())
        conditioner = MLP(
            features - moves,
            moves * univariate.parameters,
            context=context,
            hidden_features=hidden_features,
            dropout=dropout,
            zero_last=True,
        )
        parts += [CouplingLayer(moved, conditioner, univariate), ActNorm((features,))]
        if k % 2 and k + 1 < transforms:
            parts.append(Permutation(torch.randperm(features)))
    context_shape = (context,) if context else None
    return Flow(Gaussian(features), Chain(*parts), context_shape=context_shape)
