"""Flow matching: regress the velocity of a path, without solving an ODE.

    loss = E w(t) |v(t, x_t) - target|^2 / event size,    t ~ times,  (x0, x1) ~ coupling

A network that predicts x1, noise or the score instead regresses that quantity, its squared error
times the factor that makes it the velocity's. Other errors than the square are in `error.py`.
Source: Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747, equation 9;
Lipman et al. (2024), Flow matching guide and code, arXiv 2412.06264, section 4.8.
"""

from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_floating
from cflow.field import Coefficients, Ends, PathSchedule, Prediction, PredictVelocity
from cflow.matching.coupling import Coupling, IndependentCoupling
from cflow.matching.dropout import ContextDropout
from cflow.matching.error import SquaredError, VelocityError
from cflow.matching.geodesic import expect_source
from cflow.matching.marginal import ends_over_pairs, ends_over_targets
from cflow.matching.path import AffinePath, LinearPath, Path, SchedulePath
from cflow.matching.times import TimeLaw, UniformTimes
from cflow.typing import Batch, Points, Times

__all__ = ["Regression", "matching", "regression", "squared_error"]

UNIFORM = UniformTimes()
VELOCITY = PredictVelocity()
SQUARED = SquaredError()


class Regression(NamedTuple):
    """Hold what a field is asked in one step, and what it ought to answer.

    Attributes:
        t: Times `(n,)`.
        x: Points `(n, *event)`.
        target: Wanted values, of the shape of x.
        context: Conditions `(n, *context)`, or None.
        weight: Factor on each squared error, `(n,)`, or None.
        noise: Standard normal noise of the path, of the shape of x, or None.
    """

    t: Tensor
    x: Tensor
    target: Tensor
    context: Tensor | None
    weight: Tensor | None
    noise: Tensor | None = None


def matching(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    path: Path,
    coupling: Coupling,
    x1: Points,
    *,
    x0: Points | None = None,
    context: Tensor | None = None,
    source_context: Tensor | None = None,
    t: Times | None = None,
    times: TimeLaw = UNIFORM,
    prediction: Prediction = VELOCITY,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    marginal: bool = False,
    error: VelocityError = SQUARED,
    generator: Generator | None = None,
) -> Batch:
    """Return the error of each pair's velocity, by default squared and averaged over the entries.

    Args:
        field: What is trained, called as `field(t, x, context)`.
        path: How a pair is connected.
        coupling: How sources and targets are paired.
        x1: Targets, `(m, *event)`.
        x0: Sources, `(n, *event)`; standard normal noise of the shape of x1 by default. On a
            manifold they have to be given: `x0=flow.base.sample((len(x1),))`.
        context: Conditions of the targets, `(m, *context)`; they follow their target.
        source_context: Conditions of the sources, `(n, *context)`, where they have their own; only
            the coupling sees them.
        t: Times in [0, 1], one for each pair; by default they are drawn from `times`.
        times: The law of the times.
        prediction: What `field` gives; other than the velocity, wrap it in a `PredictionField` of
            the same schedule to sample.
        weight: A further factor `weight(t)`, see `weights.py`.
        dropout: Leaves out conditions, for guidance.
        marginal: Average each target over the batch: less noise, and a bias that vanishes as the
            batch grows, see `marginal.py`. Where there is a context, over the targets of the same
            context, or over all for a sample that lost its own.
        error: How the answer is compared with the target: `PseudoHuber()` or `FeatureError(f)` for
            pairs that a field has made. The marginal velocity, which a field has to learn from
            independent pairs, is the minimum of the square alone.
        generator: Source of sources, pairs, times, noise and dropout.

    Returns:
        One loss for each pair of the coupling, so mostly for each target, `(m,)`; fewer where the
        plan leaves targets without mass (`PartialCoupling`).

    Raises:
        ShapeError: Batches disagree, or the field returns another shape.
        DomainError: Times outside [0, 1]; a prediction or error that the path does not allow;
            averaging where the law of the points given their pair is not known; dropout without a
            context.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.matching import LinearPath, OTCoupling
        >>> matching(MLPField(2), LinearPath(), OTCoupling(), torch.randn(16, 2)).shape
        torch.Size([16])
    """
    _expect_fitting(error, path, prediction)
    asked = regression(
        path,
        coupling,
        x1,
        x0=x0,
        context=context,
        source_context=source_context,
        t=t,
        times=times,
        prediction=prediction,
        weight=weight,
        dropout=dropout,
        marginal=marginal,
        generator=generator,
    )
    return _error(field, asked, error)


def regression(
    path: Path,
    coupling: Coupling,
    x1: Points,
    *,
    x0: Points | None = None,
    context: Tensor | None = None,
    source_context: Tensor | None = None,
    t: Times | None = None,
    times: TimeLaw = UNIFORM,
    prediction: Prediction = VELOCITY,
    weight: Callable[[Tensor], Tensor] | None = None,
    dropout: ContextDropout | None = None,
    marginal: bool = False,
    generator: Generator | None = None,
) -> Regression:
    """Draw the questions of one step, and their answers; arguments as for `matching`.

    Example:
        >>> from cflow.matching import IndependentCoupling, LinearPath
        >>> regression(LinearPath(), IndependentCoupling(), torch.randn(16, 2)).target.shape
        torch.Size([16, 2])
    """
    expect_floating("matching", x1)
    if x0 is None:
        expect_source("matching", path)
    normal = x0 is None and isinstance(coupling, IndependentCoupling)
    x0 = _noise(x1, generator) if x0 is None else x0
    mass = None
    # Noise drawn for each target by itself is paired already; bad shapes are the coupling's to say.
    if not (normal and source_context is None and _one_each(context, x1)):
        i, j, mass = coupling(x0, x1, context, source_context=source_context, generator=generator)
        x0, x1, context = x0[i], x1[j], None if context is None else context[j]
    if t is None:
        t = times.sample(len(x1), like=x1, generator=generator)
    elif t.shape != x1.shape[:1]:
        raise ShapeError(
            f"matching: t needs one time for each of the {len(x1)} pairs, got {tuple(t.shape)}"
        )
    noise = _noise(x1, generator) if path.random else None
    _, x, target = path.sample(x0, x1, t, noise=noise)
    seen, dropped = context, None
    if dropout is not None:
        if context is None:
            raise DomainError(
                "matching: dropout leaves out conditions, but there is no context; give one, or "
                "no dropout"
            )
        seen, dropped = dropout.drop(context, generator=generator)
    factors = [] if mass is None else [mass]
    if marginal or not isinstance(prediction, PredictVelocity):
        schedule, ends = _schedule(path, prediction), Ends(x0, x1)
        if marginal:
            prior = _prior(mass, context, dropped)
            ends = _expected_ends(path, schedule(t), ends, noise, prior, normal=normal)
        target = prediction.value(t, *ends, schedule)
        factors.append(prediction.weight(t, schedule))
    if weight is not None:
        factors.append(_weights(weight, t))
    return Regression(t, x, target, seen, reduce(mul, factors) if factors else None, noise)


def squared_error(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor], asked: Regression
) -> Batch:
    """Return the weighted squared error of a field's answers, averaged over the event, `(n,)`.

    Raises:
        ShapeError: The field returns another shape than that of x.
    """
    return _error(field, asked, SQUARED)


def _error(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    asked: Regression,
    error: VelocityError,
) -> Tensor:
    t, x, target, context, weight, _ = asked
    v = field(t, x, context)
    if v.shape != x.shape:
        raise ShapeError(
            f"matching: the field must return the shape of x, {tuple(x.shape)}, got "
            f"{tuple(v.shape)}"
        )
    value = error(t, x, v, target)
    return value if weight is None else weight * value


def _expect_fitting(error: VelocityError, path: Path, prediction: Prediction) -> None:
    if isinstance(error, SquaredError):
        return
    straight = isinstance(path, LinearPath) or not error.straight
    if not (straight and isinstance(prediction, PredictVelocity)):
        raise DomainError(
            f"matching: {type(error).__name__} measures a velocity"
            f"{' along LinearPath' if error.straight else ''}, got {type(prediction).__name__} "
            f"along {type(path).__name__}; take SquaredError"
        )


def _noise(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.empty_like(like).normal_(generator=generator)  # faster than randn with options


def _one_each(context: Tensor | None, x1: Tensor) -> bool:
    """Say whether there is a target, and a condition for each where there are conditions."""
    return x1.dim() > 0 and len(x1) > 0 and (context is None or context.shape[:1] == x1.shape[:1])


def _weights(weight: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    factor = weight(t)
    if factor.shape != t.shape:
        raise ShapeError(
            f"matching: weight(t) must have the shape of t, {tuple(t.shape)}, got "
            f"{tuple(factor.shape)}"
        )
    return factor


def _schedule(path: Path, prediction: Prediction) -> PathSchedule:
    """Return the schedule of a path along which its ends can be predicted or averaged."""
    if not isinstance(path, SchedulePath):
        raise DomainError(
            f"matching: x1, noise, score and averaged targets need a path with a schedule, got "
            f"{type(path).__name__}; predict its velocity, or take LinearPath or AffinePath"
        )
    if path.random and not isinstance(prediction, PredictVelocity):
        raise DomainError(
            f"matching: on a path with noise {type(prediction).__name__} does not give the "
            "velocity, as the noise is a third unknown; predict the velocity, or set noise=0"
        )
    return path.schedule


def _prior(mass: Tensor | None, context: Tensor | None, dropped: Tensor | None) -> Tensor | None:
    """Return logarithms of the weight that each pair has for each point, `(n,)` or `(n, n)`."""
    prior = None if mass is None else mass.log()
    if context is None:
        return prior
    rows = context.reshape(len(context), -1)
    same = (rows[:, None] == rows).all(-1)
    if dropped is not None:
        same = same | dropped[:, None]  # a sample without condition meets all of them
    other = torch.where(same, 0.0, -torch.inf)
    return other if prior is None else other + prior


def _expected_ends(
    path: Path,
    c: Coefficients,
    ends: Ends,
    noise: Tensor | None,
    prior: Tensor | None,
    *,
    normal: bool,
) -> Ends:
    """Average the ends over the batch, where the law of a point given its pair is known."""
    scale = path.noise if isinstance(path, AffinePath) else 0.0
    if normal and (noise is None or scale > 0):
        return ends_over_targets(c, *ends, noise, scale, prior)
    if noise is not None and scale > 0:
        return ends_over_pairs(c, *ends, noise, scale, prior)
    raise DomainError(
        "matching: averaged targets (marginal=True) need normal sources under the independent "
        "coupling (IndependentCoupling, x0 not given) or an AffinePath with noise; otherwise only "
        "its own pair passes through a point"
    )
