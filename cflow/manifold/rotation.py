"""Rotations of space, SO(3), as matrices, with the metric that measures angles.

    g_R(U, W) = tr(U' W) / 2,    U = R A with A skew,    dist(R, S) = angle of R' S, in radians
    exp_R(U) = R (I + sinc(a) A + (1 - cos a) / a^2 A^2),    a = |A| / sqrt 2

It is the same seen from left and right, dist(Q R, Q S) = dist(R Q, S Q) = dist(R, S), its volume is
8 pi^2 and its uniform law Haar's. Logarithms pass by the unit quaternion of R' (S - R), which has
full precision at small angles and at pi. The projection is our own and not special_procrustes of
roma (1.8), whose forward mode, which divergences need, does not compile, and is wrong when nested.
Source: Chirikjian (2012), Stochastic models, information theory, and Lie groups 2, sections 10 and
11; Iserles, Munthe-Kaas, Norsett and Zanna (2000), Lie-group methods, Acta Numerica 9, appendix B;
Higham (2008), Functions of matrices, chapter 8.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.autograd.forward_ad import unpack_dual

from cflow.errors import ShapeError, plain
from cflow.manifold.manifold import Compact, Steps, described
from cflow.manifold.quaternion import LOG_VOLUME, arc, hat, matrix_of, quaternion_of
from cflow.manifold.radial import bend_root, sinhc_root
from cflow.typing import Frame

__all__ = ["Rotations", "relative_turn"]

ORDERS = 2  # of the derivatives of the projection that are exact


class Rotations(Compact):
    """Rotation matrices, of determinant one; one point is one 3 x 3 matrix.

    Its frame is R E_k, with E_k the infinitesimal rotation about axis k by one radian, so
    `FrameField` takes angular velocities in the frame that turns along. Derivatives of `projx` are
    exact up to the second, all others are exact.

    Args:
        steps: How a solver steps, see `Manifold`. Projected steps find singular values at every
            evaluation, exponential ones once a step: for thousands of points they are quicker.

    References:
        Chirikjian (2012), Stochastic models, information theory, and Lie groups 2.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> Rotations().dist(torch.eye(3), quarter)
        tensor(1.5708)
        >>> Rotations().logmap(torch.eye(3), quarter @ quarter)[1, 0]
        tensor(3.1416)
    """

    ndim = 2
    loop = 2 * math.pi
    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)

    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest rotation; where several are, as for reflections, one of them."""
        return _nearest(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ _skew(x.mT @ u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ _exp(_skew(x.mT @ u))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the shortest velocity from x to y; at an angle of pi one of the two."""
        return x @ hat(relative_turn(x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(relative_turn(x, y), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return 0.5 * (u * w).sum((-2, -1))

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether the columns are orthonormal and right-handed."""
        x = x.detach()
        if not x.numel():
            return True, ""
        one = torch.eye(3, dtype=x.dtype, device=x.device)
        off = float((x.mT @ x - one).abs().amax())
        if not off <= atol:
            return False, f"products of columns differ from the unit matrix by up to {off:.3g}"
        flipped = int((torch.linalg.det(x) < 0).sum())
        return not flipped, "" if not flipped else f"{flipped} matrices reflect, determinant -1"

    def dim(self, shape: Sequence[int]) -> int:
        if tuple(shape) != (3, 3):
            raise ShapeError(
                f"Rotations: a point is a rotation matrix of shape (3, 3), got {tuple(shape)}; "
                "Quaternions takes vectors of four"
            )
        return 3

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return LOG_VOLUME

    def frame(self, x: Tensor) -> Frame:
        """Return the velocities of turning about the three axes that turn along, 1 rad/s each."""
        axes = hat(torch.eye(3, dtype=x.dtype, device=x.device))
        vectors = x[..., None, :, :] @ axes
        return vectors, 0.5 * vectors

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Return log((2 - 2 cos a) / a^2) for the angle a = |u|, `(*batch,)`."""
        return 2 * sinhc_root(-0.25 * self.inner(x, u, u)).abs().log()

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        cosine = quaternion_of(x.mT @ (y - x))[..., 3]  # of half the angle
        return 2 * cosine <= atol

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        turn = _skew(x.mT @ u)
        point = x @ _exp(s[..., None, None] * turn)
        return point, point @ turn

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Give R (B + [A, B] / 2 + c [A, [A, B]]), c = (1 - a/2 cot(a/2)) / a^2, B = Y' V.

        It is the inverse of the derivative of the exponential; the angle a may exceed pi.
        """
        turn, rate = _skew(x.mT @ u), _skew(y.mT @ v)
        q = -0.25 * self.inner(x, u, u)[..., None, None]
        bend = -0.125 * bend_root(q) * sinhc_root(q)
        once = turn @ rate - rate @ turn
        return x @ (rate + 0.5 * once + bend * (turn @ once - once @ turn))

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        full = (*shape, 4)
        e = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return matrix_of(e / torch.linalg.vector_norm(e, dim=-1, keepdim=True))

    def __repr__(self) -> str:
        """Show how solvers step, where it is not by projection."""
        return described(self)


def relative_turn(x: Tensor, y: Tensor) -> Tensor:
    """Return the axis times the angle of X' Y, `(*batch, 3)`, exactly zero where X = Y.

    Example:
        >>> half = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
        >>> relative_turn(torch.eye(3), half)
        tensor([0.0000, 0.0000, 3.1416])
    """
    q = quaternion_of(x.mT @ (y - x))
    v = q[..., :3]
    return 2 * arc(v.square().sum(-1, keepdim=True), q[..., 3:]) * v


def _skew(x: Tensor) -> Tensor:
    return 0.5 * (x - x.mT)


def _exp(turn: Tensor) -> Tensor:
    """Return the exponential of skew matrices."""
    q = -0.5 * turn.square().sum((-2, -1), keepdim=True)  # less the square of the angle
    one = torch.eye(3, dtype=turn.dtype, device=turn.device)
    half = sinhc_root(0.25 * q)
    return one + sinhc_root(q) * turn + 0.5 * half.square() * (turn @ turn)


def _nearest(x: Tensor) -> Tensor:
    """Return the rotations R = U V' nearest to X = U S V'.

    The singular vectors are constants, for their derivatives are infinite where singular values are
    equal, as at every rotation. Steps of Newton's method for the skew part of R' X, which change no
    value, restore one derivative each; the values' sums by pairs stand for the Jacobian.
    """
    u, s, vt = torch.linalg.svd(x.detach())
    sign = torch.linalg.det(u @ vt).sign()[..., None]
    last = torch.cat([torch.ones_like(s[..., :2]), sign], -1)
    u, s = u * last[..., None, :], s * last
    r = u @ vt
    if _constant(x):
        return r
    sums = s[..., :, None] + s[..., None, :]
    info = torch.finfo(x.dtype)  # sums vanish where the nearest is not unique
    sums = torch.maximum(sums, info.eps * s[..., :1, None]).clamp(min=info.tiny)
    one = torch.eye(3, dtype=x.dtype, device=x.device)
    for _ in range(ORDERS):
        skew = r.mT @ x
        gap = skew - skew.mT
        gap = gap - gap.detach()  # zero, with the derivatives of x
        turn = vt.mT @ (_skew(vt @ gap @ vt.mT) / sums) @ vt
        r = r @ (one + turn + 0.5 * turn @ turn)
    return r


def _constant(x: Tensor) -> bool:
    """Say whether nobody is going to differentiate by x."""
    known = plain() and not (torch.is_grad_enabled() and x.requires_grad)
    return known and unpack_dual(x).tangent is None
