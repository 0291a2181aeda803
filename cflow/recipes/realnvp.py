"""Real NVP: affine coupling layers, zero solver steps.

Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.coupling import Mixing, coupling_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import AffineMap

__all__ = ["realnvp"]


@recipe
def realnvp(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden_features: Sequence[int] = (512, 512),
    bound: float = 3.0,
    mixing: Mixing = "permute",
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a Real NVP flow on vectors, with ActNorm between layers; it starts as the identity.

    Layers move the two halves of the features in turn; after every second one the features are
    permuted at random. Call `flow.initialize(batch)` before training to set the ActNorms. Density
    and samples take one pass each.

    Args:
        features: Coordinates of a point, at least 2.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of coupling layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bound: Largest absolute log-scale of one layer.
        mixing: Permute at random, or mix by a learned PLU map as well.
        dropout: Dropout probability of the conditioners.
        fast: Which direction multiplies; both cost the same.

    Raises:
        DomainError: Fewer than two features or one transform.

    Example:
        >>> import torch
        >>> flow = realnvp(features=4, transforms=2)
        >>> flow.log_prob(torch.zeros(3, 4)).shape
        torch.Size([3])
    """
    return coupling_flow(
        "realnvp",
        features,
        context,
        AffineMap(bound),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        mixing=mixing,
        dropout=dropout,
    )
