"""The exact law of a jump process on a small space: what every sampler and bound is held against.

    dp(y)/ds = sum_i sum_{x ~ y at i} p(x) u_i(x -> y_i)  -  p(y) sum_i sum_z u_i(y -> z)

over all states ** tokens states at once, by an ODE solver in the clock s of the rates; x ~ y at i
where they differ in token i alone. One token jumps at a time, so each state has no more than
(states - 1) * tokens neighbours, and no matrix between all pairs of states is needed.
Source: Campbell et al. (2022), A continuous time framework for discrete denoising models, arXiv
2205.14987, section 3 (the forward equation of Kolmogorov).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cflow.base import TokenBase
from cflow.errors import DomainError, ShapeError
from cflow.jump.noising import NoisingPath
from cflow.jump.rates import Rates
from cflow.jump.tokens import expect_rates
from cflow.ode import Dopri5, Solver

__all__ = ["enumerate_states", "law", "state_index"]

SOLVER = Dopri5(1e-8, 1e-10, max_steps=10_000)
MOST = 2**24  # rates at a time; 128 MiB in float64
FIRST = 21.0  # of the clock, exp(-21) < 1e-9: no path is looked at for rest before
REST = 1e-7  # total change of p per unit of an endless clock at which p is that of t = 1


def law(
    rates: Rates,
    base: TokenBase,
    *,
    start: Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    context: Tensor | None = None,
    solver: Solver = SOLVER,
) -> Tensor:
    """Return the exact law of a jump process, the probability of every state.

    Where the clock is infinite at t1 = 1 it is followed until the law rests.

    Args:
        rates: The process, of a path or any other; asked for all states at once, at times in
            torch's default dtype.
        base: Its law at t = 0, and the shape of its events.
        start: Probabilities of all states at t0, `(states ** tokens,)`; those of the base by
            default.
        t0: Time at which the process starts.
        t1: Time at which the law is wanted.
        context: One condition, `(*context,)`.
        solver: How the ODE is solved.

    Returns:
        Probabilities in float64, `(states ** tokens,)`, in the order of `enumerate_states`: the
        last token runs fastest. `.reshape((states,) * tokens)` is the table of the joint law.

    Raises:
        DomainError: The space is too large, times do not rise within [0, 1], the start is no law,
            or rates are not finite.
        ShapeError: The start has another shape.
        SolverError: The solver gave up.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior
        >>> base = MaskTokens(1, 2)
        >>> coin = lambda t, x, context: torch.tensor([0.25, 0.75]).log().expand(*x.shape, 2)
        >>> [round(p, 6) for p in law(NetworkPosterior(coin, base), base, t1=0.5).tolist()]
        [0.125, 0.375, 0.5]
    """
    if not 0 <= t0 <= t1 <= 1:
        raise DomainError(f"law: needs 0 <= t0 <= t1 <= 1, got t0={t0} and t1={t1}")
    tokens = math.prod(base.event_shape)
    _expect_small(rates.states, tokens)
    device = base.marginals().device
    x = enumerate_states(rates.states, tokens).to(device)
    events = x.reshape(-1, *base.event_shape)
    with torch.no_grad():
        p = base.log_prob(events).exp() if start is None else _expect_law(start, len(x))
        p = p.to(device, torch.float64)
        if context is not None:
            context = context.expand(len(x), *context.shape)

        def slope(s: Tensor, p: Tensor) -> Tensor:
            t = rates.clock.time(s[0])
            u = rates(t.to(torch.get_default_dtype()).expand(len(x)), events, context)
            expect_rates("law", t.item(), u)
            return _change(p[0], u.double().reshape(len(x), tokens, rates.states))[None]

        p = _carried(slope, p[None], *_span(rates, t0, t1), solver)[0]
    p = p.clamp_min(0)
    return p / p.sum()


def enumerate_states(states: int, tokens: int) -> Tensor:
    """Return all states of some tokens, `(states ** tokens, tokens)`, the last token fastest.

    Example:
        >>> enumerate_states(2, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return torch.arange(states**tokens)[:, None] // _strides(states, tokens) % states


def state_index(x: Tensor, states: int) -> Tensor:
    """Return the place of each state `(*batch, tokens)` in the order of `enumerate_states`.

    Example:
        >>> state_index(torch.tensor([[0, 1], [1, 1]]), 2).tolist()
        [1, 3]
    """
    return (x * _strides(states, x.shape[-1]).to(x.device)).sum(-1)


def _strides(states: int, tokens: int) -> Tensor:
    return torch.tensor([states ** (tokens - 1 - i) for i in range(tokens)])


def _change(p: Tensor, u: Tensor) -> Tensor:
    """Return dp/ds for probabilities `(n,)` and rates `(n, tokens, states)`."""
    n, tokens, states = u.shape
    change = -p * u.sum((1, 2))
    for i in range(tokens):
        flow = (p[:, None] * u[:, i]).reshape(states**i, states, -1, states)  # before, x, after, y
        change = change + flow.sum(1).transpose(1, 2).reshape(n)
    return change


def _span(rates: Rates, t0: float, t1: float) -> tuple[float, float]:
    s0, s1 = rates.clock(torch.tensor([t0, t1], dtype=torch.float64)).tolist()
    if isinstance(rates.path, NoisingPath):
        # tokens of the base are drawn infinitely often at first, which moves the law by nothing
        s0 = min(max(s0, torch.finfo(torch.get_default_dtype()).eps ** 0.5), s1)
    return s0, s1


def _carried(
    slope: Callable[[Tensor, Tensor], Tensor], p: Tensor, s0: float, s1: float, solver: Solver
) -> Tensor:
    """Solve to s1, or to rest where it is infinite."""
    if not math.isinf(s1):
        return solver.solve(slope, p, s0, s1).y
    if math.isinf(s0):
        return p
    s1 = s0 + FIRST
    p = solver.solve(slope, p, s0, s1).y
    while slope(torch.full((1,), s1, dtype=p.dtype), p).abs().sum() > REST:
        s0, s1 = s1, 2 * s1
        p = solver.solve(slope, p, s0, s1).y
    return p


def _expect_small(states: int, tokens: int) -> None:
    numbers = states**tokens * tokens * states
    if numbers > MOST:
        raise DomainError(
            f"law: {states} states of each of {tokens} tokens make {numbers:.3g} rates, and "
            f"at most {MOST:.3g} are solved for; this is for small spaces, take `elbo` here"
        )


def _expect_law(start: Tensor, n: int) -> Tensor:
    if tuple(start.shape) != (n,):
        raise ShapeError(
            f"law: start needs one probability for each of {n} states, got {tuple(start.shape)}"
        )
    good = bool(((start >= 0) & start.isfinite()).all())
    if not good or abs(start.sum().item() - 1) > 1e-4:
        raise DomainError(
            "law: start must hold probabilities that sum to 1, got values from "
            f"{start.min().item():g} to {start.max().item():g} with sum {start.sum().item():g}"
        )
    return start
