"""A continuous normalizing flow: one velocity field, N solver steps.

Train it by maximum likelihood (`nll`) or by flow matching (`matching(flow.transport.field, ...)`).
Source: Chen et al. (2018), arXiv 1806.07366; Lipman et al. (2023), arXiv 2210.02747.
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.field import Cost, Divergence, MLPField
from cflow.flow import Flow
from cflow.ode import Solver
from cflow.recipes.recipe import recipe
from cflow.transport import ODE

__all__ = ["cnf"]


@recipe
def cnf(
    features: int,
    context: int = 0,
    *,
    hidden_features: Sequence[int] = (64, 64, 64),
    frequencies: int = 8,
    residual: bool = False,
    dropout: float = 0.0,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    cost: Cost | None = None,
) -> Flow:
    """Build a velocity-field flow on vectors.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        hidden_features: Widths of the field's hidden layers.
        frequencies: Fourier frequencies of time.
        residual: Skip connections between hidden layers of equal width.
        dropout: Dropout probability of the field, in training.
        solver: How the ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Exact()` by default.
        cost: A regulariser for maximum likelihood training.

    Example:
        >>> import torch
        >>> cnf(features=2).sample(5).shape
        torch.Size([5, 2])
    """
    field = MLPField(
        features,
        context,
        hidden_features=hidden_features,
        frequencies=frequencies,
        residual=residual,
        dropout=dropout,
    )
    transport = ODE(field, solver, divergence=divergence, cost=cost)
    return Flow(Gaussian(features), transport, context_shape=(context,) if context else None)
