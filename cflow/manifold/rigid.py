"""Rigid motions of space, SE(3), as 4 x 4 matrices: a rotation R and a translation p.

    X = [[R, p], [0, 1]],    g_X = w_R g_SO(3) + w_p |dp|^2,    dist^2 = w_R angle^2 + w_p |dp|^2
    exp_X(U, q) = (exp_R(U), p + q)

The metric is the same seen from the left, dist(Z X, Z Y) = dist(X, Y): whatever moves the whole
scene changes nothing. Its geodesics turn about a fixed axis while they go straight ahead; screws,
the exponentials of the group, are geodesics of no Riemannian metric.
Source: Park (1995), Distance metrics on the rigid-body motions with applications to mechanism
design, Journal of Mechanical Design 117; Zefran, Kumar and Croke (1999), Metrics and connections
for rigid-body kinematics, International Journal of Robotics Research 18.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import ShapeError, expect_positive
from cflow.manifold.manifold import Manifold, Steps, described
from cflow.manifold.rotation import Rotations, relative_turn
from cflow.typing import Frame

__all__ = ["RigidMotions"]


class RigidMotions(Manifold):
    """Poses of a body, or changes of them; one point is one homogeneous 4 x 4 matrix.

    Points compose as matrices do, `x @ y`. The frame turns along: three angular velocities and
    three velocities along the body's own axes, so a `FrameField` is given as a body feels it.

    Args:
        rotation_weight: Of the squared angle in radians.
        translation_weight: Of the squared translation, in units of the translation's own: 1 / l^2
            makes a length l as long as a radian.
        steps: How a solver steps, see `Manifold`.

    Raises:
        DomainError: A weight is not positive.

    References:
        Park (1995), Journal of Mechanical Design 117.

    Example:
        >>> x, y = torch.eye(4), torch.eye(4)
        >>> y[:3, 3] = torch.tensor([3.0, 4.0, 0.0])
        >>> RigidMotions(translation_weight=0.25).dist(x, y)
        tensor(2.5000)
    """

    ndim = 2
    smooth_frame = True

    def __init__(
        self,
        *,
        rotation_weight: float = 1.0,
        translation_weight: float = 1.0,
        steps: Steps = "projected",
    ) -> None:
        super().__init__(steps=steps)
        expect_positive(
            "RigidMotions", rotation_weight=rotation_weight, translation_weight=translation_weight
        )
        self.rotation_weight, self.translation_weight = rotation_weight, translation_weight
        self._rotations = Rotations()

    def projx(self, x: Tensor) -> Tensor:
        """Return the pose with the nearest rotation and the same translation."""
        r, p = _parts(x)
        return _pose(self._rotations.projx(r), p, corner=1.0)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        (r, _), (turn, go) = _parts(x), _parts(u)
        return _pose(self._rotations.proju(r, turn), go, corner=0.0)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        (r, p), (turn, go) = _parts(x), _parts(u)
        return _pose(self._rotations.expmap(r, turn), p + go, corner=1.0)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the shortest velocity from x to y; at an angle of pi one of the two."""
        (r, p), (there, end) = _parts(x), _parts(y)
        return _pose(self._rotations.logmap(r, there), end - p, corner=0.0)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        (r, p), (there, end) = _parts(x), _parts(y)
        turn = math.sqrt(self.rotation_weight) * relative_turn(r, there)
        go = math.sqrt(self.translation_weight) * (end - p)
        return torch.linalg.vector_norm(torch.cat([turn, go], -1), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        (r, _), (turn, go), (other, away) = _parts(x), _parts(u), _parts(w)
        angular = self._rotations.inner(r, turn, other)
        return self.rotation_weight * angular + self.translation_weight * (go * away).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether matrices hold a rotation and finite translation, and end in 0, 0, 0, 1."""
        x = x.detach()
        if not x.numel():
            return True, ""
        r, p = _parts(x)
        on, reason = self._rotations.check_point(r, atol=atol)
        if not on:
            return False, f"of the rotations, {reason}"
        if not bool(torch.isfinite(p).all()):
            return False, f"{int((~torch.isfinite(p)).sum())} translations are not finite"
        last = torch.eye(4, dtype=x.dtype, device=x.device)[3]
        off = float((x[..., 3, :] - last).abs().amax())
        return off <= atol, "" if off <= atol else (
            f"the last rows differ from 0, 0, 0, 1 by up to {off:.3g}"
        )

    def dim(self, shape: Sequence[int]) -> int:
        if tuple(shape) != (4, 4):
            raise ShapeError(
                f"RigidMotions: a point is a homogeneous matrix of shape (4, 4), got {tuple(shape)}"
            )
        return 6

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.inf

    def frame(self, x: Tensor) -> Frame:
        """Return unit angular velocities about the body's axes, then unit velocities along them."""
        r, _ = _parts(x)
        turns, duals = self._rotations.frame(r)
        still, fixed = torch.zeros_like(turns[..., 0]), torch.zeros_like(turns)
        along = _pose(fixed, r.mT, corner=0.0)
        vectors = torch.cat([_pose(turns, still, corner=0.0), along], -3)
        return vectors, torch.cat([_pose(duals, still, corner=0.0), along], -3)

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        (r, _), (turn, _) = _parts(x), _parts(u)
        return self._rotations.log_det_exp(r, turn)

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        (r, _), (there, _) = _parts(x), _parts(y)
        return self._rotations.cut_locus(r, there, atol=atol / math.sqrt(self.rotation_weight))

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        (r, p), (turn, go) = _parts(x), _parts(u)
        point, velocity = self._rotations.geodesic(r, turn, s)
        return _pose(point, p + s[..., None] * go, corner=1.0), _pose(velocity, go, corner=0.0)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        (r, _), (turn, _), (there, _), (rate, go) = (_parts(part) for part in (x, u, y, v))
        return _pose(self._rotations.log_rate(r, turn, there, rate), go, corner=0.0)

    def __repr__(self) -> str:
        """Show weights and steps, where they are not the usual ones."""
        weights = {
            "rotation_weight": self.rotation_weight,
            "translation_weight": self.translation_weight,
        }
        options = [f"{name}={weight:g}" for name, weight in weights.items() if weight != 1]
        return described(self, *options)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what acts as rotation, `(*batch, 3, 3)`, and as translation, `(*batch, 3)`."""
    return x[..., :3, :3], x[..., :3, 3]


def _pose(r: Tensor, p: Tensor, *, corner: float) -> Tensor:
    """Return the 4 x 4 matrices of a rotation and a translation, or of velocities (corner 0)."""
    batch = torch.broadcast_shapes(r.shape[:-2], p.shape[:-1])
    top = torch.cat([r.expand(*batch, 3, 3), p.expand(*batch, 3)[..., None]], -1)
    last = corner * torch.eye(4, dtype=r.dtype, device=r.device)[3:]
    return torch.cat([top, last.expand(*batch, 1, 4)], -2)
