"""Every sampler against the exact law of a small space, for all schedules and bases.

Where a sampler is exact, its draws have the law of the time (chi-square). Where it is not, its
draws have the law of its scheme (chi-square), and that law, which is known without noise, comes
nearer to the exact one at its order. Each chi-square test fails a right sampler with probability
1e-6.
"""

import math

import pytest
import torch
from scipy.stats import binomtest
from small_spaces import (
    FALSE_ALARM,
    SCHEDULES,
    SPANS,
    WALKERS,
    Small,
    bases,
    by_euler,
    by_leaps,
    by_mixture,
    distance,
    draws_have,
    generator,
    grid,
    on,
    p_value,
    ratio,
    scheme_law,
    walked,
)
from torch import Tensor

from cflow.base import MaskTokens, UniformTokens
from cflow.errors import DomainError
from cflow.field import FunctionSchedule, PolynomialSchedule
from cflow.jump import (
    AdaptiveJumps,
    DirectRates,
    EulerJumps,
    FirstHitting,
    JumpSampler,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    TauLeaping,
    law,
)

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s)[:20])


@each_schedule
def test_steps_of_one_token_are_exact_at_all_times_however_few(schedule) -> None:
    for base in bases(1).values():
        small = Small(base, MixturePath(schedule))
        for start, end in SPANS:
            x = walked(small, MixtureSteps(2), start, end)
            assert draws_have(small, x, small.law(end)), (type(base), start, end)


@each_schedule
def test_steps_of_two_tokens_have_the_law_of_their_scheme_and_converge(schedule) -> None:
    for base in bases(2).values():
        small = Small(base, MixturePath(schedule))
        for start, end in SPANS:
            x = walked(small, MixtureSteps(2), start, end)
            scheme = scheme_law(small, small.law(start), grid(start, end, 2), by_mixture)
            assert draws_have(small, x, scheme), (type(base), start, end)
        assert 1.8 < ratio(small, 0.0, 0.6, 6, by_mixture) < 2.2, type(base)
        # where 1 - kappa falls like a root of 1 - t, the order at 1 is log(n) / n
        assert 1.35 < ratio(small, 0.3, 1.0, 6, by_mixture) < 2.3, type(base)


def test_the_tests_would_notice_a_jump_to_the_end_on_the_last_step() -> None:
    """What the best known solver did: draw all tokens from the posterior, though it stops early."""
    small = Small(bases(2)["uniform"])
    early = walked(small, MixtureSteps(3), 0.0, 1.0)
    scheme = scheme_law(small, small.law(0.0), grid(0.0, 0.6, 3), by_mixture)
    assert not draws_have(small, early, scheme)
    x = walked(small, MixtureSteps(1), 0.0, 0.6)  # two steps less
    assert not draws_have(small, x, small.law(0.6))


def test_nothing_but_its_share_jumps_in_a_partial_run() -> None:
    """With kappa = t^2, 4 % of tokens have jumped at t = 0.2; binomial, false alarm 1e-6."""
    base = MaskTokens(1000, 5)
    uniform = lambda t, x, context: torch.zeros(*x.shape, 5)
    rates = NetworkPosterior(uniform, base, MixturePath(PolynomialSchedule(2.0)))
    for sampler in (MixtureSteps(7), EulerJumps(7), FirstHitting(), AdaptiveJumps(0.01)):
        x0 = base.sample((100,))
        x = sampler.sample(rates, x0, base=base, end=0.2, generator=generator())
        same = int((x == x0).sum())
        assert binomtest(same, x.numel(), 0.96).pvalue > FALSE_ALARM, sampler


RATES_ALONE = [
    ("masks", "mixture"),
    ("uniform", "mixture"),
    ("some masks", "mixture"),
    ("empirical", "mixture"),
    ("uniform", "metric"),
    ("uniform", "noising"),
    ("categorical", "noising"),
    ("some masks", "noising"),
]


@pytest.mark.parametrize(("name", "kind"), RATES_ALONE)
@pytest.mark.parametrize(("sampler", "rows"), [(EulerJumps, by_euler), (TauLeaping, by_leaps)])
def test_rates_alone_have_the_law_of_their_scheme_and_converge(name, kind, sampler, rows) -> None:
    """Order 1 away from ends at which the clock, or the rates, are infinite; there log(n) / n."""
    small = on(name, kind)
    for start, end in SPANS:
        x = walked(small, sampler(4), start, end)
        scheme = scheme_law(small, small.law(start), grid(start, end, 4), rows)
        assert draws_have(small, x, scheme), (start, end)
    assert 1.85 < ratio(small, 0.3, 0.6, 12, rows) < 2.15
    for start, end in ((0.0, 0.6), (0.3, 1.0)):
        coarse, fine = (
            distance(scheme_law(small, small.law(start), grid(start, end, n), rows), small.law(end))
            for n in (8, 32)
        )
        assert fine < 0.52 * coarse, (start, end)  # order 1: 0.25, log(n) / n: 0.42
        assert fine < 0.02, (start, end)


def test_steps_of_a_noising_are_those_of_a_mixture() -> None:
    small = on("categorical", "noising")
    for start, end in SPANS:
        x = walked(small, MixtureSteps(3), start, end)
        scheme = scheme_law(small, small.law(start), grid(start, end, 3), by_mixture)
        assert draws_have(small, x, scheme), (start, end)
        assert 1.8 < ratio(small, start, end, 12, by_mixture) < 2.2


@pytest.mark.parametrize("kind", ["mixture", "metric", "noising"])
def test_the_last_step_of_one_token_is_exact_by_a_posterior(kind) -> None:
    small = on("uniform", kind, tokens=1)
    for sampler in (EulerJumps(1), TauLeaping(1), AdaptiveJumps(max_steps=1)):
        assert draws_have(small, walked(small, sampler, 0.3, 1.0), small.law(1.0))


@pytest.mark.parametrize("kind", ["mixture", "metric", "noising"])
def test_rates_without_a_posterior_end_in_data_too(kind) -> None:
    """The last step by rates alone: as by the posterior, the nearer the later it begins."""
    small = on("uniform", kind, tokens=1)
    direct = DirectRates(lambda t, x, context: small.rates(t, x).log(), 3, small.path)
    early, late = {"mixture": (0.5, 0.9), "metric": (0.3, 0.5), "noising": (0.5, 0.9)}[kind]
    errors = []
    for start in (early, late):
        table = small.path.posterior(small.x, small.ask(start))[:, 0]
        expected = small.law(start) @ table
        x0 = small.draw(start, WALKERS, 3)
        for sampler in (EulerJumps(1), TauLeaping(1), AdaptiveJumps(max_steps=1)):
            x = sampler.sample(direct, x0, base=small.base, start=start, generator=generator())
            assert draws_have(small, x, expected)
        errors.append(distance(expected, small.law(1.0)))
    assert max(errors) < 1e-12 if kind == "mixture" else errors[1] < 0.4 * errors[0] < 0.02


def walk_on_levels(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Log rates of a walk on 5 levels that hurries up with time, and jumps two at most."""
    away = (torch.arange(5) - x[..., None]).abs()
    pace = (1 + t)[:, None, None] * (1 + 0.5 * x[..., None])
    return torch.where(away == 1, pace, torch.where(away == 2, 0.3 * pace, 0.0)).log()


def test_a_process_without_a_path_converges_to_its_law() -> None:
    """TV of 20,000 draws, whose noise is about 0.008; false alarms are far below 1e-6."""
    base, rates = UniformTokens(1, 5), DirectRates(walk_on_levels, 5)
    start = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    exact = law(rates, base, start=start, t1=0.7)
    x0 = torch.full((WALKERS, 1), 2)

    def error(sampler: JumpSampler) -> float:
        x = sampler.sample(rates, x0, base=base, end=0.7, generator=generator())
        return distance(torch.bincount(x[:, 0], minlength=5) / len(x), exact)

    assert min(error(EulerJumps(1)), error(TauLeaping(3)), error(AdaptiveJumps(0.7))) > 0.06
    assert error(TauLeaping(1, ordinal=True)) > 0.06
    assert max(error(EulerJumps(30)), error(TauLeaping(60)), error(AdaptiveJumps(0.05))) < 0.025
    assert error(TauLeaping(20, ordinal=True)) < 0.025


def test_one_leap_on_levels_adds_its_poisson_counts() -> None:
    rates, base = DirectRates(walk_on_levels, 5), UniformTokens(1, 5)
    x0 = torch.full((100_000, 1), 1)
    x = TauLeaping(1, ordinal=True).sample(rates, x0, base=base, end=0.3, generator=generator())
    mean = 0.3 * walk_on_levels(torch.zeros(1), x0[:1], None)[0, 0].exp()
    chance = {1: 1.0}
    for y in (0, 2, 3):  # compound Poisson: one kind of jump after the other
        terms = {k: math.exp(-mean[y]) * mean[y].item() ** k / math.factorial(k) for k in range(25)}
        added: dict[int, float] = {}
        for place, p in chance.items():
            for k, weight in terms.items():
                there = place + k * (y - 1)
                added[there] = added.get(there, 0.0) + p * weight
        chance = added
    expected = torch.zeros(5)
    for place, p in chance.items():
        expected[min(max(place, 0), 4)] += p
    assert p_value(x, expected, 5) > FALSE_ALARM


@each_schedule
def test_first_hitting_is_exact(schedule) -> None:
    small = Small(MaskTokens(2, 3), MixturePath(schedule))
    walkers = 5000 if isinstance(schedule, FunctionSchedule) else WALKERS  # its time is searched
    for start, end in SPANS:
        x = walked(small, FirstHitting(), start, end, walkers=walkers)
        assert draws_have(small, x, small.law(end)), (start, end)


def test_first_hitting_asks_only_for_rows_that_move_and_at_their_times() -> None:
    base, asked = MaskTokens(3, 4), []

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        asked.append((t, x, context))
        return torch.zeros(*x.shape, 4)

    x0 = torch.tensor([[4, 4, 4], [0, 4, 1], [2, 2, 2], [4, 4, 1]])
    fixed = torch.tensor([[False] * 3, [False] * 3, [False] * 3, [True, False, False]])
    x = FirstHitting().sample(
        NetworkPosterior(network, base),
        x0,
        torch.arange(4),
        base=base,
        start=0.5,
        fixed=fixed,
        generator=generator(),
    )
    assert [c.tolist() for _, _, c in asked] == [[0, 1, 3], [0], [0]]
    times = torch.stack([t[0] for t, _, _ in asked])
    assert times.min() > 0.5
    assert times.max() < 1
    assert bool((times.diff() > 0).all())
    masks = [int((x[0] == 4).sum()) for _, x, _ in asked]
    assert masks == [3, 2, 1]
    known = x0 < 4
    assert torch.equal(x[known], x0[known])
    assert (x == 4).nonzero().tolist() == [[3, 0]]


@pytest.mark.parametrize("order", ["probability", "margin"])
def test_any_order_of_first_hitting_gives_the_law_of_data(order) -> None:
    small = Small(MaskTokens(3, 3))
    x = walked(small, FirstHitting(order=order), 0.0, 1.0)
    assert draws_have(small, x, small.law(1.0))
    x = walked(small, FirstHitting(order=order), 0.4, 1.0)
    assert draws_have(small, x, small.law(1.0))
    with pytest.raises(DomainError, match=f"order by {order} .* got end=0.5; take order='random'"):
        walked(small, FirstHitting(order=order), 0.0, 0.5)


def test_the_token_that_is_least_in_doubt_jumps_first() -> None:
    """Likeliest values of 0.6 (margin 0.2) and 0.5 (margin 0.25), and a known one of 1."""
    base, logits = MaskTokens(3, 3), torch.tensor([[0.6, 0.4, 0], [0.5, 0.25, 0.25], [0, 0, 1]])
    for order, first in (("probability", 0), ("margin", 1)):
        asked: list[Tensor] = []

        def network(t: Tensor, x: Tensor, context: Tensor | None, asked=asked) -> Tensor:
            asked.append(x)
            return logits.log().expand(*x.shape, 3)

        x0 = torch.tensor([[3, 3, 1]]).expand(4000, 3)
        rates = NetworkPosterior(network, base)
        fixed = torch.tensor([False, False, True])
        sampler = FirstHitting(order=order)
        x = sampler.sample(rates, x0, base=base, fixed=fixed, generator=generator())
        assert len(asked) == 2
        assert bool((asked[1][:, first] < 3).all())
        assert bool((asked[1][:, 1 - first] == 3).all())
        assert p_value(x[:, :1], torch.tensor([0.6, 0.4, 0]), 3) > FALSE_ALARM


def test_adaptive_steps_have_the_probability_that_was_asked_for() -> None:
    """One masked token has the rate 1, so all steps in the clock are -log(1 - p) long."""
    times: list[float] = []
    base = MaskTokens(1, 2)

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        times.append(t[0].item())
        return torch.zeros(*x.shape, 2)

    rates = NetworkPosterior(network, base, MixturePath(PolynomialSchedule(2.0)))
    clock = rates.clock
    sampler = AdaptiveJumps(0.2, over="fastest")
    sampler.sample(rates, base.sample((4000,)), base=base, end=0.9, generator=generator())
    s = clock(torch.tensor(times))
    assert torch.allclose(s.diff(), torch.tensor(-math.log(0.8)))
    left = clock.between(times[-1], 0.9)
    assert 0 < left < -math.log(0.8) + 1e-9
    times.clear()
    sampler = AdaptiveJumps(0.2, over="fastest", max_steps=5)
    x = sampler.sample(rates, base.sample((4000,)), base=base, generator=generator())
    assert bool((x < 2).all())  # the last step goes to the end
    assert len(times) == 6  # and asks for the posterior there
    times.clear()
    AdaptiveJumps(0.2).sample(rates, base.sample((4000,)), base=base, generator=generator())
    s = clock(torch.tensor(times))
    assert bool((s.diff()[1:-1] > s.diff()[:-2]).all())  # longer steps as tokens settle
    assert len(times) < 40


def test_adaptive_steps_of_one_masked_token_are_exact() -> None:
    small = Small(MaskTokens(1, 3))
    for over in ("mean", "fastest"):
        for start, end in SPANS:
            x = walked(small, AdaptiveJumps(0.3, over=over), start, end)
            assert draws_have(small, x, small.law(end)), (over, start, end)
