"""Maximum likelihood: the loss that trains any flow on data.

nll(x) = -log p(x) + cost(x)
"""

from typing import cast

from torch import Generator, Tensor

from cflow.flow import Flow
from cflow.typing import Batch, Data

__all__ = ["nll"]


def nll(
    flow: Flow, x: Data, context: Tensor | None = None, *, generator: Generator | None = None
) -> Batch:
    """Return the negative log-likelihood of each point, in training plus the ODEs' regularisers.

    In evaluation mode no ODE integrates its cost, so a validation loss is the likelihood alone.

    Args:
        flow: The flow.
        x: Points `(*batch, *event_shape)`.
        context: Conditions `(*batch, *context_shape)`.
        generator: Source of noise for estimates and bounds.

    Returns:
        Nats per point, `(*batch,)`.

    Example:
        >>> import torch
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Chain
        >>> nll(Flow(Gaussian(1), Chain()), torch.zeros(2, 1))
        tensor([0.9189, 0.9189])
    """
    state, context = flow.pull_state(x, context, generator=generator)
    value = -(flow.base.log_prob(state.x, context) + cast(Tensor, state.ladj))
    return value if state.cost is None else value + state.cost
