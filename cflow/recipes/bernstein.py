"""Bernstein polynomial flows: each number is moved by an increasing polynomial on a box.

Source: Sick et al. (2021), Deep transformation models, arXiv 2004.00464; Ramasinghe et al. (2021),
Robust normalizing flows using Bernstein-type polynomials, arXiv 2102.03509.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.autoregressive import Order, autoregressive_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import BernsteinMap

__all__ = ["bernstein"]


@recipe
def bernstein(
    features: int,
    context: int = 0,
    *,
    transforms: int = 3,
    hidden_features: Sequence[int] = (512, 512),
    degree: int = 16,
    bound: float = 5.0,
    order: Order = "reverse",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build an autoregressive flow of Bernstein polynomials on vectors.

    The other direction has no closed form: it is found by a bracketed Newton iteration.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        degree: Degree of the polynomials.
        bound: Half the side of the box; the map goes on linearly outside.
        order: How features change places from layer to layer.
        normalize: Put an ActNorm after each layer; call `flow.initialize(batch)` before training.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass in closed form.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> bernstein(features=3, transforms=1, hidden_features=(8,)).sample(2).shape
        torch.Size([2, 3])
    """
    return autoregressive_flow(
        "bernstein",
        features,
        context,
        BernsteinMap(degree=degree, bound=bound),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        order=order,
        normalize=normalize,
        residual=residual,
        dropout=dropout,
    )
