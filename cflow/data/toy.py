"""Two-dimensional laws to try flows on; two of them with their exact density.

    eight Gaussians: p(x) = mean_k N(x; 2 sqrt(2) e_k, I / 8),  e_k on the unit circle
    checkerboard:    p(x) = 1 / 32 on every other square of side 2 in [-4, 4]^2, entropy log 32

A negative log-likelihood less the entropy is a Kullback-Leibler divergence in nats, which says how
good a fit is without a picture.
Source: Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, section 5.1 (the same scales).
"""

import math
from collections.abc import Callable

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
    "moons",
    "sample",
    "swiss_roll",
]

RADIUS, DEVIATION = 4 / math.sqrt(2), 0.5 / math.sqrt(2)


def eight_gaussians(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from eight Gaussians on a circle of radius 2.83, standard deviation 0.354, `(n, 2)`."""
    k = torch.randint(8, (n,), generator=generator)
    return _centres()[k] + DEVIATION * torch.randn(n, 2, generator=generator)


def eight_gaussians_log_prob(x: Points) -> Batch:
    """Return the log density of `eight_gaussians` in nats, `(*batch,)` for x `(*batch, 2)`.

    Example:
        >>> x = eight_gaussians(20000, generator=torch.Generator().manual_seed(0))
        >>> round(-eight_gaussians_log_prob(x).mean().item(), 1)  # the entropy
        2.8
    """
    expect_trailing("eight_gaussians_log_prob", "x", x, (2,))
    away = (x[..., None, :] - _centres().to(x)).square().sum(-1) / DEVIATION**2
    norm = math.log(8 * 2 * math.pi * DEVIATION**2)
    return torch.logsumexp(-0.5 * away, dim=-1) - norm


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


def moons(n: int, *, generator: Generator | None = None) -> Points:
    """Draw from two interleaved half circles with noise of standard deviation 0.1, `(n, 2)`."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.randint(2, (n,), generator=generator).bool()
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = 2 * torch.stack([x - 0.5, y - 0.25], dim=1)
    return points + 0.1 * torch.randn(n, 2, generator=generator)


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
    for function in (eight_gaussians, checkerboard, moons, circles, swiss_roll)
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


def _centres() -> Tensor:
    angles = torch.arange(8) * (math.pi / 4)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)
