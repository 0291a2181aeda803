"""A continuous normalizing flow: a velocity field in N solver steps, or its average in few leaps.

Train it by maximum likelihood (`nll`) or by flow matching (`matching(flow.transport.field, ...)`),
the average velocity by `mean_flow(flow.transport.flow_map, ...)`.
Source: Chen et al. (2018), arXiv 1806.07366; Lipman et al. (2023), arXiv 2210.02747; Geng et al.
(2025), arXiv 2505.13447.
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.field import Cost, Divergence, FourierTime, MLPField, NetworkFlowMap, SpanTime
from cflow.flow import Flow
from cflow.ode import Solver
from cflow.recipes.recipe import recipe
from cflow.transport import ODE, Leap, with_solver

__all__ = ["cnf"]


@recipe
def cnf(
    features: int,
    context: int = 0,
    *,
    hidden_features: Sequence[int] = (64, 64, 64),
    frequencies: int | None = None,
    residual: bool = False,
    dropout: float = 0.0,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    cost: Cost | None = None,
    average: bool = False,
) -> Flow:
    """Build a velocity-field flow on vectors.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        hidden_features: Widths of the field's hidden layers.
        frequencies: Fourier frequencies of time; 8, or 2 for an average velocity, whose training
            differentiates along time, where fast waves upset it.
        residual: Skip connections between hidden layers of equal width.
        dropout: Dropout probability of the field, in training.
        solver: How the ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Exact()` by default.
        cost: A regulariser for maximum likelihood training.
        average: Learn the average velocity between two times instead, and leap along it: one leap,
            or `Euler(k)` as the solver for k. `divergence` and `cost` are those of an ODE.

    Raises:
        DomainError: Leaps are asked for together with what only an ODE has.

    Example:
        >>> import torch
        >>> cnf(features=2).sample(5).shape
        torch.Size([5, 2])
        >>> cnf(features=2, average=True).sample(5).shape  # one evaluation
        torch.Size([5, 2])
    """
    waves = (2 if average else 8) if frequencies is None else frequencies
    time = FourierTime(waves)
    field = MLPField(
        features,
        context,
        hidden_features=hidden_features,
        time=SpanTime(time, FourierTime(waves)) if average else time,
        residual=residual,
        dropout=dropout,
    )
    if average:
        if divergence is not None or cost is not None:
            raise DomainError("cnf: divergence and cost belong to an ODE; leave them out to leap")
        transport = with_solver(Leap(NetworkFlowMap(field)), solver)
    else:
        transport = ODE(field, solver, divergence=divergence, cost=cost)
    return Flow(Gaussian(features), transport, context_shape=(context,) if context else None)
