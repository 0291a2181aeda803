"""The bound: unbiased for its integral, never above the exact law, equal to it where it must be."""

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from small_spaces import SCHEDULES, VOCABULARY, bases, generator
from torch import Tensor
from torch.nn import functional

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.field import LinearSchedule, PathSchedule
from cflow.jump import (
    DirectRates,
    JumpFlow,
    JumpPath,
    MetricPath,
    MixturePath,
    NetworkPosterior,
    NoisingPath,
    Rates,
    enumerate_states,
    law,
)

SIGMAS = 6.0  # a right estimate fails one comparison with probability 2e-9
ENDS = enumerate_states(VOCABULARY, 2)
DATA = torch.rand(len(ENDS), generator=generator(3), dtype=torch.float64).square() + 0.02
DATA = DATA / DATA.sum()
METRIC = MetricPath((torch.arange(3.0)[:, None] - torch.arange(3.0)).abs().double())


def perfect(base: TokenBase, schedule: PathSchedule):
    """Return log p(x1 | x_t) of a mixture path, for any times."""
    clock, start = MixturePath(schedule).clock, base.marginals().double()

    def answer(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        left = clock.left(t)[:, None, None]
        chance = start.expand(2, -1)[torch.arange(2), x][:, None]  # (n, 1, tokens)
        joint = ((1 - left) * (x[:, None] == ENDS) + left * chance).prod(-1) * DATA
        joint = (joint / joint.sum(1, keepdim=True)).reshape(-1, VOCABULARY, VOCABULARY)
        return torch.stack([joint.sum(2), joint.sum(1)], 1).log()

    return answer


def wrong(states: int, outputs: int, *, slope: float = 1.0):
    """Return answers that are no posterior of anything, linear in time."""
    table = torch.randn(states, states, 2, outputs, generator=generator(5))

    def answer(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return (1 + slope * t)[:, None, None] * table[x[:, 0], x[:, 1]] / 2

    return answer


def quadrature(rates: Rates, base: TokenBase) -> Tensor:
    """Integrate the definition of the bound over the clock, states and tokens, for all ends."""
    path = rates.path
    assert path is not None
    x = enumerate_states(base.states, 2)
    count, total = len(x), torch.zeros(len(ENDS))
    nodes, weights = torch.tensor(GAUSS[0]), torch.tensor(GAUSS[1])
    for u, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        t = path.clock.time(-2 * u.log())
        laws = path.law(t.expand(len(ENDS)), ENDS, base.marginals())  # (ends, tokens, states)
        p = laws[:, 0][:, x[:, 0]] * laws[:, 1][:, x[:, 1]]  # (ends, states of both)
        model = rates(t.expand(count), x)
        for k, end in enumerate(ENDS):
            one = functional.one_hot(end.expand(count, 2), base.states).to(model)
            own = path.rates(t.expand(count), x, one)
            safe = torch.where(own > 0, own, 1.0)
            cost = own * (safe / torch.where(own > 0, model, 1.0)).log() - own + model
            met = torch.where(p[k] > 0, cost.sum((-1, -2)), 0.0)  # others may cost infinitely much
            total[k] += w * 2 / u * (p[k] * met).sum()
    return -total


GAUSS = tuple(a.tolist() for a in leggauss(40))


def estimate(rates: Rates, base: TokenBase, repeats: int) -> tuple[Tensor, Tensor]:
    flow = JumpFlow(base, rates)
    return flow.elbo_with_error(ENDS, repeats=repeats, generator=generator(1))


def below(path: JumpPath | None, base: TokenBase) -> NetworkPosterior:
    return NetworkPosterior(wrong(base.states, VOCABULARY), base, path or MixturePath())


@pytest.mark.parametrize("name", ["masks", "uniform", "categorical", "some masks"])
@pytest.mark.parametrize("kind", ["mixture", "noising"])
def test_it_is_unbiased_and_below_the_exact_law(name: str, kind: str) -> None:
    base = bases(2)[name]
    path = MixturePath() if kind == "mixture" else NoisingPath.of(base)
    rates = below(path, base)
    value, error = estimate(rates, base, 6000)
    assert bool(((value - quadrature(rates, base)).abs() < SIGMAS * error + 2e-3).all())
    grown = [base.states] * 2
    exact = law(rates, base).reshape(grown)[:VOCABULARY, :VOCABULARY].reshape(-1).log()
    assert bool((value < exact + SIGMAS * error).all())
    assert bool((quadrature(rates, base) < exact + 1e-6).all())


def test_along_a_metric_path_it_is_unbiased_and_below() -> None:
    base = UniformTokens(2, VOCABULARY)
    answer = wrong(3, 3, slope=0.0)  # else the law would go on changing as t nears 1
    for rates in (NetworkPosterior(answer, base, METRIC), DirectRates(answer, 3, METRIC)):
        value, error = estimate(rates, base, 4000)
        assert bool(((value - quadrature(rates, base)).abs() < SIGMAS * error + 2e-3).all())
        exact = law(rates, base).log()
        assert bool((value < exact + SIGMAS * error).all())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_with_masks_a_perfect_posterior_makes_it_exact(schedule: PathSchedule) -> None:
    base = MaskTokens(2, VOCABULARY)
    rates = NetworkPosterior(perfect(base, schedule), base, MixturePath(schedule))
    value, error = estimate(rates, base, 1000)
    assert bool(((value - DATA.log()).abs() < SIGMAS * error + 1e-9).all())
    assert error.mean() < 0.03


@pytest.mark.parametrize("name", ["uniform", "categorical", "some masks"])
def test_without_masks_it_is_exact_along_the_noising_alone(name: str) -> None:
    base, schedule = bases(2)[name], LinearSchedule()
    rates = NetworkPosterior(perfect(base, schedule), base, MixturePath(schedule))
    turned = rates.along(NoisingPath.of(base, schedule))
    value, error = estimate(turned, base, 8000)
    assert bool(((value - DATA.log()).abs() < SIGMAS * error).all())
    gap = DATA @ (DATA.log() - quadrature(turned, base))
    assert abs(gap.item()) < 2e-3
    assert (DATA @ (DATA.log() - quadrature(rates, base))).item() > 0.2  # the mixture's stays below


def test_gradients_reach_the_network_and_batches_keep_their_shape() -> None:
    base = MaskTokens((2, 2), 5)
    table = torch.zeros(6, 5, requires_grad=True)
    flow = JumpFlow(base, NetworkPosterior(lambda t, x, context: table[x], base))
    value = flow.elbo(torch.randint(5, (3, 7, 2, 2)), generator=generator())
    assert value.shape == (3, 7)
    value.sum().backward()
    assert table.grad is not None
    assert bool((table.grad[5] != 0).any())
    assert bool((table.grad[:5] == 0).all())  # final tokens are not asked


def test_one_seed_gives_one_value() -> None:
    base = UniformTokens(2, VOCABULARY)
    flow = JumpFlow(base, below(None, base))
    one, other = (flow.elbo(ENDS, repeats=3, generator=generator(7)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, flow.elbo(ENDS, repeats=3, generator=generator(8)))


@pytest.mark.unchecked
def test_bad_input_is_named_by_its_position() -> None:
    base = MaskTokens(3, 4)
    uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
    flow = JumpFlow(base, NetworkPosterior(uniform, base))
    x = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(DomainError, match=r"between 0 and 3, got 7 at index \(1, 2\)"):
        flow.elbo(x.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(7)))
    with pytest.raises(DomainError, match=r"must not hold the mask, 4, found at index \(0, 1\)"):
        flow.elbo(x.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(4)))
    with pytest.raises(DomainError, match=r"must be integers, got torch.float64"):
        flow.elbo(x.double())
    with pytest.raises(ShapeError, match=r"must end in shape \(3,\), got \(2, 2\)"):
        flow.elbo(x[:, :2])
    with pytest.raises(DomainError, match="follow no path"):
        JumpFlow(base, DirectRates(lambda t, x, context: torch.zeros(*x.shape, 5), 5)).elbo(x)
    with pytest.raises(DomainError, match="unconditional"):
        flow.elbo(x, torch.zeros(2))
    with pytest.raises(DomainError, match="repeats must be at least 2"):
        flow.elbo_with_error(x, repeats=1)
    with pytest.raises(DomainError, match="agree on the states"):
        JumpFlow(UniformTokens(3, 4), flow.rates)


def test_there_is_no_log_prob() -> None:
    assert "log_prob" not in dir(JumpFlow)
    assert JumpFlow.likelihood == "bound"
