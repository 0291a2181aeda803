"""Linear inverse problems: draw x given y = A x + noise, from the velocity of p(x) alone.

    p(x1 | x_t) ~ N(m, V),   m = E[x1 | x_t],    S = A V A' + noise^2,    u = S^-1 (y - A m)
    velocity given y:  v + (sigma W / alpha) J' A' u,  J = dm/dx,  W = alpha' sigma - alpha sigma'

which shifts the expected end to m + V A' u: Kalman's update. The true covariance at the end is V =
(sigma^2 / alpha) J, by the second-order formula of Tweedie, and u follows from a few steps of the
conjugate gradient method with one product J' w each. Where the data are normal nothing is
approximate but the steps in time; elsewhere, p(x1 | x_t) is taken for normal.

V divides J by alpha, and with it what is wrong in J: near t = 0 a trained field may give S next to
nothing where V A' is large. The shift that the velocity asks for is therefore bounded,

    (sigma^2 / alpha) |J' A' u|  <=  reach |r|^2 / |A' r|,    r = y - A m

of which the right side is `reach` times the shift along A' r that meets y best, the least one that
meets y where the rows of A are orthonormal. By Kalman's update the entries that are not observed
move too, by their slope on those which are: the bound leaves slopes below `reach` as they are.
Sources: Song et al. (2023), Pseudoinverse-guided diffusion models, ICLR, and Pokle et al. (2024),
Training-free linear image inverses via flows, arXiv 2310.04432, for the gradient; Boys et al.
(2023), arXiv 2310.06721, and Rozet et al. (2024), arXiv 2405.13712, for the covariance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_finite, expect_positive, known
from cflow.field import Coefficients, Field, LinearSchedule, PathSchedule, PredictVelocity
from cflow.field.guidance import steering
from cflow.samples.curved import CurvedHeun
from cflow.samples.options import expect_count
from cflow.samples.sampler import PathSampler, Velocity
from cflow.typing import Points, Times

__all__ = [
    "EndCovariance",
    "IsotropicCovariance",
    "PosteriorField",
    "TweedieCovariance",
    "sample_posterior",
]

REACH = 10.0  # slopes of missing on observed entries stay below; errors of fields reach thousands

Operator: TypeAlias = Tensor | Callable[[Tensor], Tensor]
Linear: TypeAlias = Callable[[Tensor], Tensor]


class EndCovariance(ABC):
    """Say what the covariance V of the data end given a noisy point is; frozen dataclasses."""

    @abstractmethod
    def times(self, w: Points, c: Coefficients, pull_back: Linear) -> Points:
        """Return V w.

        Args:
            w: Any tensor of the shape of the points.
            c: The schedule's coefficients, which broadcast against them.
            pull_back: w to J' w, with J the Jacobian of the expected end.
        """


@dataclass(frozen=True)
class TweedieCovariance(EndCovariance):
    """The true covariance V = (sigma^2 / alpha) J, by one vector-Jacobian product.

    Early on J is small, and the errors of a badly trained field are not; the `reach` of
    `PosteriorField` bounds what they do. The noise of `SDE` alone undoes most of it, not all.

    Example:
        >>> c = LinearSchedule()(torch.tensor([[0.5]]))
        >>> TweedieCovariance().times(torch.ones(1, 2), c, lambda w: 0.5 * w)
        tensor([[0.2500, 0.2500]])
    """

    def times(self, w: Points, c: Coefficients, pull_back: Linear) -> Points:
        return c.sigma.square() / c.alpha * pull_back(w)


@dataclass(frozen=True)
class IsotropicCovariance(EndCovariance):
    """That of data whose entries are independent, V = s^2 sigma^2 / (s^2 alpha^2 + sigma^2).

    It costs no product with the Jacobian, so an evaluation costs two to three times the field's.

    Attributes:
        spread: The standard deviation s of the data's entries.

    References:
        Song et al. (2023), section 3.2; Pokle et al. (2024), arXiv 2310.04432, with s = 1.

    Example:
        >>> c = LinearSchedule()(torch.tensor([[0.5]]))
        >>> IsotropicCovariance().times(torch.ones(1, 2), c, lambda w: w)
        tensor([[0.5000, 0.5000]])
    """

    spread: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("IsotropicCovariance", spread=self.spread)

    def times(self, w: Points, c: Coefficients, pull_back: Linear) -> Points:
        square = self.spread**2
        return square * c.sigma.square() / (square * c.alpha.square() + c.sigma.square()) * w


class PosteriorField(Field):
    """Turn the velocity of p(x) into that of p(x | y), y = A x + noise.

    Solvers, samplers and `log_prob` take it like any other field. The base must be standard normal.
    Within 1e-3 of t = 0 and 1e-4 of t = 1 the velocity is that of these times.

    Args:
        field: The velocity of p(x), called as `field(t, x, context)`.
        operator: A: a matrix `(m, entries of a point)`, which acts on flattened points, or a linear
            function from points `(*batch, *event)` to observations `(*batch, *shape of y)`.
        y: One observation for all samples, or `(*batch, *shape of y)`; an adaptive solver drops
            samples that are done from the batch, so give it one for all, or None: then the context
            is the observation, one each, and `field` is asked without one.
        noise: Standard deviation of the noise in y, 0 for none.
        schedule: The path on which the field was trained.
        covariance: That of the data given a noisy point; `TweedieCovariance()` by default.
        iterations: Steps of the conjugate gradient method, each with one product with the
            covariance. As many as y has entries solve exactly; few are enough.
        reach: Bound of the shift, in units of |r|^2 / |A' r|; above the slopes of the data's
            entries on the observed ones it changes nothing. `inf` for no bound.

    Raises:
        DomainError: The noise is negative, or the iterations or the reach are not positive; when
            called with neither y nor a context.
        ShapeError: When called, if y or the matrix does not fit the points.

    Example:
        >>> from cflow.field import MLPField
        >>> average = torch.tensor([[0.5, 0.5]])
        >>> field = PosteriorField(MLPField(2), average, y=torch.tensor([1.0]), noise=0.1)
        >>> field(torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        field: Velocity,
        operator: Operator,
        *,
        y: Tensor | None,
        noise: float,
        schedule: PathSchedule | None = None,
        covariance: EndCovariance | None = None,
        iterations: int = 5,
        reach: float = REACH,
    ) -> None:
        super().__init__()
        if not 0 <= noise < float("inf"):
            raise DomainError(f"PosteriorField: noise must be 0 or positive, got {noise}")
        expect_count("PosteriorField", iterations=iterations)
        if not reach > 0:
            raise DomainError(f"PosteriorField: reach must be positive, inf for none, got {reach}")
        self.field = field
        self.operator = operator
        self.y = y
        self.noise = noise
        self.schedule = LinearSchedule() if schedule is None else schedule
        self.covariance = TweedieCovariance() if covariance is None else covariance
        self.iterations = iterations
        self.reach = reach

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        y, context = (context, None) if self.y is None else (self.y, context)
        if y is None:
            raise DomainError("PosteriorField: without y the context is the observation; pass one")
        at = steering(self.schedule, t)
        c = self.schedule(at.t).over(x)

        def end(z: Tensor) -> tuple[Tensor, Tensor]:
            v = self.field(at.t, z, context)
            return PredictVelocity().ends(at.t, z, v, self.schedule).x1, v

        x1, through_field, *rest = torch.func.vjp(end, x, has_aux=True)
        seen, adjoint, *_ = torch.func.vjp(_apply(self.operator, t.dim()), x1)
        pull_back = lambda w: through_field(w)[0]

        def spread(u: Tensor) -> Tensor:
            v = self.covariance.times(adjoint(u)[0], c, pull_back)
            return _apply(self.operator, t.dim())(v) + self.noise**2 * u

        missed = _observed(y, seen) - seen
        u = _conjugate_gradients(spread, missed, t.dim(), self.iterations)
        push = pull_back(adjoint(u)[0])
        share = _share(
            _square(c.sigma.square() / c.alpha * push, t.dim()),
            _square(missed, t.dim()),
            _square(adjoint(missed)[0], t.dim()),
            self.reach,
        )
        rate = (share * at.rate).reshape(t.shape + (1,) * (x.dim() - t.dim()))
        return cast(Tensor, rest[0]) + rate * push


def sample_posterior(
    field: Velocity,
    y: Tensor,
    *,
    operator: Operator,
    noise: float,
    event_shape: Sequence[int],
    context: Tensor | None = None,
    sampler: PathSampler | None = None,
    covariance: EndCovariance | None = None,
    iterations: int = 5,
    reach: float = REACH,
    generator: Generator | None = None,
    progress: bool = False,
) -> Points:
    """Draw points given linear observations of them, y = A x + noise.

    Denoising, inpainting (A picks entries), deblurring, super-resolution and tomography are of this
    kind. With noise 0 the samples fulfil A x = y as far as the conjugate gradients converged. What
    is not linear goes through `LogDensityGuided(..., of="data")`.

    Args:
        field: The velocity of the law of all data, called as `field(t, x, context)`.
        y: Observations `(n, *shape of y)`, one point drawn for each; `y.expand(n, ...)` repeats.
        operator: A: a matrix `(m, entries of a point)`, which acts on flattened points, or a linear
            function from points `(n, *event)` to observations; its adjoint is found by autograd.
        noise: Standard deviation of the noise in y, 0 for none.
        event_shape: Shape of one point.
        context: Conditions of the field `(n, *context)`.
        sampler: How steps are taken, and the path; `CurvedHeun(50)` by default.
        covariance: That of the data given a noisy point; `TweedieCovariance()` by default.
        iterations: Steps of the conjugate gradient method in each evaluation, at most as many as
            one y has entries.
        reach: Bound of the shift in each evaluation, as for `PosteriorField`; `inf` for none.
        generator: Source of all noise.
        progress: Show a bar of the steps where there is a terminal.

    Returns:
        Points `(n, *event_shape)`, without gradients, in the dtype of y.

    Raises:
        DomainError: The operator is not linear, an observation is not finite, or an option is out
            of its range.
        ShapeError: The operator does not turn points into observations of the shape of y.
        SolverError: The points are no longer finite.

    Example:
        >>> from cflow.field import MLPField
        >>> total = lambda x: x.sum(-1, keepdim=True)
        >>> y = torch.ones(7, 1)
        >>> sample_posterior(
        ...     MLPField(2), y, operator=total, noise=0.0, event_shape=(2,)
        ... ).shape
        torch.Size([7, 2])
    """
    expect_finite("sample_posterior", "y", y)
    if y.dim() < 1:
        raise ShapeError("sample_posterior: y must have a leading batch axis, got a single number")
    way = CurvedHeun() if sampler is None else sampler
    with torch.no_grad():
        shape = (len(y), *event_shape)
        x0 = torch.randn(shape, dtype=y.dtype, device=y.device, generator=generator)
        _expect_linear(operator, x0, y)
        guided = PosteriorField(
            field,
            operator,
            y=y,
            noise=noise,
            schedule=way.plan(0.0, 1.0).schedule,
            covariance=covariance,
            iterations=iterations,
            reach=reach,
        )
        return way.sample(guided, x0, context, generator=generator, progress=progress)


def _apply(operator: Operator, batch_dim: int) -> Linear:
    if not isinstance(operator, Tensor):
        return operator
    matrix = operator

    def product(x: Tensor) -> Tensor:
        rows = x.reshape(*x.shape[:batch_dim], -1)
        if matrix.dim() != 2 or matrix.shape[1] != rows.shape[-1]:
            raise ShapeError(
                f"PosteriorField: the matrix must be (m, {rows.shape[-1]}), one column for each "
                f"entry of a point, got {tuple(matrix.shape)}"
            )
        return rows @ matrix.to(x).mT

    return product


def _observed(y: Tensor, seen: Tensor) -> Tensor:
    try:
        return y.expand(seen.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"PosteriorField: the operator gives observations {tuple(seen.shape)}, to which y "
            f"{tuple(y.shape)} does not broadcast"
        ) from error


def _expect_linear(operator: Operator, x: Tensor, y: Tensor) -> None:
    """Raise unless A fits y and A(x + z) = A x + A z, for one z; A 0 = 0 is a part of that."""
    act = _apply(operator, 1)
    z = x.flip(0).roll(1, -1) if x.dim() > 1 else x.flip(0)
    a, b, both = act(x), act(z), act(x + z)
    if a.shape != y.shape:
        raise ShapeError(
            f"sample_posterior: the operator turns points {tuple(x.shape)} into observations "
            f"{tuple(a.shape)}, but y has shape {tuple(y.shape)}"
        )
    size = torch.maximum(a.abs(), b.abs()).amax() if a.numel() else a.new_zeros(())
    if a.numel() and bool((both - a - b).abs().amax() > 1e-3 * size):
        raise DomainError(
            "sample_posterior: the operator must be linear, A(x + z) = A x + A z; move an offset "
            "into y, and use LogDensityGuided(..., of='data') for what is not linear"
        )


def _square(z: Tensor, batch_dim: int) -> Tensor:
    return z.square().reshape(*z.shape[:batch_dim], -1).sum(-1)


def _share(shift: Tensor, missed: Tensor, back: Tensor, reach: float) -> Tensor:
    """Return what is left of a shift under the bound, from |shift|^2, |r|^2 and |A' r|^2.

    No branch divides by zero or takes the root of it, so that gradients are finite as well.
    """
    if reach == float("inf"):
        return torch.ones_like(shift)
    asked, allowed = shift * back, reach**2 * missed.square()
    over = asked > allowed
    share = torch.where(over, allowed / torch.where(over, asked, 1.0), 1.0)
    return share.clamp_min(torch.finfo(share.dtype).tiny).sqrt()


def _conjugate_gradients(
    product: Linear, target: Tensor, batch_dim: int, iterations: int
) -> Tensor:
    """Solve product(u) = target for each sample, from zero, for a positive symmetric product.

    A sample stops where it has converged, or meets a direction of no positive curvature, which an
    imperfect field may have.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        total = (a * b).reshape(*a.shape[:batch_dim], -1).sum(-1)
        return total.reshape(total.shape + (1,) * (a.dim() - batch_dim))

    limits = torch.finfo(target.dtype)
    u, residual, direction = torch.zeros_like(target), target, target
    square = dot(target, target)
    enough = square * limits.eps**2
    for _ in range(iterations):
        onward = product(direction)
        curvature = dot(direction, onward)
        going = (square > enough) & (curvature > 0)
        if known(going.any()) is False:
            break
        length = torch.where(going, square / curvature.clamp_min(limits.tiny), 0.0)
        u, residual = u + length * direction, residual - length * onward
        after = dot(residual, residual)
        share = torch.where(going, after / square.clamp_min(limits.tiny), 0.0)
        direction, square = residual + share * direction, torch.where(going, after, 0.0)
    return u
