"""Mean flows: train the average velocity of a flow map, from nothing or from a teacher.

    u(r, t, x) = v(r, x) + (t - r) du/dr,                du/dr = d_r u + (d_x u) v
    loss = E |V - target|^2 / event size,                V = u(r, t, x) - (t - r) sg[du/dr]

The first line is the definition of the average velocity, differentiated along the path. In the
loss V stands for the velocity at r, so that the target is that of flow matching: what the path says
for one pair, whose mean over all pairs at x is v. The derivative, held constant (sg), is taken
along the velocity which the map itself has there, u(r, r, x): along that of the one pair, as in the
first mean flows, its noise would be multiplied by a Jacobian.
On a manifold the average velocity is u = log_x(y) / (t - r), for the point y that x will have got
to, exp_x((t - r) u), and the first line reads

    u(r, t, x) = (t - r) du/dr - D_x log_x(y) v,         which is v + (t - r) du/dr in flat space

so the target is - D_x log_x(y) times the velocity of the pair, with y held constant.
Source: Geng et al. (2025), Mean flows for one-step generative modeling, arXiv 2505.13447, equations
6 to 11 and 22; Geng et al. (2025), Improved mean flows, arXiv 2512.02012, section 4, for V and its
tangent. Time is turned round: the source's t, at which the point stands, is our r.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError
from cflow.manifold import Euclidean, Geodesics
from cflow.matching.coupling import Coupling
from cflow.matching.dropout import ContextDropout
from cflow.matching.geodesic import GeodesicPath
from cflow.matching.loss import regression, squared_error
from cflow.matching.path import Path
from cflow.matching.times import TimeLaw, UniformTimes
from cflow.typing import Batch, Points, Times

__all__ = ["Spans", "mean_flow"]

UNIFORM = UniformTimes()

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Spans:
    """The law of the two times: a start, and an end that is it, or later, or the data.

    Attributes:
        starts: The law of the start r.
        instant: Share of samples whose end is their start, which learn the velocity itself.
        whole: Share of samples whose end is the data, t = 1; the rest has an end drawn uniformly
            between start and data.

    Raises:
        DomainError: Shares are negative, or more than one in sum.

    Example:
        >>> r, t = Spans(instant=0.5, whole=0.5).sample(4, like=torch.zeros(1))
        >>> (t == r).tolist(), t[2:].tolist()
        ([True, True, False, False], [1.0, 1.0])
    """

    starts: TimeLaw = UNIFORM
    instant: float = 0.5
    whole: float = 0.1

    def __post_init__(self) -> None:
        if not (self.instant >= 0 and self.whole >= 0 and self.instant + self.whole <= 1):
            raise DomainError(
                "Spans: instant and whole are shares of the samples, got "
                f"instant={self.instant}, whole={self.whole}"
            )

    def sample(
        self, n: int, *, like: Tensor, generator: Generator | None = None
    ) -> tuple[Times, Times]:
        """Draw starts and ends, `(n,)` each: first those at rest, then those that go all the way.

        Args:
            n: How many.
            like: A tensor whose dtype and device they take.
            generator: Source of the randomness.
        """
        r = self.starts.sample(n, like=like, generator=generator)
        return r, self.ends(r, generator=generator)

    def ends(self, r: Times, *, generator: Generator | None = None) -> Times:
        """Draw the ends that belong to starts."""
        n = len(r)
        share = torch.empty_like(r).uniform_(generator=generator)
        at_rest = round(self.instant * n)
        share[:at_rest] = 0.0
        share[at_rest : at_rest + round(self.whole * n)] = 1.0
        return torch.where(share == 1, 1.0, r + (1 - r) * share)


def mean_flow(
    flow_map: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    path: Path,
    coupling: Coupling,
    x1: Points,
    *,
    x0: Points | None = None,
    context: Tensor | None = None,
    source_context: Tensor | None = None,
    spans: Spans | None = None,
    teacher: Velocity | None = None,
    manifold: Geodesics | None = None,
    power: float = 0.0,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the squared velocity error of each pair, averaged over the entries of the event.

    Args:
        flow_map: What is trained, called as `flow_map(r, t, x, context)`.
        path: How a pair is connected.
        coupling: How sources and targets are paired.
        x1: Targets, `(m, *event)`.
        x0: Sources, `(n, *event)`; standard normal noise of the shape of x1 by default.
        context: Conditions of the targets, `(m, *context)`; they follow their target.
        source_context: Conditions of the sources, which only the coupling sees.
        spans: The law of starts and ends.
        teacher: A trained velocity `teacher(t, x, context)`, which then takes the place of the
            path's velocity and of the map's own: distillation. The points are still the path's, so
            give it the path and coupling that the teacher was trained on.
        manifold: Where the points live, where it is not flat space; by default where a
            `GeodesicPath` runs. The map has to be tangent to it, see `TangentField`.
        power: Divide each error by its own value (plus 0.001) to this power, held constant: 1 makes
            outliers count less, as for images in the source; 0 leaves a regression to the mean.
        dropout: Leaves out conditions, for guidance.
        generator: Source of sources, pairs, times, noise and dropout.

    Returns:
        One loss for each pair of the coupling, mostly for each target, `(m,)`.

    Raises:
        ShapeError: Batches disagree, or the map returns another shape.
        DomainError: As for `matching`; or a negative power.

    References:
        Geng et al. (2025), arXiv 2505.13447 and 2512.02012.

    Example:
        >>> from cflow.field import FourierTime, MLPField, NetworkFlowMap, SpanTime
        >>> from cflow.matching import IndependentCoupling, LinearPath
        >>> time = SpanTime(FourierTime(4), FourierTime(4))
        >>> flow_map = NetworkFlowMap(MLPField(2, time=time))
        >>> mean_flow(flow_map, LinearPath(), IndependentCoupling(), torch.randn(16, 2)).shape
        torch.Size([16])
    """
    if not power >= 0:
        raise DomainError(f"mean_flow: power must be 0 or more, got {power}")
    spans = Spans() if spans is None else spans
    asked = regression(
        path,
        coupling,
        x1,
        x0=x0,
        context=context,
        source_context=source_context,
        times=spans.starts,
        dropout=dropout,
        generator=generator,
    )
    r, x, c = asked.t, asked.x, asked.context
    t = spans.ends(r, generator=generator)
    velocity = teacher or (lambda r, x, c: flow_map(r, r, x, c))
    with torch.no_grad():
        v = velocity(r, x, c)
    if v.shape != x.shape:
        raise ShapeError(
            f"mean_flow: the {'map' if teacher is None else 'teacher'} must return the shape of x, "
            f"{tuple(x.shape)}, got {tuple(v.shape)}"
        )
    if teacher is not None:
        asked = asked._replace(target=v)
    if manifold is None and isinstance(path, GeodesicPath):
        manifold = path.manifold
    moving = t > r
    if manifold is not None and not isinstance(manifold, Euclidean):
        asked = asked._replace(target=_seen(manifold, flow_map, r, t, x, c, asked.target))
    change = torch.zeros_like(x)
    if bool(moving.any()):
        rows = moving.nonzero()[:, 0]
        change = change.index_copy(0, rows, _change(flow_map, r, t, x, c, v, rows))

    def at_start(r: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        span = (t - r).reshape(t.shape + (1,) * (x.dim() - 1))
        return flow_map(r, t, x, c) - span * change

    error = squared_error(at_start, asked)
    return error if power == 0 else error / (error.detach() + 1e-3) ** power


@torch.no_grad()
def _seen(
    manifold: Geodesics,
    flow_map: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    r: Tensor,
    t: Tensor,
    x: Tensor,
    c: Tensor | None,
    v: Tensor,
) -> Tensor:
    """Return - D_x log_x(y) v: how fast the way to the point y of the map shrinks as x moves."""
    span = (t - r).reshape(t.shape + (1,) * (x.dim() - 1))
    y = manifold.expmap(x, span * manifold.proju(x, flow_map(r, t, x, c)))
    return -torch.func.jvp(lambda x: manifold.logmap(x, y), (x,), (v,))[1]


@torch.no_grad()
def _change(
    flow_map: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    r: Tensor,
    t: Tensor,
    x: Tensor,
    c: Tensor | None,
    v: Tensor,
    rows: Tensor,
) -> Tensor:
    """Return du/dr along the velocity, at some of the rows."""
    r, t, x, v = r[rows], t[rows], x[rows], v[rows]
    c = None if c is None else c[rows]
    along = lambda r, x: flow_map(r, t, x, c)
    return torch.func.jvp(along, (r, x), (torch.ones_like(r), v))[1]
