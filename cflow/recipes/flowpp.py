"""Flow++ on vectors: coupling layers that move numbers by mixtures of logistics.

Source: Ho et al. (2019), Flow++: improving flow-based generative models with variational
dequantization and architecture design, arXiv 1902.00275, section 3.2.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.coupling import Mixing, coupling_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import LogisticMixtureMap

__all__ = ["flowpp"]


@recipe
def flowpp(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden_features: Sequence[int] = (512, 512),
    units: int = 8,
    mixing: Mixing = "permute",
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a flow of logistic-mixture couplings, with ActNorm between layers.

    Call `flow.initialize(batch)` before training to set the ActNorms. The other direction has no
    closed form: each number is found by a bracketed Newton iteration.

    Args:
        features: Coordinates of a point, at least 2.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of coupling layers.
        hidden_features: Widths of each conditioner's hidden layers.
        units: Components of each mixture.
        mixing: Permute at random, or mix by a learned PLU map as well.
        dropout: Dropout probability of the conditioners.
        fast: Which direction is in closed form.

    Raises:
        DomainError: Fewer than two features or one transform.

    Example:
        >>> flowpp(features=4, transforms=2, hidden_features=(16,)).sample(3).shape
        torch.Size([3, 4])
    """
    return coupling_flow(
        "flowpp",
        features,
        context,
        LogisticMixtureMap(units),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        mixing=mixing,
        dropout=dropout,
    )
