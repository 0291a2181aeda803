"""Continuous flows on spheres, tori and the rotations: a velocity field on each, or its average.

    uniform law --(ODE on the manifold, or leaps along geodesics)--> data

Train them by flow matching along geodesics, `matching(flow.transport.field, GeodesicPath(manifold),
OTCoupling(cost=GeodesicCost(manifold)), x1, x0=flow.base.sample((len(x1),)))`, or by `nll`; the
average velocity by `mean_flow(flow.transport.flow_map, ...)`.
Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660.
"""

from collections.abc import Callable, Sequence

from cflow.base import ManifoldUniform
from cflow.errors import DomainError
from cflow.field import (
    Divergence,
    Field,
    FourierTime,
    FrameField,
    MLPField,
    NetworkFlowMap,
    PeriodicField,
    SpanTime,
    TangentField,
    TimedMLP,
    TimeEmbedding,
)
from cflow.flow import Flow
from cflow.manifold import Compact, Rotations, Sphere, Steps, Torus
from cflow.ode import Solver
from cflow.recipes.recipe import recipe
from cflow.transport import ODE, Leap, with_solver

__all__ = ["rotation_cnf", "sphere_cnf", "torus_cnf"]


@recipe
def sphere_cnf(
    features: int = 3,
    context: int = 0,
    *,
    hidden_features: Sequence[int] = (128, 128, 128),
    residual: bool = False,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    steps: Steps = "projected",
    average: bool = False,
) -> Flow:
    """Build a velocity-field flow on unit vectors, from the uniform law.

    Args:
        features: Entries of a vector: 3 for the sphere S^2.
        context: Length of the context vector; 0 for an unconditional flow.
        hidden_features: Widths of the field's hidden layers.
        residual: Skip connections between hidden layers of equal width.
        solver: How the ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Exact()` by default.
        steps: How a solver steps, see `Manifold`.
        average: Learn the average velocity between two times, and leap along it: one leap, or
            `Euler(k)` as the solver for k.

    Raises:
        DomainError: Leaps are asked for together with a divergence.

    Example:
        >>> flow = sphere_cnf()
        >>> flow.sample(5).shape, flow.likelihood
        (torch.Size([5, 3]), 'exact')
    """
    space = Sphere(steps=steps)

    def field(time: TimeEmbedding) -> Field:
        net = MLPField(
            features, context, hidden_features=hidden_features, time=time, residual=residual
        )
        return TangentField(net, space)

    return _flow("sphere_cnf", space, features, context, field, solver, divergence, average=average)


@recipe
def torus_cnf(
    features: int,
    context: int = 0,
    *,
    waves: int = 3,
    hidden_features: Sequence[int] = (128, 128, 128),
    residual: bool = False,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    average: bool = False,
) -> Flow:
    """Build a velocity-field flow on angles in [0, 2 pi), from the uniform law.

    Args:
        features: Angles of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        waves: Waves of each angle that the field sees: sin(k x) and cos(k x) up to this k.
        hidden_features: Widths of the field's hidden layers.
        residual: Skip connections between hidden layers of equal width.
        solver: How the ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Exact()` by default.
        average: Learn the average velocity, and leap along it, as for `sphere_cnf`.

    Raises:
        DomainError: Leaps are asked for together with a divergence.

    Example:
        >>> flow = torus_cnf(7)
        >>> flow.sample(5).shape, flow.likelihood
        (torch.Size([5, 7]), 'exact')
    """

    def field(time: TimeEmbedding) -> Field:
        return PeriodicField(
            features,
            context,
            frequencies=waves,
            hidden_features=hidden_features,
            time=time,
            residual=residual,
        )

    return _flow(
        "torus_cnf", Torus(), features, context, field, solver, divergence, average=average
    )


@recipe
def rotation_cnf(
    context: int = 0,
    *,
    hidden_features: Sequence[int] = (128, 128, 128),
    residual: bool = False,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    steps: Steps = "exponential",
    average: bool = False,
) -> Flow:
    """Build a velocity-field flow on rotations, as matrices (3, 3), from Haar's law.

    Args:
        context: Length of the context vector; 0 for an unconditional flow.
        hidden_features: Widths of the field's hidden layers.
        residual: Skip connections between hidden layers of equal width.
        solver: How the ODE is integrated; `Dopri5()` by default.
        divergence: How the log-determinant is computed; `Exact()` by default.
        steps: How a solver steps, see `Manifold`.
        average: Learn the average velocity, and leap along it, as for `sphere_cnf`.

    Raises:
        DomainError: Leaps are asked for together with a divergence.

    Example:
        >>> rotation_cnf().sample(5).shape
        torch.Size([5, 3, 3])
    """
    space = Rotations(steps=steps)

    def field(time: TimeEmbedding) -> Field:
        net = TimedMLP(
            (3, 3), 3, context, hidden_features=hidden_features, time=time, residual=residual
        )
        return FrameField(net, space)

    return _flow("rotation_cnf", space, (3, 3), context, field, solver, divergence, average=average)


def _flow(
    where: str,
    space: Compact,
    shape: Sequence[int] | int,
    context: int,
    field: Callable[[TimeEmbedding], Field],
    solver: Solver | None,
    divergence: Divergence | None,
    *,
    average: bool,
) -> Flow:
    base = ManifoldUniform(space, shape)
    context_shape = (context,) if context else None
    if not average:
        transport = ODE(field(FourierTime(8)), solver, manifold=space, divergence=divergence)
        return Flow(base, transport, context_shape=context_shape)
    if divergence is not None:
        raise DomainError(f"{where}: a divergence belongs to an ODE; leave it out to leap")
    flow_map = NetworkFlowMap(field(SpanTime(FourierTime(2), FourierTime(2))))
    leap = with_solver(Leap(flow_map, manifold=space), solver)
    return Flow(base, leap, context_shape=context_shape)
