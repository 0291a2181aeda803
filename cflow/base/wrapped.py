"""The normal law of a tangent space, carried onto the manifold by the exponential map.

    x = exp_m(sum_k scale_k z_k e_k),  z ~ N(0, 1),    p(x) = sum over u with exp_m(u) = x of
    N(u; 0, scale^2) / |det d exp_m(u)|

where the e_k are orthonormal at the mean m. Flat and negatively curved spaces have one such u.
Where all geodesics close after a length P, as on spheres and rotations, they are u (r + j P) / r
for r = |u| and whole j, and since Jacobi fields come round as well,

    |det d exp_m(u (r + j P) / r)| = |det d exp_m(u)| |r / (r + j P)|^(n - 1)

On a torus the sum over windings is a product over angles: for each the wrapped normal law, which
is summed over windings if narrow, and over frequencies if broad, to full precision either way.

Source: Mathieu and Nickel (2020), Riemannian continuous normalizing flows, arXiv 2006.10605,
appendix B; Falorsi et al. (2019), Reparameterizing distributions on Lie groups, arXiv 1903.02958;
Besse (1978), Manifolds all of whose geodesics are closed; Mardia and Jupp (2000), Directional
statistics, section 3.5.7.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.base.entries import held, noise, wide
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Euclidean, Manifold, Sphere, Torus, expect_on
from cflow.typing import Batch, Points

__all__ = ["WrappedNormal"]

BROAD = 1 / math.sqrt(2 * math.pi)  # of a period: where both sums over an angle's images fall alike


class WrappedNormal(Base):
    """Normal noise about a learned point, along geodesics.

    Means are projected on the manifold, scales are exponentials. Gradients through `sample` reach
    both.

    Where geodesics close, the density is infinite at the mean and at the points where shortest
    geodesics meet from all sides, unless the manifold has one dimension: noise that has come all
    the way round is focused there. It is integrable, and for a scale well below the length of the
    loop it is tiny elsewhere; `VonMisesFisher` has no such points.

    Args:
        manifold: Where the points live: flat, of negative curvature, a torus, or one whose
            `loop` is known. For a product of manifolds take `Joint`.
        event_shape: Shape of one point, or a number of entries.
        mean: A point of the manifold at the start; by default zero, the first unit vector or the
            unit matrix, whichever lies on it.
        scale: Standard deviation at the start, in units of the manifold's distance: a number, or
            one for each direction of the frame at the mean, made orthonormal in its order.
        images: Rounds of the loop that are summed, each way. Noise that goes further is missing
            from the density.
        learned: Whether mean and scale are parameters.

    Raises:
        DomainError: The manifold does not tell its other geodesics, the mean does not lie on it, or
            a scale is not positive, or so large that noise goes round more often than `images`.
        ShapeError: The mean is no point of this shape, or the number of scales is wrong.

    References:
        Nagano et al. (2019), A wrapped normal distribution on hyperbolic space for gradient-based
        learning, arXiv 1902.02992.

    Example:
        >>> from cflow.manifold import Torus
        >>> WrappedNormal(Torus(), 1, scale=0.1).log_prob(torch.tensor([[0.0]])).detach()
        tensor([1.3836])
    """

    def __init__(
        self,
        manifold: Manifold,
        event_shape: Sequence[int] | int,
        *,
        mean: Tensor | None = None,
        scale: float | Tensor = 1.0,
        images: int = 4,
        learned: bool = True,
    ) -> None:
        super().__init__(event_shape)
        self.dim = manifold.dim(self.event_shape)
        loop = math.inf if isinstance(manifold, Torus) else manifold.loop
        if loop is None:
            raise DomainError(
                f"WrappedNormal: {manifold} does not tell all geodesics between two points, over "
                "which the density is a sum; take Joint for a product, ManifoldUniform if compact"
            )
        mean = _origin(manifold, self.event_shape) if mean is None else mean
        if mean.shape != self.event_shape:
            raise ShapeError(
                f"WrappedNormal: mean must have shape {self.event_shape}, got {tuple(mean.shape)}"
            )
        expect_on("WrappedNormal", "mean", manifold, mean)
        scale = torch.as_tensor(scale, dtype=torch.get_default_dtype())
        _check(scale, self.dim, images, loop)
        self.manifold, self.images, self.loop = manifold, images, loop
        self.mean: Tensor
        self.log_scale: Tensor
        held(self, "mean", mean, learned=learned)
        held(self, "log_scale", scale.log(), learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        mean, log_scale = self._law(wide(self.mean).dtype)
        e = noise((*shape, self.dim), mean, generator) * log_scale.exp()
        u = torch.tensordot(e, _orthonormal(self.manifold, mean), 1)
        x = self.manifold.expmap(mean.expand_as(u), u).to(self.mean.dtype)
        return self.manifold.projx(x) if isinstance(self.manifold, Torus) else x

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        mean, log_scale = self._law(torch.promote_types(x.dtype, self.mean.dtype))
        x = x.to(mean.dtype)
        n = self.dim
        if isinstance(self.manifold, Torus):
            period, log_period = self.manifold.period, math.log(self.manifold.period)
            turns = (x - mean).reshape((*x.shape[: x.dim() - mean.dim()], n)) / period
            return _log_wrapped(turns, log_scale - log_period).sum(-1) - n * log_period
        x = _beside(self.manifold, mean, x)
        at = mean.expand_as(x)
        u = self.manifold.logmap(at, x)
        length = self.manifold.inner(at, u, u)
        if log_scale.dim():
            square = (self._components(mean, u) * (-log_scale).exp()).square().sum(-1)
        else:
            square = length * (-2 * log_scale).exp()
        if self.loop == math.inf:
            log_sum = -0.5 * square
        else:
            least = (-2 * log_scale.reshape(-1)[0]).exp()  # of a square, where no direction is left
            log_sum = self._log_images(length, square, least)
        log_det = self.manifold.log_det_exp(at, u) + log_scale.expand(n).sum()
        return log_sum - log_det - 0.5 * n * math.log(2 * math.pi)

    def _log_images(self, length: Tensor, square: Tensor, least: Tensor) -> Tensor:
        """Return the log of sum_j exp(-square t_j^2 / 2) |t_j|^(n - 1), t_j = 1 + j loop / r.

        Args:
            length: r^2, the square of the distance from the mean.
            square: The square of that distance in units of the scales.
            least: What r^2 is divided by where it is too small to have a direction.
        """
        floor = torch.finfo(length.dtype).eps ** 2
        square = torch.where(length > floor, square, floor * least)
        r = torch.where(length > floor, length, floor).sqrt()
        j = torch.arange(-self.images, self.images + 1, dtype=r.dtype, device=r.device)
        t = 1 + j * self.loop / r[..., None]
        exponent = (self.dim - 1) * t.abs().log() - 0.5 * square[..., None] * t.square()
        return torch.logsumexp(exponent, -1)

    def _components(self, mean: Tensor, u: Tensor) -> Tensor:
        """Return the components of tangent vectors at the mean, `(*batch, dim)`."""
        axes = _orthonormal(self.manifold, mean)
        u = u.unsqueeze(u.dim() - mean.dim())
        full = torch.broadcast_shapes(u.shape, axes.shape)
        return self.manifold.inner(mean.expand(full), axes.expand(full), u.expand(full))

    def _law(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the mean, on the manifold, and the log-scales, in a precision."""
        return self.manifold.projx(self.mean.to(dtype)), self.log_scale.to(dtype)


def _orthonormal(manifold: Manifold, mean: Tensor) -> Tensor:
    """Return the frame at a point made orthonormal by Gram and Schmidt, `(dim, *event)`."""
    frame = manifold.frame(mean)
    if frame is None:
        size = mean.numel()
        vectors = torch.eye(size, dtype=mean.dtype, device=mean.device)
        vectors = vectors.reshape(size, *mean.shape)
    else:
        vectors = frame[0]
    if isinstance(manifold, Euclidean | Torus):
        return vectors
    pairs = (len(vectors), *vectors.shape)
    one, other = vectors[:, None].expand(pairs), vectors[None].expand(pairs)
    factor = torch.linalg.cholesky(manifold.inner(mean.expand(pairs), one, other))
    rows = torch.linalg.solve_triangular(factor, vectors.flatten(1), upper=False)
    return rows.reshape(vectors.shape)


def _beside(manifold: Manifold, mean: Tensor, x: Tensor) -> Tensor:
    """Move points of a sphere a little that lie opposite to the mean, where no way is shortest."""
    if not isinstance(manifold, Sphere):
        return x
    step = 8 * torch.finfo(x.dtype).eps
    near = step * manifold.frame(mean)[0][0] - mean
    return torch.where(manifold.cut_locus(mean, x, atol=step)[..., None], near, x)


def _log_wrapped(turns: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log density of wrapped normal coordinates of period 1, about zero.

        sum_j N(y + j; 0, s^2) = 1 + 2 sum_q exp(-2 pi^2 q^2 s^2) cos(2 pi q y)

    The sums end where terms are below 1e-16.
    """
    y = (turns - turns.detach().round())[..., None]
    broad = log_scale > math.log(BROAD)
    narrow_scale = torch.where(broad, BROAD, log_scale.exp())
    broad_scale = torch.where(broad, log_scale.exp(), BROAD)
    j = torch.arange(-3, 4, dtype=y.dtype, device=y.device)
    narrow = torch.logsumexp(-0.5 * ((y + j) / narrow_scale[..., None]).square(), -1)
    narrow = narrow - narrow_scale.log() - 0.5 * math.log(2 * math.pi)
    q = j[4:]
    fade = (-2 * (math.pi * q * broad_scale[..., None]).square()).exp()
    waves = (fade * (2 * math.pi * q * y).cos()).sum(-1)
    return torch.where(broad, torch.log1p(2 * waves), narrow)


def _origin(manifold: Manifold, shape: tuple[int, ...]) -> Tensor:
    """Return a point: zero, the first unit vector or the unit matrix, if need be projected."""
    zero = torch.zeros(shape)
    first = torch.eye(1, zero.numel()).reshape(shape) if len(shape) < 2 else torch.eye(*shape[-2:])
    for point in (zero, first.expand(shape), manifold.projx(first.expand(shape))):
        if manifold.check_point(point)[0]:
            return point
    raise DomainError(f"WrappedNormal: give a mean, a point of {manifold} of shape {shape}")


def _check(scale: Tensor, dim: int, images: int, loop: float) -> None:
    """Check that scales fit, and that noise ends within the images."""
    if scale.shape not in ((), (dim,)):
        raise ShapeError(
            f"WrappedNormal: scale must be one number or {dim}, one for each direction, got shape "
            f"{tuple(scale.shape)}"
        )
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise DomainError(f"WrappedNormal: scale must be positive and finite, got {scale.tolist()}")
    if images < 0:
        raise DomainError(f"WrappedNormal: images must be 0 or more, got {images}")
    far, reach = float(scale.max()) * (math.sqrt(dim) + 5), (images + 0.5) * loop
    if far > reach:
        raise DomainError(
            f"WrappedNormal: noise of scale {float(scale.max()):g} goes {far:.3g} far, and "
            f"{images} images reach to {reach:.3g}; raise images to {math.ceil(far / loop)}"
        )
