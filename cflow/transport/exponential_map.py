"""Exponential map flows on the sphere: every point follows the gradient of a potential.

    f(x) = exp_x(v),   v = g - (g.x) x,   g = sum_i a_i exp(b_i (m_i.x - 1)) m_i

with unit vectors m_i, b_i > 0, a_i > 0 and sum a_i < 1: the potential sum a_i / b_i exp(b_i (m_i.x
- 1)) is then convex in the sense of optimal transport with cost dist^2 / 2, and f is one to one.
With H = dg/dx, A = H - x (H x + g)^T - (g.x) 1, w = A^T v, q = |v|^2 < 1, C = cos|v|, S = sin|v| /
|v| and B = (C - S) / q, all power series in q, its derivative along a tangent e is

    f'(x) e = (C 1 - S x w^T + B v w^T + S A) e

and log|det| between areas is that of the square matrix that also takes x to f(x). The inverse is
found by a damped Newton method on the sphere; gradients pass through it by the implicit function
theorem, first derivatives are exact, higher ones are not.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.3;
Sei (2013), A Jacobian inequality for gradient maps on the sphere and its application to directional
statistics, Communications in Statistics 42, theorem 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cflow.errors import DomainError, SolverError, expect_positive, expect_trailing, plain
from cflow.manifold import Sphere, expect_on
from cflow.transport.small_matrix import log_abs_det, solve
from cflow.transport.steered import steered
from cflow.transport.transport import Layer

__all__ = ["ExponentialMapSphere"]

TERMS = 10  # of each power series in q, enough for float64 where q is at most 1
SINC = [(-1) ** k / math.factorial(2 * k + 1) for k in range(TERMS)]
BEND = [
    (-1) ** k * (1 / math.factorial(2 * k) - 1 / math.factorial(2 * k + 1))
    for k in range(1, TERMS + 1)
]  # (cos r - sin r / r) / r^2 in powers of r^2
STEPS = 12  # of Newton's method where a graph cannot say that it has arrived
MOST = 100  # where it can
LEAST = 1e-3  # share of a step at which a search ends: rounding hides whether it leads nearer


class Potential(NamedTuple):
    """Weights `(*batch, units)`, sharpness, and unit vectors `(*batch, units, features)`."""

    weight: Tensor
    sharpness: Tensor
    centre: Tensor


class ExponentialMapSphere(Layer):
    """Move unit vectors along geodesics towards learned centres, on the sphere of any dimension.

    Push is the closed form and draws points together; `Inverse` of this layer, which is fast for
    densities, spreads them. Fresh layers move points a little, towards random centres.

    Args:
        features: Length n + 1 of a vector, at least 2.
        units: Number of centres.
        conditioner: A module called as `net(context)` that returns `(*batch, units * (features +
            2))`; added to the learned parameters, which hold for each unit its raw weight,
            sharpness and centre.
        most: Largest sum of the weights a_i, in (0, 1); 1 - `most` bounds the slope from below.

    Raises:
        DomainError: An option outside its range, points off the sphere, or a missing context.
        ShapeError: Points, or what the conditioner returns, have another length.
        SolverError: A pull did not arrive.

    References:
        Rezende et al. (2020), arXiv 2002.02428; Sei (2013).

    Example:
        >>> from cflow.state import tracked
        >>> layer = ExponentialMapSphere(3, units=4)
        >>> x = torch.tensor([[0.0, 0.6, 0.8]])
        >>> back = layer.pull(layer.push(tracked(x)))
        >>> torch.allclose(back.x, x, atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        units: int = 8,
        conditioner: Callable[[Tensor], Tensor] | None = None,
        most: float = 0.98,
    ) -> None:
        super().__init__(event_dim=1)
        expect_positive("ExponentialMapSphere", units=units)
        if features < 2 or not 0 < most < 1:
            raise DomainError(
                "ExponentialMapSphere: features must be 2 or more and most lie in (0, 1), got "
                f"{features} and {most}"
            )
        self.features, self.units, self.most = features, units, most
        self.conditioner = conditioner
        raw = torch.zeros(units, features + 2)
        raw[:, 2:] = Sphere().projx(torch.randn(units, features))
        self.theta = nn.Parameter(raw.flatten())

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        unit, potential = self._enter("push", x, context)
        if not tracked:
            return _moved(unit, *_velocity(unit, potential)[:2]).to(x.dtype), None
        y, matrix = _derivative(unit, potential)
        return y.to(x.dtype), log_abs_det(matrix)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        unit, potential = self._enter("pull", y, context)
        with torch.no_grad():
            fixed = Potential(*(part.detach() for part in potential))
            start = _search(unit.detach(), fixed)
            matrix = _derivative(start, fixed)[1]
        reached = _moved(start, *_velocity(start, potential)[:2])
        x = Sphere().projx(start + solve(matrix, Sphere().proju(reached.detach(), unit - reached)))
        ladj = -log_abs_det(_derivative(x, potential)[1]) if tracked else None
        return x.to(y.dtype), ladj

    def _enter(self, method: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Potential]:
        """Check the points, and read the parameters in float32 at least."""
        where = f"ExponentialMapSphere.{method}"
        expect_trailing(where, "x", x, (self.features,))
        expect_on(where, "x", Sphere(), x)
        raw = steered(where, self.theta, self.conditioner, context)
        raw = raw.to(torch.promote_types(torch.promote_types(x.dtype, raw.dtype), torch.float32))
        raw = raw.unflatten(-1, (self.units, self.features + 2))
        # One more unit at rest takes most of the weight at first.
        rest = torch.full_like(raw[..., :1, 0], 2 + math.log(self.units))
        weight = self.most * torch.cat([raw[..., 0], rest], -1).softmax(-1)[..., :-1]
        sharpness = softplus(raw[..., 1] + math.log(math.e - 1)) + 1e-3
        # A centre of zero would have no direction; so small a floor turns no other one.
        length = torch.linalg.vector_norm(raw[..., 2:], dim=-1, keepdim=True)
        centre = raw[..., 2:] / length.clamp_min(1e-12)
        return Sphere().projx(x.to(raw.dtype)), Potential(weight, sharpness, centre)


def _velocity(x: Tensor, potential: Potential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return v, q = |v|^2, g, and the weights a_i b_i exp(b_i (m_i.x - 1)) of H."""
    centre = potential.centre
    near = (centre - x[..., None, :]).square().sum(-1) / -2  # m.x - 1, without cancelling
    pull = potential.weight * (potential.sharpness * near).exp()
    g = (pull[..., None] * centre).sum(-2)
    v = Sphere().proju(x, g)
    return v, (v * v).sum(-1, keepdim=True), g, pull * potential.sharpness


def _moved(x: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Return exp_x(v)."""
    sinc = _series(q, SINC)
    return Sphere().projx((sinc + q * _series(q, BEND)) * x + sinc * v)


def _derivative(x: Tensor, potential: Potential) -> tuple[Tensor, Tensor]:
    """Return f(x), and the matrix that takes tangents of x to their images and x to f(x)."""
    v, q, g, curve = _velocity(x, potential)
    sinc, bend = _series(q, SINC), _series(q, BEND)
    cos = sinc + q * bend
    y = Sphere().projx(cos * x + sinc * v)
    centre = potential.centre
    hessian = (curve[..., None] * centre).mT @ centre
    steep = (g * x).sum(-1, keepdim=True)
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    hx = (hessian @ x[..., None])[..., 0]
    turn = hessian - _outer(x, hx + g) - steep[..., None] * one
    w = (hessian @ v[..., None])[..., 0] - steep * v
    full = cos[..., None] * one + _outer(bend * v - sinc * x, w) + sinc[..., None] * turn
    off = y - (full @ x[..., None])[..., 0]
    return y, full + _outer(off, x)


def _search(y: Tensor, potential: Potential) -> Tensor:
    """Return x with f(x) = y by Newton steps, halved for a point as long as they lead away."""
    x, share = y, torch.ones_like(y[..., :1])
    there, matrix = _derivative(x, potential)
    gap = _gap(there, y)
    enough = 8 * torch.finfo(y.dtype).eps
    for _ in range(MOST if plain() else STEPS):
        moving = (gap > enough) & (share > LEAST)  # who has ended stays, whoever is beside it
        if plain() and not bool(moving.any()):
            break
        step = share * solve(matrix, Sphere().logmap(there, y))
        length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
        step = step / length.clamp_min(1.0)  # Newton knows little of what lies farther off
        trial = Sphere().projx(Sphere().expmap(x, step))
        image, slopes = _derivative(trial, potential)
        left = _gap(image, y)
        better = (left < gap) & moving
        x, there = torch.where(better, trial, x), torch.where(better, image, there)
        matrix = torch.where(better[..., None], slopes, matrix)
        gap = torch.where(better, left, gap)
        share = torch.where(better, (2 * share).clamp_max(1.0), share / 2)
    if plain():
        _expect_reached(gap)
    return x


def _gap(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - y, dim=-1, keepdim=True)


def _expect_reached(gap: Tensor) -> None:
    worst = float(gap.amax()) if gap.numel() else 0.0
    allowed = 4096 * torch.finfo(gap.dtype).eps
    if not worst <= allowed:
        raise SolverError(
            f"ExponentialMapSphere.pull: the inverse was not reached, a point is {worst:.3g} off "
            f"where {allowed:.3g} is allowed; check that points and parameters are finite, or "
            "compute in float64"
        )


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _series(q: Tensor, coefficients: list[float]) -> Tensor:
    total = torch.full_like(q, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * q + c
    return total
