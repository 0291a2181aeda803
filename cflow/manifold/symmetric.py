"""Logarithms of symmetric positive definite matrices, differentiable where eigenvalues are equal.

    log W = V log(lambda) V',    D log(W)[H] = V ((V' H V) / K) V',    K_ij = exp[s_i, s_j]

with s = log lambda and K the divided differences of exp, e^s_i where s_i = s_j. The derivative of
`torch.linalg.eigh` divides by differences of eigenvalues, so it fails at the identity; here the
decomposition is a constant, and steps of Newton's method for exp S = W, which change no value,
restore one derivative each: those up to the third are exact, in reverse and in forward mode.
Source: Higham (2008), Functions of matrices, theorem 3.11 (Daleckii and Krein).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from cflow.errors import plain
from cflow.manifold.radial import sinhc_root

__all__ = ["clip", "exp_along", "log_rate_spd", "log_spd", "symmetric"]

ORDERS = 3  # of the derivatives that are exact
NEAR = 0.5  # |W - I| below which the logarithm is had from W - I


def symmetric(x: Tensor) -> Tensor:
    """Return the symmetric part of matrices.

    Example:
        >>> symmetric(torch.tensor([[1.0, 4.0], [0.0, 1.0]]))
        tensor([[1., 2.],
                [2., 1.]])
    """
    return 0.5 * (x + x.mT)


def log_spd(w: Tensor, excess: Tensor) -> Tensor:
    """Return the logarithm of positive definite matrices; derivatives are exact up to the third.

    Args:
        w: Symmetric positive definite matrices W, `(*batch, n, n)`.
        excess: W - I as well as it is known, which saves the digits of W near the identity.

    Example:
        >>> w = torch.diag(torch.tensor([1.0, torch.e]))
        >>> log_spd(w, w - torch.eye(2))
        tensor([[0., 0.],
                [0., 1.]])
    """
    fixed, more = w.detach(), excess.detach()
    near = torch.linalg.matrix_norm(more, keepdim=True) < NEAR
    values, v = torch.linalg.eigh(torch.where(near, more, fixed))
    close = near.squeeze(-1)
    tiny = torch.finfo(w.dtype).tiny
    s = torch.where(close, torch.where(close, values, 0.0).log1p(), values.clamp(min=tiny).log())
    log = symmetric((v * s[..., None, :]) @ v.mT)
    if _constant(w):
        return log
    solve = _solver(s, v)
    log = log + solve(w - fixed)  # zero, with the derivatives of W
    for _ in range(ORDERS - 1):
        gap = w - torch.linalg.matrix_exp(log)
        log = log + solve(gap - gap.detach())
    return log


def log_rate_spd(log: Tensor, h: Tensor) -> Tensor:
    """Return D log(W)[H] for log W; its derivatives are exact up to the second.

    Args:
        log: Logarithms of positive definite matrices W, `(*batch, n, n)`.
        h: How fast the W change.
    """
    s, v = torch.linalg.eigh(log.detach())
    solve = _solver(s, v)
    rate = solve(h)
    if _constant(log):
        return rate
    for _ in range(ORDERS - 1):
        gap = h - exp_along(log, rate)[1]
        rate = rate + solve(gap - gap.detach())
    return rate


def exp_along(log: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp S and D exp(S)[R], which is a block of exp [[S, R], [0, S]]."""
    log, rate = torch.broadcast_tensors(log, rate)
    n = log.shape[-1]
    rows = torch.cat([log, rate], -1), torch.cat([torch.zeros_like(log), log], -1)
    both = torch.linalg.matrix_exp(torch.cat(rows, -2))
    return symmetric(both[..., :n, :n]), symmetric(both[..., :n, n:])


def clip(x: Tensor, floor: float) -> Tensor:
    """Return symmetric matrices with their eigenvalues lifted to a floor, else unchanged.

    The first derivative is exact for a floor that stands still, at equal eigenvalues too.

    Args:
        x: Symmetric matrices, `(*batch, n, n)`.
        floor: Of their eigenvalues, as a share of the largest one, at least `tiny` of the dtype.

    Example:
        >>> clip(torch.diag(torch.tensor([4.0, -1.0])), 0.25)
        tensor([[4., 0.],
                [0., 1.]])
    """
    values, v = torch.linalg.eigh(x.detach())
    least = (floor * values[..., -1:]).clamp(min=torch.finfo(x.dtype).tiny)
    lifted = torch.maximum(values, least)
    low = values < least
    a, b = values[..., :, None], values[..., None, :]
    same = low[..., :, None] == low[..., None, :]
    rise = lifted[..., :, None] - lifted[..., None, :]
    slopes = torch.where(
        same, (~low[..., None].mT).to(x.dtype), rise / torch.where(same, 1.0, a - b)
    )
    moved = v.mT @ (x - x.detach()) @ v  # zero, with the derivatives of x
    change = (slopes - 1) * moved + torch.diag_embed(lifted - values)
    return x + v @ change @ v.mT


def _solver(s: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the inverse of D exp(S), for the eigenvalues s and eigenvectors v of S."""
    a, b = s[..., :, None], s[..., None, :]
    slopes = torch.exp(0.5 * (a + b)) * sinhc_root((0.5 * (a - b)).square())
    return lambda h: symmetric(v @ ((v.mT @ h @ v) / slopes) @ v.mT)


def _constant(x: Tensor) -> bool:
    """Say whether nobody is going to differentiate by x."""
    known = plain() and not (torch.is_grad_enabled() and x.requires_grad)
    return known and unpack_dual(x).tangent is None
