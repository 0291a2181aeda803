"""Laws of directions and angles: von Mises-Fisher, von Mises, and the projected normal law.

    von Mises-Fisher: log p(x) = -k |x - m|^2 / 2 - log Z_n(k) - log area of S^n
    von Mises: log p(x) = sum over angles of -2 k sin^2((x - m) / 2) - log Z_1(k) - log(2 pi)
    projected normal: log p(x) = log int_0^inf r^n exp(-|r x - m|^2 / 2) dr - (n + 1) log(2 pi) / 2

with unit vectors x on S^n, means m and concentrations k; Z_n(k) is E[exp(-k (1 - cos theta))] of
`polar.py`. The integral is summed by the trapezoidal rule in log r about its peak, to full
precision for every n and mean.

Source: Mardia and Jupp (2000), Directional statistics, sections 3.5 and 9.3; Wang and Gelfand
(2013), Directional data analysis under the general projected normal distribution, Statistical
Methodology 10(1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.base.entries import held, noise, summed, wide
from cflow.base.polar import (
    around,
    direction,
    draw_polar,
    log_concentration,
    log_mean_decay,
    turned,
    unit,
)
from cflow.errors import ShapeError, expect_finite
from cflow.manifold import Sphere, Torus
from cflow.typing import Batch, Points

__all__ = ["ProjectedNormal", "VonMises", "VonMisesFisher"]

STEP, LEFT, RIGHT = 0.3, 50.0, 9.0  # nodes of the radial integral, in widths of its peak


class VonMisesFisher(Base):
    """A cap about a learned mean direction on the sphere S^n; of concentration 0, the uniform law.

    On S^2 the spread of the angle is about 1 / sqrt(concentration) radians. The mean direction is
    that of the vector `mean`, whose length does not matter; the concentration is an exponential,
    so that one which starts at 0 stays there. Gradients through `sample` reach both.

    Args:
        features: Coordinates n + 1 of a point, at least 2.
        mean: Mean direction at the start, `(features,)`; the first axis by default.
        concentration: Concentration at the start, at least 0.
        learned: Whether mean and concentration are parameters.

    Raises:
        DomainError: The concentration is negative, or the mean has no direction.
        ShapeError: The mean has another shape, or there are fewer than two coordinates.

    References:
        Fisher (1953), Dispersion on a sphere, Proceedings of the Royal Society A 217; Davidson et
        al. (2018), Hyperspherical variational auto-encoders, arXiv 1804.00891.

    Example:
        >>> base = VonMisesFisher(3, concentration=10.0)
        >>> base.log_prob(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).detach()
        tensor([ 0.4647, -9.5353])
    """

    def __init__(
        self,
        features: int,
        *,
        mean: Tensor | None = None,
        concentration: float = 1.0,
        learned: bool = True,
    ) -> None:
        super().__init__(features)
        self.log_area = Sphere().log_volume(self.event_shape)
        mean = torch.eye(features)[0] if mean is None else mean
        self.mean: Tensor
        self.log_concentration: Tensor
        held(self, "mean", direction("VonMisesFisher", mean, self.event_shape), learned=learned)
        start = log_concentration("VonMisesFisher", concentration, ())
        held(self, "log_concentration", start, learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        mean, k = self._law()
        s = draw_polar(k.expand(shape), self.event_shape[0] - 1, generator=generator)
        e = noise((*shape, *self.event_shape), mean, generator)
        return around(mean, s, e).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x, (mean, k) = self._enter(x), self._law()
        # the chord keeps the digits near the mean that a cosine near 1 would lose
        chord = (x - mean).square().sum(-1)
        return -0.5 * k * chord - log_mean_decay(k, self.event_shape[0] - 1) - self.log_area

    def _law(self) -> tuple[Tensor, Tensor]:
        """Return the mean direction and the concentration, in float32 at least."""
        return unit(self.mean), wide(self.log_concentration).exp()


class VonMises(Base):
    """Independent angles, each about a learned mean; of concentration 0, the uniform law.

    The spread of an angle is about 1 / sqrt(concentration) radians. Concentrations are
    exponentials, so that one which starts at 0 stays there. Gradients through `sample` reach means
    and concentrations.

    Args:
        event_shape: Shape of one point, or a number of angles.
        mean: Means at the start, a number or one for each angle.
        concentration: Concentrations at the start, at least 0, likewise.
        period: Length of the way round: 2 pi for angles in radians.
        learned: Whether means and concentrations are parameters.

    Raises:
        DomainError: A concentration is negative, or the period is not positive.

    References:
        Best and Fisher (1979), Efficient simulation of the von Mises distribution, Journal of the
        Royal Statistical Society C 28(2).

    Example:
        >>> VonMises(2, concentration=4.0).log_prob(torch.tensor([[0.0, 3.0]])).detach()
        tensor([-8.4857])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        mean: float | Tensor = 0.0,
        concentration: float | Tensor = 1.0,
        period: float = 2 * math.pi,
        learned: bool = True,
    ) -> None:
        super().__init__(event_shape)
        self.torus = Torus(period, ndim=len(self.event_shape))
        mean = torch.as_tensor(mean, dtype=torch.get_default_dtype())
        expect_finite("VonMises", "mean", mean)
        self.mean: Tensor
        self.log_concentration: Tensor
        held(self, "mean", mean.expand(self.event_shape), learned=learned)
        start = log_concentration("VonMises", concentration, self.event_shape)
        held(self, "log_concentration", start, learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        k = wide(self.log_concentration).exp().expand(*shape, *self.event_shape)
        turn = turned(k, generator) * (self.torus.period / (2 * math.pi))
        return self.torus.projx((wide(self.mean) + turn).to(self.mean.dtype))

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        k = wide(self.log_concentration).exp()
        half = (self._enter(x) - wide(self.mean)) * (math.pi / self.torus.period)
        entries = -2 * k * half.sin().square() - log_mean_decay(k, 1)
        return summed(entries - math.log(self.torus.period), len(self.event_shape))


class ProjectedNormal(Base):
    """The direction of a normal vector of unit covariance: broad, with a sampler free of refusals.

    With a mean of length l it is a cap of spread 1 / l about the mean for large l, and the uniform
    law for l = 0, where it starts by default. Gradients through `sample` reach the mean.

    Args:
        features: Coordinates n + 1 of a point, at least 2.
        mean: Mean of the normal vector at the start, `(features,)`, not of unit length.
        learned: Whether the mean is a parameter.

    Raises:
        ShapeError: The mean has another shape, or there are fewer than two coordinates.
        DomainError: The mean is not finite.

    References:
        Hernandez-Stumpfhauser, Breidt and van der Woerd (2017), The general projected normal
        distribution of arbitrary dimension, Bayesian Analysis 12(1).

    Example:
        >>> ProjectedNormal(3).log_prob(torch.tensor([[0.0, 0.6, 0.8]])).detach()  # -log(4 pi)
        tensor([-2.5310])
    """

    def __init__(self, features: int, *, mean: Tensor | None = None, learned: bool = True) -> None:
        super().__init__(features)
        Sphere().dim(self.event_shape)
        mean = torch.zeros(features) if mean is None else mean
        if mean.shape != self.event_shape:
            raise ShapeError(
                f"ProjectedNormal: mean must have shape {self.event_shape}, got {tuple(mean.shape)}"
            )
        expect_finite("ProjectedNormal", "mean", mean)
        self.mean: Tensor
        held(self, "mean", mean, learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        e = noise((*shape, *self.event_shape), self.mean, generator)
        return unit(wide(self.mean) + e).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x, mean, d = unit(self._enter(x)), wide(self.mean), self.event_shape[0]
        along = (x * mean).sum(-1)
        across = (mean - along[..., None] * x).square().sum(-1)
        peak, width = _peak(along.detach(), d)
        t = torch.arange(-LEFT, RIGHT, STEP, dtype=x.dtype, device=x.device)
        log_r = width[..., None] * t  # in units of the peak
        far = peak[..., None] * log_r.expm1() + (d / peak + (along.detach() - along))[..., None]
        radial = torch.logsumexp(d * log_r - 0.5 * far.square(), -1) + d * peak.log()
        return radial + (STEP * width).log() - 0.5 * (across + d * math.log(2 * math.pi))


def _peak(along: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Return where r^d exp(-(r - along)^2 / 2) is largest, and how wide it is there in log r.

    The peak solves r (r - along) = d.
    """
    root = (along.square() + 4 * d).sqrt()
    peak = torch.where(along > 0, 0.5 * (along + root), 2 * d / (root - along))
    return peak, 1 / (d + peak.square()).sqrt()
