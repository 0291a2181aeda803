"""Masked and inverse autoregressive flows: the same layers, cheap in opposite directions.

    push of a plain layer:  y_i = x_i exp(s_i(x_<i)) + b_i(x_<i)

Source: Papamakarios et al. (2017), Masked autoregressive flow, arXiv 1705.07057; Kingma et al.
(2016), Improving variational inference with inverse autoregressive flow, arXiv 1606.04934.
"""

from collections.abc import Sequence

from cflow.flow import Flow
from cflow.recipes.autoregressive import Order, autoregressive_flow
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.transport import AffineMap

__all__ = ["iaf", "maf"]


@recipe
def maf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 5,
    hidden_features: Sequence[int] = (512, 512),
    bound: float = 3.0,
    order: Order = "reverse",
    normalize: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "density",
) -> Flow:
    """Build a masked autoregressive flow on vectors; it starts as the identity.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bound: Largest absolute log-scale of one layer.
        order: How features change places from layer to layer.
        normalize: Put an ActNorm after each layer; call `flow.initialize(batch)` before training.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass; the other inverts layer by layer, each hidden unit
            computed once.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> maf(features=4, transforms=2, hidden_features=(16,)).sample(3).shape
        torch.Size([3, 4])
    """
    return autoregressive_flow(
        "maf",
        features,
        context,
        AffineMap(bound),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        order=order,
        normalize=normalize,
        residual=residual,
        dropout=dropout,
    )


@recipe
def iaf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 6,
    hidden_features: Sequence[int] = (256, 256),
    bound: float = 3.0,
    order: Order = "reverse",
    residual: bool = False,
    dropout: float = 0.0,
    fast: Fast = "sample",
) -> Flow:
    """Build an inverse autoregressive flow for variational inference; it starts as the identity.

    `sample_and_log_prob` takes one pass a layer. The base has a learned mean and scale for each
    feature.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of autoregressive layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bound: Largest absolute log-scale of one layer.
        order: How features change places from layer to layer.
        residual: Join equal widths of the conditioners by skip connections.
        dropout: Dropout probability of the conditioners.
        fast: Which direction takes one pass; "density" gives a MAF on the same base.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> x, log_prob = iaf(features=4, hidden_features=(16,)).sample_and_log_prob(3)
        >>> x.shape, log_prob.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """
    return autoregressive_flow(
        "iaf",
        features,
        context,
        AffineMap(bound),
        transforms=transforms,
        hidden_features=hidden_features,
        fast=fast,
        order=order,
        residual=residual,
        dropout=dropout,
        scaled=True,
    )
