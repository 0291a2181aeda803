"""Relaxed flows: tokens that are reached through points between them, by an ODE.

    x_0 ~ noise,    dx/dt = v(t, x),    token = argmax_k x_1k

They are continuous relatives of jump flows, with the same interface: integers in, integers out. As
a base and a transport they are a `Flow`, which samples, is saved and is solved like any other. The
field is one of two:

    posterior:  logits of p(x1 | x_t); cross-entropy;  v = sum_i p_i v(t, x | x1 = i)
    velocity:   v itself; squared error

Source: Stark et al. (2024), arXiv 2402.05841; Davis et al. (2024), arXiv 2405.14664.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_tokens
from cflow.field import Field
from cflow.flow import Flow
from cflow.jump.vertices import VertexPath
from cflow.matching import (
    ContextDropout,
    Coupling,
    IndependentCoupling,
    Stratified,
    TimeLaw,
    UniformTimes,
)
from cflow.matching.path import PathPoint
from cflow.ode import Euler, Solver
from cflow.transport import ODE, Chain
from cflow.typing import Batch, Data, Points, Times

__all__ = [
    "RelaxedField",
    "VertexPosterior",
    "VertexVelocity",
    "relaxed_flow",
    "relaxed_matching",
]

INDEPENDENT = IndependentCoupling()
TIMES = Stratified(UniformTimes())
STEPS = Euler(64)

PointFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class RelaxedField(Field):
    """A velocity along a path to vertices, which says how it is trained.

    Args:
        network: Called as `network(t, x, context)` with points `(*batch, *event, vocabulary)`,
            returns numbers of the same shape.
        path: The path that it follows.

    Raises:
        ShapeError: On use, the network answers with another shape.
    """

    def __init__(self, network: PointFunction, path: VertexPath) -> None:
        super().__init__()
        self.network = network
        self.path = path

    @abstractmethod
    def error(self, point: PathPoint, x1: Data, context: Tensor | None = None) -> Tensor:
        """Return one number for each token.

        Args:
            point: Times `(n,)`, points there `(n, *event, vocabulary)`, and their velocities.
            x1: Tokens that the points are on their way to, `(n, *event)`.
            context: Conditions `(n, *context)`.

        Returns:
            `(n, *event)`.
        """

    def ask(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Return what the network says, of the shape of x."""
        value = self.network(t, x, context)
        if value.shape != x.shape:
            raise ShapeError(
                f"{type(self).__name__}: the network must return one number for each value of each "
                f"token, {tuple(x.shape)}, got {tuple(value.shape)}"
            )
        return value


class VertexPosterior(RelaxedField):
    """Predict the token from a point, and go to all vertices by how likely they are.

    Guidance goes around the network, `ClassifierFree(network, 2.0, null=...)`, and mixes logits.

    Args:
        network: Gives logits of p(x1 | x_t).
        path: `DirichletPath` or `FisherPath`.

    Example:
        >>> from cflow.jump import DirichletPath
        >>> even = lambda t, x, context: torch.zeros_like(x)
        >>> field = VertexPosterior(even, DirichletPath(4))
        >>> x = torch.full((1, 3, 4), 0.25)
        >>> bool((field(torch.tensor([0.5]), x).abs() < 1e-6).all())
        True
    """

    def logits(self, t: Times, x: Points, context: Tensor | None = None) -> Tensor:
        """Return unnormalised log p(x1 | x_t), of the shape of x."""
        return self.ask(t, x, context)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        logits = self.logits(t, x, context)
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        return self.path.velocity(t, x, p)

    def error(self, point: PathPoint, x1: Data, context: Tensor | None = None) -> Tensor:
        """Return the cross-entropy, -log p(x1 | x_t), of each token."""
        logits = self.logits(point.t, point.x, context)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return -log_p.gather(-1, x1[..., None])[..., 0]


class VertexVelocity(RelaxedField):
    """Predict the velocity itself.

    Args:
        network: Gives velocities; their part off the space of points is taken away.
        path: `FisherPath`, say.

    Example:
        >>> from cflow.jump import FisherPath
        >>> field = VertexVelocity(lambda t, x, context: torch.ones_like(x), FisherPath(2))
        >>> field(torch.zeros(1), torch.tensor([[0.0, 1.0]])).tolist()
        [[1.0, 0.0]]
    """

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.path.tangent(x, self.ask(t, x, context).to(x.dtype))

    def error(self, point: PathPoint, x1: Data, context: Tensor | None = None) -> Tensor:
        """Return the squared error of the velocity of each token."""
        return (self(point.t, point.x, context) - point.target).square().sum(-1)


def relaxed_flow(
    field: RelaxedField,
    event_shape: Sequence[int] | int,
    *,
    solver: Solver = STEPS,
    context_shape: Sequence[int] | None = None,
) -> Flow:
    """Return a flow of tokens.

    Its `log_prob` is a lower bound along a `DirichletPath`, and there is none along a `FisherPath`,
    which says why.

    Args:
        field: The velocity and its path.
        event_shape: Shape of one point of tokens, such as a length; () for a single token.
        solver: How the ODE is solved; for the bound take one that is accurate, `RK4(32)` say, by
            `flow.with_solver`.
        context_shape: Shape of one condition, or None for an unconditional flow.

    Returns:
        `Flow(base, Chain(ODE, layer))`; `sample` gives integers `(*shape, *event_shape)`.

    Example:
        >>> from cflow.field import FlattenedField, MLPField
        >>> from cflow.jump import DirichletPath
        >>> from cflow.state import State
        >>> network = FlattenedField(MLPField(5 * 4), (5, 4))
        >>> flow = relaxed_flow(VertexPosterior(network, DirichletPath(4)), 5)
        >>> x = flow.transport.push(State(flow.base.sample((3,)))).x  # as flow.sample(3) does
        >>> x.shape, x.dtype, flow.likelihood
        (torch.Size([3, 5]), torch.int64, 'bound')
    """
    event = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    path, axes = field.path, len(event)
    ode = ODE(field, solver, manifold=path.manifold(axes))
    transport = Chain(ode, path.nearest(axes))
    return Flow(path.base(event), transport, context_shape=context_shape)


def relaxed_matching(
    flow: Flow,
    x1: Data,
    context: Tensor | None = None,
    *,
    x0: Points | None = None,
    coupling: Coupling = INDEPENDENT,
    t: Times | None = None,
    times: TimeLaw = TIMES,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the loss of each data point, averaged over its tokens.

    Args:
        flow: What `relaxed_flow` made.
        x1: Data tokens `(n, *event)`.
        context: Conditions `(n, *context_shape)`.
        x0: Starts `(m, *event, vocabulary)`; drawn from the base by default.
        coupling: Which start goes to which vertices.
        t: Times `(n,)`, one for each pair; drawn by default.
        times: The law of times.
        weight: Factor on the loss of each time, a function of `(n,)`.
        dropout: Leaves out conditions, for guidance.
        generator: Source of the randomness.

    Returns:
        One number per pair, `(n,)`.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: x1 holds no data tokens, or the flow has no relaxed field.

    Example:
        >>> from cflow.field import FlattenedField, MLPField
        >>> from cflow.jump import FisherPath
        >>> network = FlattenedField(MLPField(2 * 3), (2, 3))
        >>> flow = relaxed_flow(VertexPosterior(network, FisherPath(3)), 2)
        >>> relaxed_matching(flow, torch.randint(3, (8, 2))).shape
        torch.Size([8])
    """
    field = _field(flow)
    path = field.path
    _expect_data(flow, path.vocabulary, x1, context)
    x1 = x1.long()
    if x0 is None:
        x0 = flow.base.sample((len(x1),), generator=generator)
    ends = functional.one_hot(x1, path.vocabulary).to(x0)
    i, j, mass = coupling(x0, ends, context, generator=generator)
    x0, x1, ends, context = x0[i], x1[j], ends[j], None if context is None else context[j]
    t = times.sample(len(x1), like=x0, generator=generator) if t is None else t
    noise = None
    if path.random:
        noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)
    point = path.sample(x0, ends, t, noise=noise)
    if dropout is not None and context is not None:
        context, _ = dropout.drop(context, generator=generator)
    value = field.error(point, x1, context).reshape(len(x1), -1).mean(1)
    if weight is not None:
        value = weight(t) * value
    return value if mass is None else mass.to(value) * value


def _field(flow: Flow) -> RelaxedField:
    for part in flow.transport.modules():
        if isinstance(part, RelaxedField):
            return part
    raise DomainError(
        "relaxed_matching: the flow has no field along a path to vertices; build it by "
        "relaxed_flow(VertexPosterior(network, path), event_shape)"
    )


def _expect_data(flow: Flow, vocabulary: int, x1: Tensor, context: Tensor | None) -> None:
    expect_tokens("relaxed_matching", x1, flow.event_shape, vocabulary)
    if x1.dim() != len(flow.event_shape) + 1 or (context is not None and len(context) != len(x1)):
        raise ShapeError(
            "relaxed_matching: x1 needs one leading batch axis, and the context one condition for "
            f"each point, got {tuple(x1.shape)} and "
            f"{None if context is None else tuple(context.shape)}"
        )
    if (context is None) != (flow.context_shape is None):
        raise DomainError(
            f"relaxed_matching: the flow {'takes no' if flow.context_shape is None else 'needs a'} "
            f"context, got {None if context is None else tuple(context.shape)}"
        )
