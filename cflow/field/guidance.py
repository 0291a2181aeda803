"""Guidance: fields that go beyond what was trained, towards a condition or a density.

    classifier-free:  v = v_null + s (v_context - v_null)
    autoguidance:     v = v_weak + s (v - v_weak)
    log-density:      v + s (sigma W / alpha) grad log p(y | x_t),  W = alpha' sigma - alpha sigma'

At scale s = 1 the first two are the trained field itself, and the third is exactly the velocity of
the law given y where p(y | x_t) is the true one. A guided field is a field like any other, so every
solver and sampler takes it, and so does `log_prob`: that of the guided model, which is the law its
samples follow, and neither the trained model's nor p(x | y)^s.
Sources: Ho and Salimans (2022), arXiv 2207.12598, equation 6; Karras et al. (2024), arXiv
2406.02507; Zheng et al. (2023), Guided flows, arXiv 2311.13443, lemma 1; Dhariwal and Nichol
(2021), arXiv 2105.05233.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, known
from cflow.field.field import Field
from cflow.field.null import Null, null_like, null_tensor, with_and_without
from cflow.field.prediction import PredictVelocity
from cflow.field.schedule import PathSchedule
from cflow.typing import Batch, Points, Times

__all__ = [
    "AutoGuided",
    "ClassifierFree",
    "LogDensityGuided",
    "Steering",
    "expect_scale",
    "steering",
]

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Interval: TypeAlias = tuple[float, float]

FIRST, LAST = 1e-3, 1 - 1e-4  # times between which sigma W / alpha is taken


class ClassifierFree(Field):
    """Guide a field that knows its condition away from itself without one.

        v = v_null + s (v_context - v_null),    and v_context outside of the interval

    Both velocities come from one evaluation of twice the batch, where the null context has the
    shape of the context. Scale 1 is the field itself and scale 0 the field at the null context;
    either costs one evaluation.

    Args:
        field: Called as `field(t, x, context)`; trained with its context hidden now and then.
        scale: The s.
        null: The context that says nothing, for one sample: a class index, a number for each entry
            of a vector, a vector, a sequence; None to call the field with no context at all.
        interval: Times between which samples are guided. A solver with error control finds the
            ends by itself; with fixed steps let them fall on the grid.
        rescale: How far to bring the spread of the guided velocity over its entries back to that of
            v_context, from 0 (not) to 1 (fully), against oversaturation.
        projected: Before mixing, replace v_null by the projection of v_context on it, (v_context .
            v_null / |v_null|^2) v_null, which takes out errors of length in an undertrained field.

    Raises:
        DomainError: The scale is negative, the interval not within [0, 1], or `rescale` outside of
            it; when called without a context, or to rescale points of one entry.
        ShapeError: When called with a context that the null one does not fit.

    References:
        Ho and Salimans (2022), arXiv 2207.12598; Kynkaanniemi et al. (2024), arXiv 2404.07724
        (interval); Lin et al. (2024), arXiv 2305.08891, equations 14 to 16 (rescale); Fan et al.
        (2025), CFG-Zero*, arXiv 2503.18886 (projected).

    Example:
        >>> from cflow.field import MLPField
        >>> field = ClassifierFree(MLPField(2, 3), 2.0, null=0.0, interval=(0.2, 0.9))
        >>> field(torch.rand(5), torch.randn(5, 2), torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        field: Velocity,
        scale: float,
        *,
        null: Null,
        interval: Interval = (0.0, 1.0),
        rescale: float = 0.0,
        projected: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise DomainError(f"ClassifierFree: rescale must lie in [0, 1], got {rescale}")
        self.field = field
        self.scale = expect_scale("ClassifierFree", scale)
        self.interval = _expect_interval("ClassifierFree", interval)
        self.rescale = rescale
        self.projected = projected
        self.null: Tensor | None
        self.register_buffer("null", null_tensor(null), persistent=False)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        inside = _inside(self.interval, t)
        if self.scale == 1 or _nowhere(inside):
            return self.field(t, x, context)
        weak_context = null_like("ClassifierFree", self.null, t, context)
        if self.scale == 0 and inside is None and not (self.rescale or self.projected):
            return self.field(t, x, weak_context)
        v, weak = with_and_without(self.field, t, x, context, weak_context)
        if self.projected:
            square = _inner(t, weak, weak)
            weak = weak * (_inner(t, v, weak) / square.clamp_min(torch.finfo(v.dtype).tiny))
        guided = weak + self.scale * (v - weak)
        if self.rescale:
            guided = guided * (1 - self.rescale + self.rescale * _relative_spread(t, v, guided))
        return _where(inside, guided, v)


class AutoGuided(Field):
    """Guide a field away from a worse version of itself: smaller, or trained for less time.

        v = v_weak + s (v - v_weak)

    Both are asked with the same context, if any; scale 1 is the field itself at its cost.

    Args:
        field: The better one, called as `field(t, x, context)`.
        weak: The worse one; it must suffer from the same ills, only more.
        scale: The s.
        interval: Times between which samples are guided; outside of them v alone counts.

    Raises:
        DomainError: The scale is negative, or the interval not within [0, 1].

    References:
        Karras et al. (2024), Guiding a diffusion model with a bad version of itself, arXiv
        2406.02507.

    Example:
        >>> from cflow.field import MLPField
        >>> field = AutoGuided(MLPField(2), MLPField(2, hidden_features=(8,)), scale=2.0)
        >>> field(torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, field: Velocity, weak: Velocity, *, scale: float, interval: Interval = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.field = field
        self.weak = weak
        self.scale = expect_scale("AutoGuided", scale)
        self.interval = _expect_interval("AutoGuided", interval)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        inside = _inside(self.interval, t)
        if self.scale == 1 or _nowhere(inside):
            return self.field(t, x, context)
        weak = self.weak(t, x, context)
        if self.scale == 0 and inside is None:
            return weak
        v = self.field(t, x, context)
        return _where(inside, weak + self.scale * (v - weak), v)


class LogDensityGuided(Field):
    """Guide a field by the gradient of any log-density: a classifier, an energy, a likelihood.

        v + s (sigma W / alpha) grad_x l

    With l = log p(y | x_t), the true law of a y given a noisy point, s = 1 turns the velocity of
    p(x) into that of p(x | y): a velocity is a multiple of x plus sigma W / alpha times the score,
    and the scores of p and of p(y | .) add up. l = log p(y | x1) is known more often; `of="data"`
    takes it at the expected end of the path, E[x1 | x_t], with the gradient through the field. That
    is exact only where the end is certain: guidance then is too sharp early on. For observations
    that are linear in x1, `cflow.samples.sample_posterior` does better.

    The base must be standard normal. Within 1e-3 of t = 0 and 1e-4 of t = 1, where sigma W / alpha
    or its parts diverge or vanish, the gradient term is taken at these times; and the velocity too,
    where the gradient passes through it.

    Args:
        field: The velocity, called as `field(t, x, context)`.
        log_density: Called like the field; returns one number per sample, `(*batch,)`, in nats.
        schedule: The path on which the field was trained.
        scale: The s.
        of: What `log_density` is asked about: the noisy "point", or the "data".
        interval: Times between which samples are guided.

    Raises:
        DomainError: The scale is negative, or the interval not within [0, 1].
        ShapeError: When called, if `log_density` does not return one number per sample.

    References:
        Dhariwal and Nichol (2021), arXiv 2105.05233; Chung et al. (2023), Diffusion posterior
        sampling, arXiv 2209.14687 (at the data).

    Example:
        >>> from cflow.field import LinearSchedule, MLPField
        >>> right = lambda t, x, context: torch.nn.functional.logsigmoid(4 * x[..., 0])
        >>> field = LogDensityGuided(MLPField(2), right, schedule=LinearSchedule(), of="data")
        >>> field(torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        field: Velocity,
        log_density: Velocity,
        *,
        schedule: PathSchedule,
        scale: float = 1.0,
        of: Literal["point", "data"] = "point",
        interval: Interval = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.field = field
        self.log_density = log_density
        self.schedule = schedule
        self.scale = expect_scale("LogDensityGuided", scale)
        self.of: Literal["point", "data"] = of
        self.interval = _expect_interval("LogDensityGuided", interval)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        inside = _inside(self.interval, t)
        if self.scale == 0 or _nowhere(inside):
            return self.field(t, x, context)
        at = steering(self.schedule, t)
        if self.of == "point":
            v, gradient = self.field(t, x, context), self._gradient(at.t, x, context)
        else:
            v, gradient = self._through_the_field(at.t, x, context)
        rate = (self.scale * at.rate).reshape(t.shape + (1,) * (x.dim() - t.dim()))
        return _where(inside, v + rate * gradient, v)

    def _gradient(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        # torch.func, since it works under no_grad and inside of an exact divergence as well.
        value, pull_back, *_ = torch.func.vjp(lambda z: self.log_density(t, z, context), x)
        return pull_back(_expect_values(value, t))[0]

    def _through_the_field(
        self, t: Tensor, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        def at_the_end(z: Tensor) -> tuple[Tensor, Tensor]:
            v = self.field(t, z, context)
            end = PredictVelocity().ends(t, z, v, self.schedule).x1
            return self.log_density(t, end, context), v

        value, pull_back, *rest = torch.func.vjp(at_the_end, x, has_aux=True)
        return cast(Tensor, rest[0]), pull_back(_expect_values(value, t))[0]


class Steering(NamedTuple):
    """Hold how strongly a gradient of log p(y | x_t) acts on a velocity, and at which times.

    Attributes:
        t: The times, a margin away from both ends, `(*batch,)`.
        rate: Sigma W / alpha there, `(*batch,)`.
    """

    t: Tensor
    rate: Tensor


def steering(schedule: PathSchedule, t: Times) -> Steering:
    """Return the factor sigma W / alpha of a score in its velocity, finite at both ends of time.

    At t = 0 the factor diverges where alpha vanishes, while the gradient that it multiplies
    vanishes; both are taken at t = 1e-3, so that their product is near its limit.

    Args:
        schedule: The path's coefficients.
        t: Times `(*batch,)`.

    Example:
        >>> from cflow.field import LinearSchedule
        >>> steering(LinearSchedule(), torch.tensor([0.25])).rate
        tensor([3.])
    """
    inner = t.clamp(FIRST, LAST)
    c = schedule(inner)
    return Steering(inner, c.sigma * c.wronskian / c.alpha)


def expect_scale(where: str, scale: float) -> float:
    """Return a scale of guidance, or raise `DomainError` where it is none."""
    if not 0 <= scale < math.inf:
        raise DomainError(f"{where}: scale must be 0 or positive, and finite, got {scale}")
    return scale


def _expect_interval(where: str, interval: Interval) -> Interval:
    first, last = interval
    if not 0 <= first < last <= 1:
        raise DomainError(
            f"{where}: interval must be two rising times in [0, 1] (0 = base, 1 = data), got "
            f"{interval}"
        )
    return first, last


def _expect_values(value: Tensor, t: Tensor) -> Tensor:
    """Return ones, the cotangents of one number per sample."""
    if value.shape != t.shape:
        raise ShapeError(
            f"LogDensityGuided: log_density must return one number per sample, {tuple(t.shape)}, "
            f"got {tuple(value.shape)}; sum it over the event axes"
        )
    return torch.ones_like(value)


def _inside(interval: Interval, t: Tensor) -> Tensor | None:
    """Flag the times at which to guide, or return None where all of them are such."""
    return None if interval == (0, 1) else (interval[0] <= t) & (t <= interval[1])


def _nowhere(inside: Tensor | None) -> bool:
    """Say whether no sample is guided, so that half of the work can be saved; False if unknown."""
    return inside is not None and known(inside.any()) is False


def _where(inside: Tensor | None, guided: Tensor, v: Tensor) -> Tensor:
    if inside is None:
        return guided
    return torch.where(inside.reshape(inside.shape + (1,) * (v.dim() - inside.dim())), guided, v)


def _inner(t: Tensor, a: Tensor, b: Tensor) -> Batch:
    """Sum a * b over the event, keeping axes that broadcast against points."""
    total = (a * b).reshape(*t.shape, -1).sum(-1)
    return total.reshape(t.shape + (1,) * (a.dim() - t.dim()))


def _relative_spread(t: Tensor, v: Tensor, guided: Tensor) -> Tensor:
    """Return the standard deviation of v over its entries in units of that of the guided one."""
    if math.prod(v.shape[t.dim() :]) < 2:
        raise DomainError(
            "ClassifierFree: rescale needs points of two entries or more, over which a velocity "
            "has a spread; set rescale=0"
        )
    rows = torch.stack([v, guided]).reshape(2, *t.shape, -1)
    tiny = torch.finfo(v.dtype).tiny
    mine, theirs = rows.var(-1, correction=0).clamp_min(tiny).sqrt().unbind()
    return (mine / theirs).reshape(t.shape + (1,) * (v.dim() - t.dim()))
