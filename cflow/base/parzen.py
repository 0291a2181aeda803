"""Kernels about points, stretched along what lies around: a smooth law of few points on a manifold.

    p(x) = sum_s w_s mean_i N(log_{c_i}(x); 0, S_si) / |det d exp_{c_i}|   (+ w_0 / volume)

    round:      S_si = r_s^2 I
    stretched:  S_si = a_s C_i(r_s) + (f r_s)^2 I,   C_i(r) the second moments of the logarithms of
                the other points at c_i, weighed by exp(-d^2 / 2 r^2)

Where points lie along curves, as earthquakes do along faults, stretched kernels fill the gaps of
the curve and not the land beside it. The weights of the shapes are fitted on points that are held
out, by expectation-maximisation.
Source: Vincent and Bengio (2003), Manifold Parzen windows, NeurIPS 15; Pelletier (2005), Kernel
density estimation on Riemannian manifolds, Statistics and Probability Letters 73(3).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.base.components import picked
from cflow.errors import DomainError, ShapeError, expect_finite, expect_positive, expect_trailing
from cflow.manifold import Compact, Manifold, expect_on
from cflow.typing import Batch, Points

__all__ = ["ParzenWindows"]

AT_ONCE = 2**19  # pairs of a point and a centre
FLOOR = 0.15  # f: how thin a stretched kernel may be, in units of its radius
STEPS = 300  # of expectation-maximisation


class ParzenWindows(Base):
    """A kernel density of points on a manifold, with kernels of several shapes.

    Radii are to be small against the distance of the cut locus, a fifth of it or less, as what a
    kernel has beyond it is not counted. Nothing in it is learned by gradients.

    Args:
        manifold: One whose metric is that of the space around: a sphere, a torus, flat space.
        centres: The points, `(n, *event)`.
        round: Radii of round kernels, in units of distance.
        stretched: Radii of the neighbourhoods that kernels are stretched along.
        stretches: Factors a on the second moments of a neighbourhood.
        uniform: Add the uniform law to the shapes, on a compact manifold.

    Attributes:
        log_weights: Logarithms of the weights of the shapes, equal until `fit`.

    Raises:
        DomainError: The metric is not induced, there is no shape, a radius is not positive, or
            centres are not finite or lie off the manifold.
        ShapeError: There is no centre, or they have no shape of points of the manifold.

    Example:
        >>> from cflow.manifold import Sphere
        >>> points = torch.eye(3)
        >>> law = ParzenWindows(Sphere(), points, round=(0.2,), stretched=())
        >>> law.log_prob(torch.eye(3)[:1])
        tensor([0.2824])
    """

    def __init__(
        self,
        manifold: Manifold,
        centres: Tensor,
        *,
        round: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
        stretched: Sequence[float] = (0.03, 0.06, 0.1, 0.2),
        stretches: Sequence[float] = (0.5, 1.0, 2.0),
        uniform: bool = False,
    ) -> None:
        where = "ParzenWindows"
        if centres.dim() != manifold.ndim + 1 or not len(centres):
            raise ShapeError(
                f"{where}: centres must have shape (n, *event) with {manifold.ndim} axes for a "
                f"point of {manifold}, got {tuple(centres.shape)}"
            )
        super().__init__(tuple(centres.shape[1:]))
        self.dim = manifold.dim(self.event_shape)
        expect_finite(where, "centres", centres)
        expect_on(where, "centres", manifold, centres)
        expect_positive(where, **{f"radius {k}": r for k, r in enumerate((*round, *stretched))})
        expect_positive(where, **{f"stretch {k}": a for k, a in enumerate(stretches)})
        shapes = len(round) + len(stretched) * len(stretches) + uniform
        if not shapes:
            raise DomainError(f"{where}: give radii of round or stretched kernels, got none")
        if uniform and not isinstance(manifold, Compact):
            raise DomainError(f"{where}: {manifold} has no uniform law; leave out uniform=True")
        if manifold.log_volume_element(centres[:1]) is not None:
            raise DomainError(
                f"{where}: kernels are normal laws in frames, which need the metric of the space "
                f"around, got {manifold}"
            )
        self.manifold, self.uniform = manifold, uniform
        self.centres: Tensor
        self.factors: Tensor
        self.log_weights: Tensor
        self.register_buffer("centres", centres.detach().clone())
        covariances = _covariances(manifold, self.centres, self.dim, round, stretched, stretches)
        self.register_buffer("factors", torch.linalg.cholesky(covariances))
        self.register_buffer("log_weights", centres.new_full((shapes,), -math.log(shapes)))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        like, total = self.centres, math.prod(shape)
        pick = picked(self.log_weights, (total,), generator)
        size = (total, self.dim)
        i = torch.randint(len(like), (total,), device=like.device, generator=generator)
        e = torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)
        kernel = pick.clamp_max(len(self.factors) - 1)
        u = (self.factors[kernel, i] @ e[..., None]).squeeze(-1)
        frame = self.manifold.frame(like[i])
        u = u if frame is None else (frame[0].flatten(2) * u[..., None]).sum(1)
        x = self.manifold.projx(self.manifold.expmap(like[i], u.reshape(total, *self.event_shape)))
        if self.uniform:
            assert isinstance(self.manifold, Compact)
            spread = self.manifold.uniform(
                (total,), self.event_shape, like=like, generator=generator
            )
            anywhere = (pick == len(self.factors)).reshape(-1, *(1,) * len(self.event_shape))
            x = torch.where(anywhere, spread, x)
        return x.reshape(*shape, *self.event_shape)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        each = self._each(x.reshape(-1, *self.event_shape), None)
        return torch.logsumexp(each + self.log_weights.to(each), -1).reshape(batch)

    @torch.no_grad()
    def fit(self, x: Points, *, groups: Tensor | None = None, own: Tensor | None = None) -> None:
        """Set the weights of the shapes to those under which held-out points are likeliest.

        Args:
            x: Points, `(m, *event)`. They may be centres themselves, if their groups are told.
            groups: Group of each point, `(m,)`: kernels about centres of its own group do not
                count for it.
            own: Group of each centre, `(n,)`; those of `groups` where x is the centres.

        Raises:
            ShapeError: Points or groups have another shape.
            DomainError: Points are not finite, or are all of the groups of all centres.
        """
        expect_trailing("ParzenWindows.fit", "x", x, self.event_shape)
        expect_finite("ParzenWindows.fit", "x", x)
        own = groups if own is None else own
        masked = None
        if groups is not None and own is not None:
            if groups.shape != (len(x),) or own.shape != (len(self.centres),):
                raise ShapeError(
                    f"ParzenWindows.fit: groups {tuple(groups.shape)} and own {tuple(own.shape)} "
                    f"must name one group for each of {len(x)} points and {len(self.centres)} "
                    "centres"
                )
            masked = (groups, own)
        each = self._each(x.to(self.centres), masked).double()
        if not bool((each > -torch.inf).any(-1).all()):
            raise DomainError("ParzenWindows.fit: a point has no centre outside its own group")
        weights = each.new_full((each.shape[1],), 1 / each.shape[1])
        for _ in range(STEPS):
            shares = torch.softmax(each + weights.log(), -1).sum(0)
            weights = (shares + 1 / len(weights)) / (len(each) + 1)
        self.log_weights.copy_(weights.log())

    def widened(self, factor: float, *, least: float = 0.0) -> "ParzenWindows":
        """Return a law with kernels so many times as wide, without shapes of little weight.

        Args:
            factor: On the standard deviations of all kernels.
            least: Shapes of less weight are left out, but for the heaviest.

        Raises:
            DomainError: The factor is not positive, or least not in [0, 1].
        """
        expect_positive("ParzenWindows.widened", factor=factor)
        if not 0 <= least <= 1:
            raise DomainError(f"ParzenWindows.widened: least must lie in [0, 1], got {least}")
        weights = self.log_weights.exp()
        kept = weights >= torch.minimum(weights.max(), weights.new_tensor(least))
        law = copy.deepcopy(self)
        law.uniform = self.uniform and bool(kept[-1])
        law.factors = factor * self.factors[kept[: len(self.factors)]]
        law.log_weights = self.log_weights[kept].log_softmax(0)
        return law

    def _each(self, x: Tensor, masked: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the log density of each shape at each point, `(m, shapes)`."""
        parts = []
        for rows in _rows(len(x), max(1, AT_ONCE // len(self.centres))):
            hidden = None if masked is None else masked[0][rows, None] == masked[1]
            parts.append(self._chunk(x[rows], hidden))
        each = torch.cat(parts) if parts else x.new_zeros(0, len(self.factors))
        if not self.uniform:
            return each
        flat = each.new_full((len(x), 1), -self.manifold.log_volume(self.event_shape))
        return torch.cat([each, flat], -1)

    def _chunk(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        centres = self.centres.to(torch.promote_types(x.dtype, self.centres.dtype))
        x = x.to(centres)
        u, far = _logs(self.manifold, centres, x[:, None])
        shrunk = self.manifold.log_det_exp(centres, u)
        hidden_or_far = far if hidden is None else hidden | far
        frame = self.manifold.frame(centres)
        u = u.flatten(2)
        if frame is not None:
            u = torch.einsum("mnd,nkd->nkm", u, frame[1].flatten(2))
        else:
            u = u.permute(1, 2, 0)
        count = len(centres) if hidden is None else (~hidden).sum(-1)
        count = torch.as_tensor(count, dtype=x.dtype, device=x.device)
        found = []
        for factor in self.factors.to(x):
            z = torch.linalg.solve_triangular(factor, u, upper=False).square().sum(1)
            scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + self.dim / 2 * math.log(
                2 * math.pi
            )
            kernel = (-0.5 * z.mT - scale - shrunk).masked_fill(hidden_or_far, -torch.inf)
            found.append(torch.logsumexp(kernel, -1) - count.log())
        return torch.stack(found, -1)


def _covariances(
    manifold: Manifold,
    centres: Tensor,
    dim: int,
    round: Sequence[float],
    stretched: Sequence[float],
    stretches: Sequence[float],
) -> Tensor:
    """Return the covariance of each shape about each centre, `(shapes, n, dim, dim)`."""
    n = len(centres)
    one = torch.eye(dim, dtype=centres.dtype, device=centres.device)
    found = [(r * r * one).expand(n, dim, dim) for r in round]
    moments = _moments(manifold, centres, dim, stretched)
    for (r, moment), a in product(zip(stretched, moments, strict=True), stretches):
        found.append(a * moment + (FLOOR * r) ** 2 * one)
    return torch.stack(found) if found else centres.new_zeros(0, n, dim, dim)


def _moments(manifold: Manifold, centres: Tensor, dim: int, radii: Sequence[float]) -> list[Tensor]:
    """Return second moments of the neighbours of each centre, `(n, dim, dim)` for each radius."""
    found: list[list[Tensor]] = [[] for _ in radii]
    for rows in _rows(len(centres), max(1, AT_ONCE // len(centres))):
        here = centres[rows, None]
        u, far = _logs(manifold, here, centres)
        square = manifold.inner(here, u, u).masked_fill(far, torch.inf)
        frame = manifold.frame(centres[rows])
        u = u.flatten(2)
        u = u if frame is None else torch.einsum("mnd,mkd->mnk", u, frame[1].flatten(2))
        for k, r in enumerate(radii):
            share = torch.softmax(-square / (2 * r * r), -1)
            found[k].append(torch.einsum("mn,mnk,mnl->mkl", share, u, u))
    return [torch.cat(parts).reshape(-1, dim, dim) for parts in found]


def _logs(manifold: Manifold, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logarithms of all pairs, and which are on the cut locus, too far to count.

    Coordinates that are rounded to a lattice make antipodes exact, which have no logarithm.
    """
    x, y = torch.broadcast_tensors(x, y)
    far = manifold.cut_locus(x, y)
    mask = far.reshape(far.shape + (1,) * manifold.ndim)
    return manifold.logmap(x, torch.where(mask, x, y)), far


def _rows(total: int, size: int) -> Iterator[slice]:
    return (slice(k, k + size) for k in range(0, total, size))
