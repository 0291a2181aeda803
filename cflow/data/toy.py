"""Two-dimensional laws to try flows on; some of them with their exact density.

    eight Gaussians: p(x) = mean_k N(x; 2 sqrt(2) e_k, I / 8),  e_k on the unit circle
    checkerboard:    p(x) = 1 / 32 on every other square of side 2 in [-4, 4]^2, entropy log 32
    half circles:    p(x) = mean over both of 1 / pi int_0^pi N(x; c(angle), 0.01 I) d angle

A negative log-likelihood less the entropy is a Kullback-Leibler divergence in nats, which says how
good a fit is without a picture. `moons_unscaled` are scikit-learn's half circles as they are;
`moons` are the same, twice as large. Those that end in `_wide`, `scurve` and `gaussian` have the
scales of torchcfm's two-dimensional transport problems.

Source: Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, section 5.1 (scales of the first); Tong
et al. (2024), Improving and generalizing flow-based generative models with minibatch optimal
transport, arXiv 2302.00482, section 5.1.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, expect_trailing
from cflow.typing import Batch, Points

__all__ = [
    "TOYS",
    "checkerboard",
    "checkerboard_log_prob",
    "circles",
    "eight_gaussians",
    "eight_gaussians_log_prob",
    "eight_gaussians_wide",
    "eight_gaussians_wide_log_prob",
    "gaussian",
    "moons",
    "moons_unscaled",
    "moons_unscaled_log_prob",
    "moons_wide",
    "sample",
    "scurve",
    "swiss_roll",
]

RADIUS, DEVIATION = 4 / math.sqrt(2), 0.5 / math.sqrt(2)
RADIUS_WIDE, DEVIATION_WIDE = 5.0, 0.1**0.25
MOON_DEVIATION = 0.1
NODES = 96  # of the integral over a half circle: its relative error is below 1e-10


def eight_gaussians(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from eight Gaussians on a circle of radius 2.83, standard deviation 0.354, `(n, 2)`."""
    return _draw_eight(n, RADIUS, DEVIATION, generator)


def eight_gaussians_log_prob(x: Points) -> Batch:
    """Return the log density of `eight_gaussians` in nats, `(*batch,)` for x `(*batch, 2)`.

    Example:
        >>> x = eight_gaussians(20000, generator=torch.Generator().manual_seed(0))
        >>> round(-eight_gaussians_log_prob(x).mean().item(), 1)  # the entropy
        2.8
    """
    return _log_prob_of_eight("eight_gaussians_log_prob", x, RADIUS, DEVIATION)


def eight_gaussians_wide(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from eight Gaussians on a circle of radius 5, standard deviation 0.562, `(n, 2)`.

    torchcfm (1.0.7) names their variance 0.1 and takes its square root for the covariance, so that
    a coordinate has variance 0.316: that law is this one.
    """
    return _draw_eight(n, RADIUS_WIDE, DEVIATION_WIDE, generator)


def eight_gaussians_wide_log_prob(x: Points) -> Batch:
    """Return the log density of `eight_gaussians_wide` in nats, `(*batch,)` for x `(*batch, 2)`.

    Example:
        >>> x = eight_gaussians_wide(20000, generator=torch.Generator().manual_seed(0))
        >>> round(-eight_gaussians_wide_log_prob(x).mean().item(), 1)  # the entropy
        3.8
    """
    return _log_prob_of_eight("eight_gaussians_wide_log_prob", x, RADIUS_WIDE, DEVIATION_WIDE)


def checkerboard(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from the eight dark squares of a 4 x 4 board of side 8, `(n, 2)`."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    cell = torch.stack([column, row], dim=1).to(torch.get_default_dtype())
    return 2 * (cell + torch.rand(n, 2, generator=generator)) - 4


def checkerboard_log_prob(x: Points) -> Batch:
    """Return the log density of `checkerboard` in nats: -log 32 on the dark squares, else -inf.

    Example:
        >>> checkerboard_log_prob(torch.tensor([[-3.0, -3.0], [-3.0, -1.0]]))
        tensor([-3.4657,    -inf])
    """
    expect_trailing("checkerboard_log_prob", "x", x, (2,))
    cell = ((x + 4) / 2).floor()
    dark = (cell.sum(-1) % 2 == 0) & (x.abs() <= 4).all(-1)
    return torch.where(dark, -math.log(32.0), -math.inf)


def gaussian(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from the standard normal law of the plane, `(n, 2)`."""
    return torch.randn(n, 2, generator=generator)


def moons(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from two interleaved half circles with noise of standard deviation 0.1, `(n, 2)`.

    Their radius is 2, and the whole is centred; see `moons_unscaled` for scikit-learn's own scale.
    """
    points = 2 * (_half_circles(n, generator) - torch.tensor([0.5, 0.25]))
    return points + 0.1 * torch.randn(n, 2, generator=generator)


def moons_unscaled(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from half circles of radius 1 with noise of standard deviation 0.1, `(n, 2)`.

    The law of scikit-learn's `make_moons(noise=0.1)`: centres (0, 0) and (1, 0.5). Entropy 1.0076
    nats (a grid integral of the density below).
    """
    return _half_circles(n, generator) + MOON_DEVIATION * torch.randn(n, 2, generator=generator)


def moons_unscaled_log_prob(x: Points) -> Batch:
    """Return the log density of `moons_unscaled` in nats, by Gauss-Legendre over the half circles.

    Args:
        x: Points `(*batch, 2)`.

    Returns:
        Log densities `(*batch,)`, with a relative error below that of the dtype.

    Raises:
        ShapeError: x does not end in two coordinates.

    Example:
        >>> x = moons_unscaled(20000, generator=torch.Generator().manual_seed(0))
        >>> round(-moons_unscaled_log_prob(x).mean().item(), 1)  # the entropy
        1.0
    """
    expect_trailing("moons_unscaled_log_prob", "x", x, (2,))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    angle = torch.from_numpy(0.5 * math.pi * (nodes + 1))
    share = torch.from_numpy(weights).log() - math.log(4)  # weights sum to 2, moons are two
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    arcs = torch.cat([upper, torch.tensor([1.0, 0.5], dtype=torch.float64) - upper]).to(x)
    shares = torch.cat([share, share]).to(x)
    rows = [
        torch.logsumexp(shares - 0.5 * _squares(part, arcs) / MOON_DEVIATION**2, dim=-1)
        for part in x.reshape(-1, 2).split(8192)  # 192 nodes each: bounded memory
    ]
    return torch.cat(rows).reshape(x.shape[:-1]) - math.log(2 * math.pi * MOON_DEVIATION**2)


def moons_wide(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from half circles of radius 3 about (-1, -1) and (2, 0.5), `(n, 2)`.

    As in torchcfm (1.0.7): 3 y - 1, where y are half circles of radius 1 whose noise moves both
    coordinates alike, by one number uniform in [0, 0.2], and so lies on a diagonal.
    """
    shift = 0.2 * torch.rand(n, 1, generator=generator)
    return 3 * (_half_circles(n, generator) + shift) - 1


def scurve(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from the plane section of an S, 3 wide and 6 high, `(n, 2)`.

        1.5 (sin a, sign(a) (cos a - 1)) + 0.075 noise,    a ~ U(-3 pi / 2, 3 pi / 2)

    The first and third coordinate of scikit-learn's `make_s_curve(noise=0.05)` times 1.5, as
    torchcfm's runner has it.
    """
    angle = 3 * math.pi * (torch.rand(n, generator=generator) - 0.5)
    points = torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], dim=1)
    return 1.5 * (points + 0.05 * torch.randn(n, 2, generator=generator))


def circles(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from two rings of radius 1.5 and 3 with noise of standard deviation 0.1, `(n, 2)`."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    radius = 1.5 * (1 + torch.randint(2, (n,), generator=generator))
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.1 * torch.randn(n, 2, generator=generator)


def swiss_roll(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from a spiral with noise of standard deviation 0.1, `(n, 2)`."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    points = angle[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) / 4
    return points + 0.1 * torch.randn(n, 2, generator=generator)


TOYS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        eight_gaussians,
        checkerboard,
        moons,
        circles,
        swiss_roll,
        eight_gaussians_wide,
        gaussian,
        moons_unscaled,
        moons_wide,
        scurve,
    )
}


def sample(name: str, n: int, *, generator: Generator | None = None) -> Points:
    """Draw n points of a law by its name.

    Raises:
        DomainError: There is no such law.

    Example:
        >>> sample("moons", 5).shape
        torch.Size([5, 2])
    """
    if name not in TOYS:
        raise DomainError(f"toy.sample: there is no law {name!r}; known are {list(TOYS)}")
    return TOYS[name](n, generator=generator)


def _centres(radius: float) -> Tensor:
    angles = torch.arange(8) * (math.pi / 4)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


def _draw_eight(n: int, radius: float, deviation: float, generator: Generator | None) -> Tensor:
    k = torch.randint(8, (n,), generator=generator)
    return _centres(radius)[k] + deviation * torch.randn(n, 2, generator=generator)


def _log_prob_of_eight(where: str, x: Tensor, radius: float, deviation: float) -> Tensor:
    expect_trailing(where, "x", x, (2,))
    away = _squares(x, _centres(radius).to(x)) / deviation**2
    return torch.logsumexp(-0.5 * away, dim=-1) - math.log(8 * 2 * math.pi * deviation**2)


def _squares(x: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances `(*batch, centres)`."""
    away = [(x[..., None, k] - centres[:, k]).square() for k in range(2)]
    return away[0] + away[1]


def _half_circles(n: int, generator: Generator | None) -> Tensor:
    """Draw from the upper half circle about (0, 0) and the lower one about (1, 0.5), radius 1."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.randint(2, (n,), generator=generator).bool()
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], dim=1)
