"""UMNN-MAF: each number is moved by the integral of a positive network.

Source: Wehenkel and Louppe (2019), Unconstrained monotonic neural networks, arXiv 1908.05164.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.autoregressive import Order, autoregressive_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import UnconstrainedMonotonicMap

__all__ = ["umnn"]


@recipe
def umnn(
    features: int,
    context: int = 0,
    *,
    transforms: int = 3,
    hidden_features: Sequence[int] = (512, 512),
    order: Order = "reverse",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build an autoregressive flow of unconstrained monotonic networks on vectors.

    The other direction has no closed form: it is found by a bracketed Newton iteration.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        order: How features change places from layer to layer.
        normalize: Put an ActNorm after each layer; call `flow.initialize(batch)` before training.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass in closed form.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> umnn(features=3, transforms=1, hidden_features=(8,)).sample(2).shape
        torch.Size([2, 3])
    """
    return autoregressive_flow(
        "umnn",
        features,
        context,
        UnconstrainedMonotonicMap(),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        order=order,
        normalize=normalize,
        residual=residual,
        dropout=dropout,
    )
