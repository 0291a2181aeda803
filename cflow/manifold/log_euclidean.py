"""Symmetric positive definite matrices, with the log-Euclidean metric.

    g_X(U, W) = <D log(X)[U], D log(X)[W]>,    dist(X, Y) = |log Y - log X|_F
    exp_X(U) = exp(log X + D log(X)[U]),       log_X(Y) = D exp(log X)[log Y - log X]

The logarithm of matrices makes it flat, so means and geodesics are those of flat space, and much
cheaper than affine-invariant ones.
Source: Arsigny et al. (2007), Geometric means in a novel vector space structure on symmetric
positive-definite matrices, SIAM Journal on Matrix Analysis 29.
"""

import torch
from torch import Tensor

from cflow.manifold.radial import log_sinhc_root
from cflow.manifold.spd import SPD
from cflow.manifold.symmetric import exp_along, log_rate_spd, log_spd, symmetric

__all__ = ["LogEuclideanSPD"]


class LogEuclideanSPD(SPD):
    """Positive definite matrices, flat by their logarithm.

    Rotations X -> R X R' and powers X -> X^a, up to the scale |a|, keep its distances; changes of
    units of single variables do not, for which see `AffineInvariantSPD`. Its volume is
    prod_i 1/lambda_i prod_{i<j} (log lambda_i - log lambda_j)/(lambda_i - lambda_j) times that of
    the entries. Derivatives of maps are exact up to the second, of `dist` up to the third.

    Args:
        steps: How a solver steps, see `Manifold`.

    References:
        Arsigny et al. (2007), SIAM Journal on Matrix Analysis 29.

    Example:
        >>> one = torch.eye(2)
        >>> LogEuclideanSPD().dist(one, torch.e * one)  # sqrt 2
        tensor(1.4142)
    """

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        log, rate = _log_along(x, u)
        return symmetric(torch.linalg.matrix_exp(log + rate))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        log = _log(x)
        return exp_along(log, _log(y) - log)[1]

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(_log(y) - _log(x), dim=(-2, -1))

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (_log_along(x, u)[1] * _log_along(x, w)[1]).sum((-2, -1))

    def log_volume_element(self, x: Tensor) -> Tensor:
        s = torch.linalg.eigvalsh(x).clamp(min=torch.finfo(x.dtype).tiny).log()
        apart = 0.5 * (s[..., :, None] - s[..., None, :])
        bend = 0.5 * log_sinhc_root(apart.square()).sum((-2, -1))
        return -0.5 * (x.shape[-1] + 1) * s.sum(-1) - bend

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like((x + u)[..., 0, 0])

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        log, rate = _log_along(x, u)
        return exp_along(log + s[..., None, None] * rate, rate)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return exp_along(_log(x), _log_along(y, v)[1])[1]


def _log(x: Tensor) -> Tensor:
    return log_spd(x, x - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))


def _log_along(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return log X and D log(X)[U]."""
    log = _log(x)
    return log, log_rate_spd(log, u)
