"""Neural autoregressive flows: each number is moved by a monotonic network of its own.

Source: Huang et al. (2018), Neural autoregressive flows, arXiv 1804.00779.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.autoregressive import Order, autoregressive_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import NeuralMap

__all__ = ["naf"]


@recipe
def naf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 3,
    hidden_features: Sequence[int] = (512, 512),
    units: int = 8,
    layers: int = 2,
    order: Order = "reverse",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a neural autoregressive flow on vectors.

    The other direction has no closed form: it is found by a bracketed Newton iteration.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        units: Sigmoids in each layer of a monotonic network.
        layers: Depth of the monotonic networks.
        order: How features change places from layer to layer.
        normalize: Put an ActNorm after each layer; call `flow.initialize(batch)` before training.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass in closed form.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> naf(features=3, transforms=1, hidden_features=(8,)).sample(2).shape
        torch.Size([2, 3])
    """
    return autoregressive_flow(
        "naf",
        features,
        context,
        NeuralMap(units, layers),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        order=order,
        normalize=normalize,
        residual=residual,
        dropout=dropout,
    )
