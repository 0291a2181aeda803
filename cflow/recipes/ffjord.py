"""FFJORD: a continuous flow with gated layers, trained on an unbiased estimate of its likelihood.

Source: Grathwohl et al. (2019), FFJORD: free-form continuous dynamics for scalable reversible
generative models, arXiv 1810.01367.
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.errors import expect_positive
from cflow.field import Conditioning, Cost, Divergence, GatedField, Hutchinson
from cflow.flow import Flow
from cflow.nets import Activation
from cflow.ode import Adjoint, Solver
from cflow.recipes.recipe import recipe
from cflow.transport import ODE, Chain, MovingBatchNorm, Transport

__all__ = ["ffjord"]


@recipe
def ffjord(
    features: int,
    context: int = 0,
    *,
    blocks: int = 1,
    hidden_features: Sequence[int] = (64, 64, 64),
    layer: Conditioning = "concatsquash",
    activation: Activation = "tanh",
    batch_norm: bool = True,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    adjoint: Adjoint | None = None,
    cost: Cost | None = None,
    steer: float = 0.0,
) -> Flow:
    """Build FFJORD's flow on vectors: ODEs, with normalisation by moving statistics around each.

    A normalisation stands at the data side of every block, where the field then meets unit spread,
    and one at the base side, where the law it must reach has unit spread; FFJORD's tabular models
    are built so. Call `flow.initialize(batch)` to start them from the data. Evaluate what was
    trained on estimates exactly by `flow.with_solver(divergence=Exact())`.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        blocks: ODEs one after the other, each with a field of its own.
        hidden_features: Widths of each field's hidden layers.
        layer: How every layer sees time and context.
        activation: The function between layers.
        batch_norm: Put a `MovingBatchNorm` at both ends and between blocks.
        solver: How each ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Hutchinson()` by default.
        adjoint: How gradients pass through a solve; `Direct()` by default.
        cost: A regulariser for training, such as `CostSum((KineticEnergy(), JacobianNorm()))`.
        steer: Half width of the random end time in training.

    Raises:
        DomainError: Fewer than one block, or a size is not positive.

    Example:
        >>> import torch
        >>> flow = ffjord(features=3, hidden_features=(16, 16))
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.likelihood
        (torch.Size([5]), 'estimate')
    """
    expect_positive("ffjord", blocks=blocks)
    parts: list[Transport] = []
    for _ in range(blocks):
        if batch_norm:
            parts.append(MovingBatchNorm((features,)))
        field = GatedField(
            features,
            context,
            hidden_features=hidden_features,
            layer=layer,
            activation=activation,
        )
        ode = ODE(
            field,
            solver,
            divergence=Hutchinson() if divergence is None else divergence,
            adjoint=adjoint,
            cost=cost,
            steer=steer,
        )
        parts.append(ode)
    if batch_norm:
        parts.append(MovingBatchNorm((features,)))
    transport = parts[0] if len(parts) == 1 else Chain(*parts)
    return Flow(Gaussian(features), transport, context_shape=(context,) if context else None)
