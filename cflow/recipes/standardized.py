"""A flow on vectors in the data's own units: any flow, with its standardisation as part of it.

vector --flow--> standardised --scale, shift--> data
"""

from cflow.flow import Flow
from cflow.recipes.recipe import recipe
from cflow.transport import Chain, Standardize

__all__ = ["standardized"]


@recipe
def standardized(flow: Flow) -> Flow:
    """Extend a flow by a last layer that carries mean and spread of the data, entry by entry.

    Its densities are in the data's own units, and it saves and loads as one file. Call `initialize`
    with training data first, which sets this layer together with the flow's own.

    Args:
        flow: A flow for standardised data.

    Example:
        >>> import torch
        >>> from cflow.recipes import nsf
        >>> flow = standardized(nsf(2, transforms=1, hidden_features=(8,)))
        >>> data = 100 + 5 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> flow.initialize(data)
        >>> flow.pull(data).std(0).round(decimals=3).tolist()
        [1.0, 1.0]
    """
    chain = Chain(flow.transport, Standardize(flow.event_shape))
    return Flow(flow.base, chain, context_shape=flow.context_shape)
