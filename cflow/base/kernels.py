"""Mixtures of many von Mises-Fisher or von Mises laws, evaluated all at once: kernel densities.

    log p(x) = logsumexp_k(log w_k + c_k + phi(x) . eta_k)

Both laws are exponential families. On the sphere phi(x) = x and eta_k = concentration_k mean_k; on
the torus phi(x) holds cosines and sines of the angles, and so does eta_k of the means, times the
concentrations. One product of matrices evaluates every component at every point; it runs in
float64, since of cosines near 1 the concentration magnifies the last digits.

Source: Hall, Watson and Cabrera (1987), Kernel density estimation with spherical data, Biometrika
74(4); Taylor (2008), Automatic bandwidth selection for circular density estimation, Computational
Statistics and Data Analysis 52(7).
"""

import math

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.base.components import picked, start_logits
from cflow.base.entries import held, noise, wide
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

__all__ = ["VonMisesFisherMixture", "VonMisesMixture"]

AT_ONCE = 2**19  # pairs of a point and a component
NOTHING = 80.0  # log of how much smaller a component may be before it counts as this small


class VonMisesFisherMixture(Base):
    """Caps about many directions of the sphere S^n; with data as means, a kernel density estimate.

    For a kernel density estimate give the points as means, the concentration 1 / width^2 of a
    kernel of that width in radians, and `learned=False`.

    A draw picks a component, then a point of it. Gradients through `sample` reach means and
    concentrations; towards the weights they are missing, because a pick has none. `log_prob` has
    gradients for all three.

    Args:
        means: Mean directions at the start, `(components, n + 1)`.
        concentration: Concentration at the start, at least 0: one for all components, or one for
            each, `(components,)`.
        logits: Logarithms of the weights at the start, up to a constant; equal weights by default.
        learned: Whether means, concentrations and weights are parameters.

    Raises:
        DomainError: A concentration is negative, or a mean has no direction.
        ShapeError: Numbers of means, concentrations and logits differ.

    References:
        Banerjee et al. (2005), Clustering on the unit hypersphere using von Mises-Fisher
        distributions, JMLR 6.

    Example:
        >>> points = torch.eye(3)
        >>> density = VonMisesFisherMixture(points, 25.0, learned=False)
        >>> density.log_prob(torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
        tensor([  0.2824, -24.0245])
    """

    def __init__(
        self,
        means: Tensor,
        concentration: float | Tensor,
        *,
        logits: Tensor | None = None,
        learned: bool = True,
    ) -> None:
        where = "VonMisesFisherMixture"
        components, features = _rows(where, means, 2)
        super().__init__(features)
        self.log_area = Sphere().log_volume(self.event_shape)
        start = log_concentration(where, concentration, None)
        if start.shape not in ((), (components,)):
            raise ShapeError(
                f"{where}: concentration must be one number or {components}, one for each mean, "
                f"got shape {tuple(start.shape)}"
            )
        self.mean: Tensor
        self.log_concentration: Tensor
        self.logits: Tensor
        held(self, "mean", direction(where, means, (components, features)), learned=learned)
        held(self, "log_concentration", start, learned=learned)
        held(self, "logits", start_logits(where, logits, components), learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        pick = picked(self.logits, tuple(shape), generator)
        mean = unit(self.mean)
        k = wide(self.log_concentration).exp().expand(len(mean))[pick]
        s = draw_polar(k, self.event_shape[0] - 1, generator=generator)
        e = noise((*shape, *self.event_shape), mean, generator)
        return around(mean[pick], s, e).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        k = self.log_concentration.double().exp()
        weight = self.logits.double().log_softmax(0) - k - self.log_area
        weight = weight - log_mean_decay(k, self.event_shape[0] - 1)
        natural = k[..., None] * unit(self.mean.double())
        return _log_sum(unit(x.double()), natural, weight, _widest(x, self.mean))


class VonMisesMixture(Base):
    """Bumps about many points of a torus; with data as means, a kernel density estimate.

    A component is a product of von Mises laws, one for each angle. For a kernel density estimate
    give the points as means, the concentration 1 / width^2 of a kernel of that width in radians,
    and `learned=False`.

    A draw picks a component, then a point of it. Gradients through `sample` reach means and
    concentrations; towards the weights they are missing, because a pick has none. `log_prob` has
    gradients for all three.

    Args:
        means: Means at the start, `(components, *event)`.
        concentration: Concentration at the start, at least 0, of a shape that broadcasts to that of
            the means: a number for all, `(*event)` for each angle, `(components, 1)` for each
            component of a vector of angles.
        logits: Logarithms of the weights at the start, up to a constant; equal weights by default.
        period: Length of the way round: 2 pi for angles in radians.
        learned: Whether means, concentrations and weights are parameters.

    Raises:
        DomainError: A concentration is negative, a mean is not finite, or the period not positive.
        ShapeError: There is no component, or shapes do not fit.

    References:
        Mardia, Taylor and Subramaniam (2007), Protein bioinformatics and mixtures of bivariate von
        Mises distributions for angular data, Biometrics 63(2).

    Example:
        >>> angles = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
        >>> VonMisesMixture(angles, 9.0, learned=False).log_prob(angles)
        tensor([-0.3633, -0.3633])
    """

    def __init__(
        self,
        means: Tensor,
        concentration: float | Tensor,
        *,
        logits: Tensor | None = None,
        period: float = 2 * math.pi,
        learned: bool = True,
    ) -> None:
        where = "VonMisesMixture"
        components, *event = _rows(where, means, 1)
        super().__init__(event)
        expect_finite(where, "means", means)
        self.torus = Torus(period, ndim=len(event))
        start = log_concentration(where, concentration, None)
        try:
            fits = torch.broadcast_shapes(start.shape, means.shape) == means.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"{where}: concentration must broadcast to means of shape {tuple(means.shape)}, "
                f"got shape {tuple(start.shape)}"
            )
        self.mean: Tensor
        self.log_concentration: Tensor
        self.logits: Tensor
        held(self, "mean", means, learned=learned)
        held(self, "log_concentration", start, learned=learned)
        held(self, "logits", start_logits(where, logits, components), learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        pick = picked(self.logits, tuple(shape), generator)
        mean = wide(self.mean)
        k = wide(self.log_concentration).exp().expand(mean.shape)[pick]
        turn = turned(k, generator) * (self.torus.period / (2 * math.pi))
        return self.torus.projx((mean[pick] + turn).to(self.mean.dtype))

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x, n = self._enter(x), len(self.event_shape)
        k = self.log_concentration.double().exp()
        decay = (k + log_mean_decay(k, 1)).expand(self.mean.shape).reshape(len(self.mean), -1)
        weight = self.logits.double().log_softmax(0) - decay.sum(-1)
        weight = weight - decay.shape[-1] * math.log(self.torus.period)
        k = k.expand(self.mean.shape).reshape(decay.shape)
        natural = self._waves(self.mean.double().reshape(decay.shape)) * torch.cat([k, k], -1)
        rows = x.double().flatten(x.dim() - n) if n else x.double()[..., None]
        return _log_sum(self._waves(rows), natural, weight, _widest(x, self.mean))

    def _waves(self, x: Tensor) -> Tensor:
        """Return cosines and sines of rows of angles."""
        turn = x * (2 * math.pi / self.torus.period)
        return torch.cat([turn.cos(), turn.sin()], -1)


def _rows(where: str, means: Tensor, axes: int) -> tuple[int, ...]:
    """Check that there are components, and return the shape of their means."""
    if means.dim() < axes or not len(means):
        raise ShapeError(
            f"{where}: means must have shape (components, ...) with one component at least, got "
            f"{tuple(means.shape)}"
        )
    return tuple(means.shape)


def _widest(x: Tensor, mean: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, mean.dtype)


def _log_sum(phi: Tensor, natural: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum the components at each point, as many points at once as the processor keeps at hand."""
    sums = []
    for rows in phi.reshape(-1, phi.shape[-1]).split(max(1, AT_ONCE // len(weight))):
        each = torch.addmm(weight, rows, natural.mT).to(dtype)
        # what adds nothing is lifted to what adds nothing: exponentials that underflow are slow
        least = each.detach().amax(-1, keepdim=True) - NOTHING
        sums.append(torch.logsumexp(torch.maximum(each, least), -1))
    return torch.cat(sums).reshape(phi.shape[:-1])
