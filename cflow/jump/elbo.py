"""The bound on the likelihood of a jump process, and what it integrates.

    log p(x1) >= -E int sum_i k_i ds,    k = sum_{y != x_t} u1 log(u1 / u) - u1 + u

with u1 the rates of the path to x1, u those of the model, per unit of the clock s, and x_t drawn
from the path. It is minus the Kullback-Leibler divergence between two processes from one base; the
first ends in x1 for certain, which is why the second ends there at least so often. For a posterior
along a mixture path

    k = -[x_t != x1] (log p(x1 | x_t) + 1) + 1 - p(x_t | x_t).

The integral over s is taken by chance. Along a mixture, exp(-s) is the share of tokens that have
not jumped. With masks, s is drawn as the jump of one token chosen at random,

    int sum_i k_i ds = E[ L / n  sum_i k_i ],    n = tokens still masked among L, n ~ U{1, .., L},

which has no weight that could grow; else exp(-s) = u^2 with u uniform, so that the weight 2 / u has
a finite variance. Draws for one point are spread evenly.
Source: Campbell et al. (2022), arXiv 2205.14987, proposition 2; Shaul et al. (2024), arXiv
2412.03487; Uria et al. (2014), A deep and tractable density estimator, arXiv
1310.1757, and Ou et al. (2024), arXiv 2406.03736, section 3 (masks in any order).
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cflow.base import TokenBase
from cflow.errors import DomainError
from cflow.jump.path import JumpPath, MixturePath
from cflow.jump.rates import Posterior, Rates
from cflow.typing import Data, Times

__all__ = ["Moment", "clock_kl", "draw_moments", "log_posterior"]


class Moment(NamedTuple):
    """Hold points on their way to data, and what each counts for in the integral over the clock.

    Attributes:
        t: Times `(n,)`.
        x: Tokens `(n, *event)`.
        weight: Factors on the sum over tokens, `(n,)`.
    """

    t: Tensor
    x: Tensor
    weight: Tensor


def draw_moments(
    rates: Rates, base: TokenBase, x1: Data, repeats: int, *, generator: Generator | None = None
) -> Moment:
    """Draw moments for each point, spread evenly over its way.

    Args:
        rates: The model, whose path is followed.
        base: Where paths start.
        x1: Data tokens `(n, *event)`.
        repeats: Moments for each point.
        generator: Source of the randomness.

    Returns:
        Moments of `(repeats * n)` points, the repeats leading.
    """
    path, n, device = expect_path("elbo", rates), len(x1), x1.device
    dtype = torch.get_default_dtype()
    shift = torch.rand((1, n), generator=generator, device=device, dtype=dtype)
    order = torch.arange(repeats, device=device)[:, None]
    if repeats == 1:  # over the batch where there is nothing to spread for one point
        shift = (torch.randperm(n, generator=generator, device=device) + shift[:, :1]) / n
    u = ((order + shift) / repeats).reshape(-1)
    ends = x1.repeat(repeats, *(1,) * (x1.dim() - 1))
    noise = torch.rand(ends.shape, generator=generator, device=device, dtype=dtype)
    if isinstance(rates, Posterior) and rates.absorbing:
        return _at_jumps(path, ends, u, noise, mask=rates.vocabulary)
    u = u.clamp_min(torch.finfo(dtype).tiny)
    t = path.clock.time(-2 * u.log())
    with torch.no_grad():
        starts = base.sample(tuple(ends.shape[:1]), generator=generator)
    return Moment(t, path.sample(starts, ends, t, noise=noise).x, 2 / u)


def clock_kl(rates: Rates, t: Times, x: Data, x1: Data, context: Tensor | None = None) -> Tensor:
    """Return k, what the bound integrates over the clock, for each token.

    Args:
        rates: The model.
        t: Times `(*batch,)`.
        x: Tokens at these times, `(*batch, *event)`.
        x1: Their ends.
        context: Conditions.

    Returns:
        Nats per unit of the clock, `(*batch, *event)`.
    """
    path = expect_path("clock_kl", rates)
    if isinstance(rates, Posterior) and (rates.absorbing or isinstance(path, MixturePath)):
        log_p = log_posterior(rates, t, x, context)
        wanted = -log_p.gather(-1, x1[..., None])[..., 0]
        if rates.absorbing:
            return torch.where(x == rates.vocabulary, wanted, 0.0)
        known = x.clamp_max(rates.vocabulary - 1)
        stay = log_p.gather(-1, known[..., None])[..., 0].exp()
        stay = torch.where(x < rates.vocabulary, stay, 0.0)
        return torch.where(x == x1, 0.0, wanted - 1) + 1 - stay
    u = rates(t, x, context)
    u1 = path.rates(t, x, functional.one_hot(x1, rates.states).to(u))
    ratio = torch.where(u1 > 0, u1, 1.0).log() - torch.where(u1 > 0, u, 1.0).log()
    return (u1 * ratio - u1 + u).sum(-1)


def log_posterior(rates: Posterior, t: Times, x: Data, context: Tensor | None) -> Tensor:
    """Return log p(x1 | x_t) over the vocabulary, normalised, in float32 at least."""
    logits = rates.logits(t, x, context)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def expect_path(where: str, rates: Rates) -> JumpPath:
    """Return the path of rates, or raise where there is none."""
    if rates.path is None:
        raise DomainError(
            f"{where}: these rates follow no path to data, so there is no bound and no loss; build "
            "them with path=MixturePath(), or ask `law` for the exact law of a small process"
        )
    return rates.path


def _at_jumps(path: JumpPath, x1: Tensor, u: Tensor, noise: Tensor, *, mask: int) -> Moment:
    """Draw the moments at which one token of each point, chosen at random, is about to jump."""
    rows = noise.reshape(len(x1), -1)
    length = rows.shape[1]
    count = (u * length).long().clamp_max(length - 1) + 1  # tokens that are masked still
    last = rows.sort(1)[0].gather(1, count[:, None] - 1)  # exp(-s) of that jump
    x = torch.where((rows <= last).reshape(x1.shape), mask, x1)
    return Moment(path.clock.time(-last[:, 0].log()), x, length / count)
