"""NICE: additive coupling layers, which keep volumes, and one learned scale for each feature.

Source: Dinh et al. (2015), NICE: non-linear independent components estimation, arXiv 1410.8516.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.coupling import Mixing, coupling_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import AdditiveMap

__all__ = ["nice"]


@recipe
def nice(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden_features: Sequence[int] = (512, 512),
    mixing: Mixing = "permute",
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a NICE flow on vectors; it starts as the identity.

    The scaling layer (equation 13) stands next to the base and is an ActNorm: `flow.initialize`
    sets it from data. All other layers keep volumes. Density and samples take one pass each.

    Args:
        features: Coordinates of a point, at least 2.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of coupling layers.
        hidden_features: Widths of each conditioner's hidden layers.
        mixing: Permute at random, or mix by a learned PLU map as well.
        dropout: Dropout probability of the conditioners.
        fast: Which direction adds; both cost the same.

    Raises:
        DomainError: Fewer than two features or one transform.

    Example:
        >>> nice(features=4, transforms=2).sample(3).shape
        torch.Size([3, 4])
    """
    return coupling_flow(
        "nice",
        features,
        context,
        AdditiveMap(),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        mixing=mixing,
        normalize=False,
        dropout=dropout,
        scaled=True,
    )
