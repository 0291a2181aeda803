"""Rotations of space as unit quaternions, q and -q being the same one.

    dist(p, q) = 4 atan2(|p - q|, |p + q|), q's sign such that p.q >= 0: the angle of the rotation
    g = 4 g_sphere,    volume = 8 pi^2,    E_k(q) = 1/2 q e_k with e_k = i, j, k

Components stand in the order (x, y, z, w) of scipy and roma: imaginary parts first, then the real
one. The metric is that of `Rotations`, angles in radians; a great circle of the sphere of
quaternions has an angle of 4 pi, and half of it is a loop.
Source: Hartley, Trumpf, Dai and Li (2013), Rotation averaging, IJCV 103, section 3; Horn (1987),
Closed-form solution of absolute orientation using unit quaternions, JOSA A 4.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError, expect_trailing
from cflow.manifold.manifold import Compact, Steps, described
from cflow.manifold.radial import asinhc_root, bend_root, cosh_root, sinhc_root
from cflow.typing import Frame

__all__ = ["Quaternions", "arc", "hat", "matrix_of", "quaternion_of"]

LOG_VOLUME = math.log(8 * math.pi**2)


class Quaternions(Compact):
    """Rotations of space; one point is one unit quaternion (x, y, z, w), up to its sign.

    Everything here takes q for -q: distances, logarithms (to the nearer of y and -y) and volumes. A
    velocity changes sign with the quaternion, so a field has to be odd, v(t, -q) = -v(t, q), or its
    flow is one of the sphere S^3, which gives q and -q two densities. `FrameField` with
    coefficients of `to_matrix(q)`, or any even ones, is odd: they are the angular velocity in the
    frame that turns along, in radians.

    Args:
        steps: How a solver steps, see `Manifold`.

    References:
        Hartley et al. (2013), IJCV 103.

    Example:
        >>> quarter = torch.tensor([0.0, 0.0, 1.0, 1.0]) / 2**0.5  # a quarter turn about z
        >>> Quaternions().dist(torch.tensor([0.0, 0.0, 0.0, -1.0]), quarter)
        tensor(1.5708)
        >>> Quaternions().to_matrix(quarter).round(decimals=4) + 0.0
        tensor([[ 0., -1.,  0.],
                [ 1.,  0.,  0.],
                [ 0.,  0.,  1.]])
    """

    ndim = 1
    loop = 2 * math.pi
    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)

    def projx(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - (x * u).sum(-1, keepdim=True) * x

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        q = -u.square().sum(-1, keepdim=True)
        return cosh_root(q) * x + sinhc_root(q) * u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        y = _nearer(x, y)
        tangent = self.proju(x, y - x)
        square = tangent.square().sum(-1, keepdim=True)
        return arc(square, (x * y).sum(-1, keepdim=True)) * tangent

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        y = _nearer(x, y)
        apart = torch.linalg.vector_norm(x - y, dim=-1)
        return 4 * torch.atan2(apart, torch.linalg.vector_norm(x + y, dim=-1))

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return 4 * (u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        x = x.detach()
        off = float((torch.linalg.vector_norm(x, dim=-1) - 1).abs().amax()) if x.numel() else 0.0
        return off <= atol, "" if off <= atol else f"lengths differ from 1 by up to {off:.3g}"

    def dim(self, shape: Sequence[int]) -> int:
        if tuple(shape) != (4,):
            raise ShapeError(
                f"Quaternions: a point is a quaternion (x, y, z, w) of shape (4,), got "
                f"{tuple(shape)}"
            )
        return 3

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return LOG_VOLUME

    def frame(self, x: Tensor) -> Frame:
        """Return the velocities of turning about the three axes that turn along, 1 rad/s each."""
        v, w = x[..., :3], x[..., 3:, None]
        one = torch.eye(3, dtype=x.dtype, device=x.device)
        unit = torch.cat([w * one - hat(v), -v[..., None]], -1)
        return 0.5 * unit, 2 * unit

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return sinhc_root(-u.square().sum(-1)).square().log()

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return 2 * (x * y).sum(-1).abs() <= atol

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = s[..., None]
        q = -u.square().sum(-1, keepdim=True)
        cos, sinc = cosh_root(s.square() * q), s * sinhc_root(s.square() * q)
        return cos * x + sinc * u, cos * u + q * sinc * x

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Give (v - (v.x) x) / sinc r + (v.x) (cos r - sinc r) / (r sinc r)^2 u with r = |u|."""
        q = -u.square().sum(-1, keepdim=True)
        off = (v * x).sum(-1, keepdim=True)
        return (v - off * x) / sinhc_root(q) + 0.5 * off * bend_root(q) * u

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        full = (*shape, *event_shape)
        e = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return self.projx(e)

    def to_matrix(self, q: Tensor) -> Tensor:
        """Return the rotation matrices `(*batch, 3, 3)` of unit quaternions `(*batch, 4)`.

        Raises:
            ShapeError: The last axis does not have four entries.
        """
        expect_trailing("Quaternions.to_matrix", "q", q, (4,))
        return matrix_of(q)

    def from_matrix(self, r: Tensor) -> Tensor:
        """Return the unit quaternions `(*batch, 4)`, with w >= 0, of rotations `(*batch, 3, 3)`.

        Raises:
            ShapeError: The points are not 3 x 3 matrices.
        """
        expect_trailing("Quaternions.from_matrix", "r", r, (3, 3))
        return quaternion_of(r - torch.eye(3, dtype=r.dtype, device=r.device))

    def __repr__(self) -> str:
        """Show how solvers step, where it is not by projection."""
        return described(self)


def hat(w: Tensor) -> Tensor:
    """Return the matrices of cross products, W a = w x a, `(*batch, 3, 3)`.

    Example:
        >>> hat(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[ 0., -3.,  2.],
                [ 3.,  0., -1.],
                [-2.,  1.,  0.]])
    """
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def arc(square: Tensor, cosine: Tensor) -> Tensor:
    """Return h / sin h for 0 <= h <= pi/2, smooth at zero.

    Args:
        square: sin(h)^2, which is accurate below a quarter turn.
        cosine: cos h, which is accurate above.
    """
    near = square <= 0.5
    sine = torch.where(near, 1.0, square).sqrt()
    far = torch.atan2(sine, torch.where(near, 1.0, cosine)) / sine
    return torch.where(near, asinhc_root(-torch.where(near, square, 0.0)), far)


def matrix_of(q: Tensor) -> Tensor:
    """Return I + 2 w V + 2 V^2 for q = (v, w) and V = hat(v)."""
    v = hat(q[..., :3])
    one = torch.eye(3, dtype=q.dtype, device=q.device)
    return one + 2 * (q[..., 3:, None] * v + v @ v)


def quaternion_of(d: Tensor) -> Tensor:
    """Return the unit quaternions of rotations I + D, with w >= 0; those of small D lose no digits.

    4 q q' is linear in the rotation. Its row with the largest diagonal entry is q up to a factor
    that is far from zero. Derivatives are those along the rotations.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in d.unbind(-2))
    x, y, z = zy - yz, xz - zx, yx - xy  # 4 w v
    rows = torch.stack(
        [
            xx - yy - zz, xy + yx, xz + zx, x,
            xy + yx, yy - zz - xx, yz + zy, y,
            xz + zx, yz + zy, zz - xx - yy, z,
            x, y, z, 4 + xx + yy + zz,
        ],
        -1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    best = rows.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    row = rows.gather(-2, index).squeeze(-2)
    row = torch.where(row[..., 3:] < 0, -row, row)
    return row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)


def _nearer(x: Tensor, y: Tensor) -> Tensor:
    """Return that of y and -y which is nearer to x."""
    return torch.where((x * y).sum(-1, keepdim=True) < 0, -y, y)
