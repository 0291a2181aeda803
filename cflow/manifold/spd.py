"""Symmetric positive definite matrices, with the affine-invariant metric.

    g_X(U, W) = tr(X^-1 U X^-1 W),    X = L L'
    exp_X(U) = L exp(L^-1 U L^-T) L',    dist(X, Y) = |log(L^-1 Y L^-T)|_F

The factor of Cholesky serves where textbooks write X^(1/2): the two differ by a rotation, which
neither exponential nor distance sees, and it has derivatives where eigenvalues are equal.
Source: Pennec, Fillard and Ayache (2006), A Riemannian framework for tensor computing, IJCV 66;
Said et al. (2017), Riemannian Gaussian distributions on the space of symmetric positive definite
matrices, arXiv 1507.01760.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import ShapeError
from cflow.manifold.manifold import Manifold, Steps, described
from cflow.manifold.radial import log_sinhc_root
from cflow.manifold.symmetric import clip, log_rate_spd, log_spd, symmetric
from cflow.typing import Frame

__all__ = ["SPD", "AffineInvariantSPD"]


class SPD(Manifold):
    """Symmetric positive definite matrices; one point is one matrix.

    What is left open is the metric: see `AffineInvariantSPD` and `LogEuclideanSPD`.

    Args:
        steps: How a solver steps, see `Manifold`.
    """

    ndim = 2
    loop = math.inf
    smooth_frame = True

    def __init__(self, *, steps: Steps = "projected") -> None:
        super().__init__(steps=steps)

    def projx(self, x: Tensor) -> Tensor:
        """Return symmetric parts, their eigenvalues lifted to 4 n eps of the largest."""
        return clip(symmetric(x), 4 * x.shape[-1] * torch.finfo(x.dtype).eps)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return symmetric(u)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether matrices are symmetric and positive definite.

        The tolerance is for the symmetry, in units of the largest entry where that is above 1.
        Singular matrices are infinitely far from all others, so for them no tolerance is small.
        """
        if not x.numel():
            return True, ""
        x = x.detach()
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).sum())
            return False, f"{bad} entries are not finite"
        scale = x.abs().amax((-2, -1)).clamp(min=1.0)
        skew = float(((x - x.mT).abs().amax((-2, -1)) / scale).amax())
        if skew > atol:
            return False, f"matrices differ from their transposes by up to {skew:.3g}"
        least = float(torch.linalg.eigvalsh(x).amin())
        return least > 0, "" if least > 0 else f"the smallest eigenvalue is {least:.3g}"

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
            raise ShapeError(f"SPD: a point is a square matrix (n, n), got {tuple(shape)}")
        return shape[0] * (shape[0] + 1) // 2

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.inf

    def frame(self, x: Tensor) -> Frame:
        """Return the symmetric matrices with one entry, or two equal ones, of length 1."""
        n = x.shape[-1]
        one = torch.eye(n, dtype=x.dtype, device=x.device)
        i, j = torch.triu_indices(n, n, device=x.device)
        pairs = one[i][:, :, None] * one[j][:, None, :]
        basis = torch.where((i == j)[:, None, None], pairs, math.sqrt(2.0) * symmetric(pairs))
        vectors = basis.expand(*x.shape[:-2], *basis.shape)
        return vectors, vectors

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like((y - x)[..., 0, 0], dtype=torch.bool)

    def __repr__(self) -> str:
        """Show how solvers step, where it is not by projection."""
        return described(self)


class AffineInvariantSPD(SPD):
    """Positive definite matrices, where X -> A X A' is an isometry for every invertible A.

    It is the metric of covariances whatever the units of their variables; distances are those of
    Fisher and Rao between centred normal laws, times sqrt 2. Derivatives of `logmap` and `dist`
    are exact up to the third.

    Args:
        steps: How a solver steps, see `Manifold`.

    References:
        Pennec, Fillard and Ayache (2006), IJCV 66.

    Example:
        >>> one = torch.eye(2)
        >>> AffineInvariantSPD().dist(one, torch.e * one)  # sqrt 2
        tensor(1.4142)
    """

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        root = torch.linalg.cholesky(x)
        return _around(root, torch.linalg.matrix_exp(_within(root, u)))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        root = torch.linalg.cholesky(x)
        return _around(root, _log_ratio(root, x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        ratio = _log_ratio(torch.linalg.cholesky(x), x, y)
        return torch.linalg.vector_norm(ratio, dim=(-2, -1))

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        root = torch.linalg.cholesky(x)
        return (_within(root, u) * _within(root, w)).sum((-2, -1))

    def log_volume_element(self, x: Tensor) -> Tensor:
        root = torch.linalg.cholesky(x)
        return -(x.shape[-1] + 1) * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        s = torch.linalg.eigvalsh(_within(torch.linalg.cholesky(x), u))
        apart = 0.5 * (s[..., :, None] - s[..., None, :])
        return 0.5 * log_sinhc_root(apart.square()).sum((-2, -1))

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.linalg.cholesky(x)
        rate = _within(root, u)
        grown = torch.linalg.matrix_exp(s[..., None, None] * rate)
        return _around(root, grown), _around(root, rate @ grown)

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        root = torch.linalg.cholesky(x)
        return _around(root, log_rate_spd(_within(root, u), _within(root, v)))


def _within(root: Tensor, u: Tensor) -> Tensor:
    """Return L^-1 U L^-T."""
    half = torch.linalg.solve_triangular(root, u, upper=False)
    return symmetric(torch.linalg.solve_triangular(root, half.mT, upper=False))


def _around(root: Tensor, u: Tensor) -> Tensor:
    """Return L U L'."""
    return symmetric(root @ u @ root.mT)


def _log_ratio(root: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return log(L^-1 Y L^-T), exactly zero where X = Y."""
    return log_spd(_within(root, y), _within(root, y - x))
