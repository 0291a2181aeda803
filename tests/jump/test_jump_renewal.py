"""Tokens drawn anew, after steps or within them, against the exact law of a small space.

Each chi-square or binomial test fails a right sampler with probability 1e-6.
"""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import binomtest
from small_spaces import (
    FALSE_ALARM,
    Rows,
    Small,
    bases,
    by_euler,
    by_mixture,
    distance,
    draws_have,
    generator,
    grid,
    kappa,
    on,
    ratio,
    scheme_law,
    walked,
)
from torch import Tensor

from cflow.base import MaskTokens, UniformTokens
from cflow.jump import (
    Corrected,
    EulerJumps,
    FirstHitting,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    Restarted,
)


def corrections(strength: float) -> Rows:
    """Renew tokens at one time: a correction of Corrected."""

    def rows(small: Small, t: float, t_next: float) -> Tensor:
        tokens, states = small.stay().shape[1:]
        v, y = torch.arange(states)[:, None], torch.arange(states)
        each = [small.chance(t, torch.full((), x0), v, y) for x0 in range(states)]
        marginals = small.base.marginals().expand(tokens, states)
        renewed = torch.einsum(
            "xiv,ia,avy->xiy", small.probabilities(t), marginals, torch.stack(each)
        )
        r = -math.expm1(-strength)
        return r * renewed + (1 - r) * small.stay()

    return rows


@pytest.mark.parametrize("name", ["masks", "uniform", "categorical", "some masks"])
def test_renewing_one_token_keeps_the_law(name) -> None:
    """Within steps and after them, exactly with one token, however strong."""
    small = Small(bases(1)[name])
    for sampler in (
        MixtureSteps(3, refresh=4.0),
        MixtureSteps(3, refresh=lambda t: 9 * t),
        Corrected(MixtureSteps(2), strength=2.0),
        Corrected(MixtureSteps(2), iterations=2, strength=lambda t: 3 * t),
    ):
        for start, end in ((0.0, 0.6), (0.3, 1.0)):
            x = walked(small, sampler, start, end)
            assert draws_have(small, x, small.law(end)), (sampler, start, end)


@pytest.mark.parametrize(
    ("name", "kind"), [("masks", "mixture"), ("categorical", "noising"), ("uniform", "metric")]
)
def test_corrections_have_the_law_of_their_scheme_and_repair_it(name, kind) -> None:
    small = on(name, kind)
    inner, rows = (EulerJumps, by_euler) if kind == "metric" else (MixtureSteps, by_mixture)
    p = small.law(0.3)
    for t, t_next in pairwise(grid(0.3, 0.7, 2)):
        p = scheme_law(small, p, [t, t_next], rows)
        p = scheme_law(small, p, [t_next, t_next], corrections(0.5))
        p = scheme_law(small, p, [t_next, t_next], corrections(0.5))
    sampler = Corrected(inner(2), iterations=2, strength=0.5)
    assert draws_have(small, walked(small, sampler, 0.3, 0.7), p)
    end = 0.3 if kind == "metric" else 0.7  # tokens settle, and with them corrections
    raw = p = scheme_law(small, small.law(0.1), grid(0.1, end, 2), rows)
    for _ in range(60):
        p = scheme_law(small, p, [end, end], corrections(0.05))
    assert distance(p, small.law(end)) < 0.5 * distance(raw, small.law(end))


def test_a_correction_renews_its_share_of_the_tokens_and_none_at_the_end() -> None:
    """Of 1000 values a token renewed is another one; binomial, false alarm 1e-6."""
    base, asked = UniformTokens(500, 1000), []

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        asked.append(t[0].item())
        return torch.zeros(*x.shape, 1000)

    rates, x0 = NetworkPosterior(network, base), base.sample((20,))
    sampler = Corrected(EulerJumps(1), iterations=2, strength=0.3)
    run = lambda end: sampler.sample(
        rates, x0, base=base, start=0.3, end=end, generator=generator()
    )
    changed = int((run(0.3 + 1e-12) != x0).sum())
    expected = 0.999 * -math.expm1(-0.6)
    assert binomtest(changed, x0.numel(), expected).pvalue > FALSE_ALARM
    assert asked == [0.3, 0.3 + 1e-12, 0.3 + 1e-12]
    asked.clear()
    run(1.0)
    assert asked == [0.3]


def noised(small: Small, t: float, t_next: float) -> Tensor:
    """Noise tokens that are data back to t_next, from whatever time."""
    tokens, states = small.stay().shape[1:]
    v, y = torch.arange(states)[:, None], torch.arange(states)
    each = [small.chance(t_next, torch.full((), x0), v, y) for x0 in range(states)]
    marginals = small.base.marginals().expand(tokens, states)
    return torch.einsum("xiv,ia,avy->xiy", small.stay(), marginals, torch.stack(each))


@pytest.mark.parametrize("kind", ["mixture", "metric", "noising"])
def test_restarts_by_an_exact_sampler_keep_the_law_of_data(kind) -> None:
    names = bases(1) if kind == "mixture" else ["uniform"]
    exact = EulerJumps(1) if kind == "metric" else MixtureSteps(1)
    for name in names:
        small = on(name, kind, tokens=1)
        x = walked(small, Restarted(exact, rounds=2, back=0.4), 0.3, 1.0)
        assert draws_have(small, x, small.law(1.0)), name


def test_restarts_of_masks_that_depend_on_each_other_keep_the_law_of_data() -> None:
    for order in ("random", "margin"):
        small = Small(MaskTokens(3, 3))
        x = walked(small, Restarted(FirstHitting(order=order), back=0.3), 0.0, 1.0)
        assert draws_have(small, x, small.law(1.0))


@pytest.mark.parametrize(
    ("name", "kind"), [("masks", "mixture"), ("categorical", "noising"), ("uniform", "metric")]
)
def test_restarts_have_the_law_of_their_scheme_and_repair_it(name, kind) -> None:
    small = on(name, kind)
    inner, rows = (EulerJumps, by_euler) if kind == "metric" else (MixtureSteps, by_mixture)
    back = 0.2 if kind == "metric" else 0.6  # tokens settle
    raw = p = scheme_law(small, small.law(0.0), [0.0, 1.0], rows)
    for _ in range(3):
        p = scheme_law(small, p, [1.0, back], noised)
        p = scheme_law(small, p, grid(back, 1.0, 8), rows)
    x = walked(small, Restarted(inner(1), back=back, again=inner(8)), 0.0, 1.0)
    assert draws_have(small, x, p)
    assert distance(p, small.law(1.0)) < 0.5 * distance(raw, small.law(1.0))


def test_restarts_go_back_to_their_start_at_most_and_renew_their_share() -> None:
    """Of 1000 values a token drawn anew is another one; binomial, false alarm 1e-6."""
    base, asked = UniformTokens(500, 1000), []

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        asked.append(t[0].item())
        return 50.0 * torch.nn.functional.one_hot(x, 1000)

    rates, x0 = NetworkPosterior(network, base), base.sample((20,))
    for start in (0.0, 0.9):
        sampler = Restarted(MixtureSteps(1), rounds=1, back=0.7)
        x = sampler.sample(rates, x0, base=base, start=start, generator=generator())
        assert asked == [start, max(start, 0.7)]
        asked.clear()
        changed = int((x != x0).sum())
        expected = 0.999 * (1 - max(start, 0.7))
        assert binomtest(changed, x0.numel(), expected).pvalue > FALSE_ALARM


def refreshed(eta: float) -> Rows:
    def rows(small: Small, t: float, t_next: float) -> Tensor:
        assert isinstance(small.path, MixturePath)
        k = kappa(small.path.schedule, t_next)
        r = -math.expm1(-eta * (t_next - t))
        renewed = k * small.probabilities(t) + (1 - k) * small.base.marginals()
        return r * renewed + (1 - r) * by_mixture(small, t, t_next)

    return rows


@pytest.mark.parametrize("name", ["masks", "uniform", "categorical", "some masks"])
def test_refreshing_two_tokens_has_the_law_of_its_scheme_and_converges(name) -> None:
    small = Small(bases(2)[name])
    for start, end in ((0.0, 0.6), (0.3, 1.0)):
        x = walked(small, MixtureSteps(3, refresh=3.0), start, end)
        scheme = scheme_law(small, small.law(start), grid(start, end, 3), refreshed(3.0))
        assert draws_have(small, x, scheme), (start, end)
        assert 1.7 < ratio(small, start, end, 24, refreshed(3.0)) < 2.3
