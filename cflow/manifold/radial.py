"""Functions of a length that are smooth in its square, for exponentials and logarithms.

    cosh(sqrt q),   sinh(sqrt q) / sqrt q,   tanh(sqrt q) / sqrt q,   asinh(sqrt q) / sqrt q

A length has no derivative at zero, and its second derivative there is NaN; its square is smooth,
and so are these, which use their power series near zero. A negative q gives the circular function.
Source: the power series are those of Abramowitz and Stegun (1964), chapter 4.
"""

import math

import torch
from torch import Tensor

__all__ = ["asinhc_root", "bend_root", "cosh_root", "log_sinhc_root", "sinhc_root", "tanhc_root"]

TERMS = 10  # of each series, where |q| <= 1: the first one left out is below 1e-17
HALVINGS = 3  # of the argument of asinh where |q| <= 1/2, which leave |q| <= 1/104
COSH = tuple(1 / math.factorial(2 * k) for k in range(TERMS))
SINHC = tuple(1 / math.factorial(2 * k + 1) for k in range(TERMS))
BEND = tuple(a - b for a, b in zip(COSH[1:], SINHC[1:], strict=True))
ASINHC = tuple((-0.25) ** k * math.comb(2 * k, k) / (2 * k + 1) for k in range(8))


def cosh_root(q: Tensor) -> Tensor:
    """Return cosh(sqrt q); for negative q, cos(sqrt -q).

    Example:
        >>> cosh_root(torch.tensor([0.0, -torch.pi**2]))
        tensor([ 1., -1.])
    """
    near, small, root = _split(q)
    far = torch.where(q > 0, torch.where(q > 0, root, 0.0).cosh(), root.cos())
    return torch.where(near, _series(COSH, small), far)


def sinhc_root(q: Tensor) -> Tensor:
    """Return sinh(sqrt q) / sqrt q; for negative q, sin(sqrt -q) / sqrt -q."""
    near, small, root = _split(q)
    far = torch.where(q > 0, torch.where(q > 0, root, 0.0).sinh(), root.sin()) / root
    return torch.where(near, _series(SINHC, small), far)


def tanhc_root(q: Tensor) -> Tensor:
    """Return tanh(sqrt q) / sqrt q for q >= 0."""
    near, small, root = _split(q)
    return torch.where(near, _series(SINHC, small) / _series(COSH, small), root.tanh() / root)


def log_sinhc_root(q: Tensor) -> Tensor:
    """Return log(sinh(sqrt q) / sqrt q) for q >= 0, without overflow."""
    near, small, root = _split(q)
    far = root + torch.log1p(-torch.exp(-2 * root)) - (2 * root).log()
    return torch.where(near, torch.log1p(small * _series(SINHC[1:], small)), far)


def asinhc_root(q: Tensor) -> Tensor:
    """Return asinh(sqrt q) / sqrt q for q >= -1/2; for negative q, asin(sqrt -q) / sqrt -q."""
    near = q <= 0.5
    rest = torch.where(near, q, 0.0)
    factor: Tensor | float = 1.0
    for _ in range(HALVINGS):  # sinh(s/2)^2 = q / (2 (1 + cosh s)) with cosh s = sqrt(1 + q)
        twice = 2 * (1 + (1 + rest).sqrt())
        rest = rest / twice
        factor = 2 * factor * twice.rsqrt()
    root = torch.where(near, 1.0, q).sqrt()
    return torch.where(near, factor * _series(ASINHC, rest), root.asinh() / root)


def bend_root(p: Tensor) -> Tensor:
    """Return d log(s / sinh s) / dq where q = sinh(s/2)^2, for p = s^2; negative p likewise.

    Logarithms are s / sinh s times a chord, and this is what moves the factor.
    """
    near, small, _ = _split(p)
    far = (cosh_root(p) - sinhc_root(p)) / torch.where(near, 1.0, p)
    return -2 * torch.where(near, _series(BEND, small), far) / sinhc_root(p).square()


def _split(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the series holds, q there, and sqrt|q| elsewhere, both safe to differentiate."""
    near = q.abs() <= 1
    return near, torch.where(near, q, 0.0), torch.where(near, 1.0, q).abs().sqrt()


def _series(coefficients: tuple[float, ...], q: Tensor) -> Tensor:
    total = coefficients[-1] * q
    for coefficient in coefficients[-2:0:-1]:
        total = (total + coefficient) * q
    return total + coefficients[0]
