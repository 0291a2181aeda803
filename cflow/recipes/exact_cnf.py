"""A continuous flow trained by exact maximum likelihood: its field knows its own divergence.

    d log p / dt = -div v,  in closed form (`TwoLayerField`), at the price of one more evaluation

So training follows the likelihood itself, where FFJORD follows a random estimate of it, and a
tracked solve costs about twice one of points alone, whatever the number of features.
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.errors import expect_positive
from cflow.field import Cost, TwoLayerField
from cflow.flow import Flow
from cflow.nets import Activation
from cflow.ode import Adjoint, Solver
from cflow.recipes.recipe import recipe
from cflow.transport import ODE, Chain

__all__ = ["exact_cnf"]


@recipe
def exact_cnf(
    features: int,
    context: int = 0,
    *,
    hidden_features: Sequence[int] = (256, 256),
    activation: Activation = "tanh",
    frequencies: int = 4,
    blocks: int = 1,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    cost: Cost | None = None,
    steer: float = 0.0,
) -> Flow:
    """Build a continuous flow on vectors whose log-likelihood is exact in training as well.

    It starts as the identity: standardise the data first. Train it with an adaptive solver: under a
    few fixed steps maximum likelihood learns to profit from their error, and the value of the
    training says nothing about the density.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        hidden_features: Widths of each field's two hidden layers.
        activation: The function between layers.
        frequencies: Fourier frequencies of time.
        blocks: ODEs one after the other, each with a field of its own.
        solver: How each ODE is integrated; `Dopri5()` by default.
        adjoint: How gradients pass through a solve; `Direct()` by default.
        cost: A regulariser for training that needs no Frobenius norm: `KineticEnergy`.
        steer: Half width of the random end time in training.

    Raises:
        DomainError: Fewer than one block, or two hidden widths are not given.

    Example:
        >>> import torch
        >>> flow = exact_cnf(features=3, hidden_features=(16, 16))
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.likelihood
        (torch.Size([5]), 'exact')
    """
    expect_positive("exact_cnf", blocks=blocks)
    parts = [
        ODE(
            TwoLayerField(
                features,
                context,
                hidden_features=hidden_features,
                activation=activation,
                frequencies=frequencies,
            ),
            solver,
            adjoint=adjoint,
            cost=cost,
            steer=steer,
        )
        for _ in range(blocks)
    ]
    transport = parts[0] if blocks == 1 else Chain(*parts)
    return Flow(Gaussian(features), transport, context_shape=(context,) if context else None)
