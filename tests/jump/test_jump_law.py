"""The exact law of a small process against closed forms and a matrix exponential."""

import math

import pytest
import torch
from small_spaces import Small, bases, distance
from torch import Tensor

from cflow.base import Categorical, EmpiricalTokens, MaskTokens, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.field import PolynomialSchedule, VPSchedule
from cflow.jump import (
    Clock,
    DirectRates,
    MetricPath,
    MixturePath,
    NetworkPosterior,
    NoisingPath,
    enumerate_states,
    law,
    state_index,
)
from cflow.ode import Dopri5, Tsit5

SPANS = [(0.0, 0.2), (0.3, 0.6), (0.0, 1.0)]


def test_states_and_their_indices_are_inverse() -> None:
    x = enumerate_states(3, 4)
    assert x.shape == (81, 4)
    assert len(x.unique(dim=0)) == 81
    assert torch.equal(state_index(x, 3), torch.arange(81))
    assert x[1].tolist() == [0, 0, 0, 1]  # the last token runs fastest
    assert torch.equal(state_index(x.reshape(3, 27, 4), 3), torch.arange(81).reshape(3, 27))


@pytest.mark.parametrize("name", bases(2))
def test_perfect_posteriors_have_the_law_of_their_mixture_path(name) -> None:
    small = Small(bases(2)[name], MixturePath(PolynomialSchedule(2.0)))
    for start, end in SPANS if name in ("masks", "empirical") else SPANS[:2]:
        first = small.law(start) if start else None
        p = law(small.rates, small.base, start=first, t0=start, t1=end)
        assert p.dtype == torch.float64
        assert distance(p, small.law(end)) < 3e-9, (start, end)


@pytest.mark.parametrize("name", ["masks", "uniform", "categorical", "some masks"])
def test_perfect_posteriors_have_the_law_of_their_noising(name) -> None:
    base = bases(2)[name]
    small = Small(base, NoisingPath.of(base, VPSchedule()))
    if name == "categorical":  # rates are infinite at 0
        for end in (0.1, 0.9):
            assert distance(law(small.rates, base, t1=end), small.law(end)) < 3e-8, end
    along = Small(base, MixturePath(VPSchedule())).rates.along(small.path)
    p = law(along, base, start=small.law(0.3), t0=0.3, t1=0.6)
    assert distance(p, small.law(0.6)) < 3e-9


def test_perfect_posteriors_have_the_law_of_their_metric_path() -> None:
    distances = torch.tensor([[0.0, 1.0, 2.5], [1.0, 0.0, 0.7], [2.5, 0.7, 0.0]])
    for path in (MetricPath(distances), MetricPath(distances, scale=0.5, power=2.0)):
        small = Small(UniformTokens(2, 3), path)
        for end in (0.2, 1.0):
            p = law(small.rates, small.base, t1=end)
            assert distance(p, small.law(end)) < 3e-9, end


def test_a_clock_that_never_rests_by_its_first_stop_is_followed_further() -> None:
    """Distances of 0.05: at the clock's 21, a third of the tokens have not come to their ends."""
    apart = 0.05 * (1 - torch.eye(3))
    small = Small(UniformTokens(1, 3), MetricPath(apart))
    assert distance(law(small.rates, small.base), small.law(1.0)) < 1e-7
    assert distance(small.law(7 / 8), small.law(1.0)) > 0.05  # where beta is 21


def test_a_process_without_a_path_has_the_law_of_its_matrix() -> None:
    """Two tokens that pull at each other, against the exponential of the whole generator."""
    x = enumerate_states(3, 2)
    u = torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(0))
    u = u.scatter(-1, x[..., None], 0.0)
    matrix = torch.zeros(9, 9)
    for i in range(9):
        for token in range(2):
            for y in range(3):
                there = x[i].clone()
                there[token] = y
                matrix[i, state_index(there, 3)] += u[i, token, y]
    matrix -= torch.diag(matrix.sum(1))
    rates = DirectRates(lambda t, x, context: u[state_index(x, 3)].log(), 3)
    base = EmpiricalTokens(torch.tensor([[0, 2], [1, 1], [1, 1]]), 3)
    start = torch.zeros(9)
    start[2], start[4] = 1 / 3, 2 / 3
    exact = start @ torch.matrix_exp(0.6 * matrix)
    assert distance(law(rates, base, t0=0.1, t1=0.7), exact) < 1e-8
    assert distance(law(rates, base, t0=0.1, t1=0.7, solver=Tsit5(1e-4, 1e-4)), exact) < 1e-3
    assert torch.equal(law(rates, base, t0=0.5, t1=0.5), start)


def test_conditions_and_events_of_any_shape() -> None:
    asked = []

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        asked.append((x.shape, context.shape))
        return (3.0 * context[:, None, None, :]).expand(*x.shape, 2)

    base = MaskTokens((1, 2), 2)
    p = law(NetworkPosterior(network, base), base, t1=0.9, context=torch.tensor([0.0, 1.0]))
    assert set(asked) == {((9, 1, 2), (9, 2))}
    likely = 1 / (1 + math.exp(-3.0))
    table = p.reshape(3, 3)
    assert torch.allclose(
        table[:2, :2].diagonal(), 0.81 * torch.tensor([(1 - likely) ** 2, likely**2])
    )
    single = MaskTokens((), 2)
    flat = lambda t, x, context: torch.zeros(*x.shape, 2)
    p = law(NetworkPosterior(flat, single), single, t1=0.5)
    assert torch.allclose(p, torch.tensor([0.25, 0.25, 0.5]))


def test_networks_in_single_precision_have_a_law_in_double() -> None:
    torch.set_default_dtype(torch.float32)
    small = Small(UniformTokens(2, 3))
    for path in (small.path, NoisingPath.of(small.base)):
        p = law(small.rates.along(path), small.base, t1=0.6)
        assert p.dtype == torch.float64
        assert distance(p, small.law(0.6).double()) < 3e-5


def test_what_is_not_a_small_process_is_refused() -> None:
    flat = lambda t, x, context: torch.zeros(*x.shape, 50)
    base = UniformTokens(10, 50)
    rates = NetworkPosterior(flat, base)
    with pytest.raises(DomainError, match="50 states of each of 10 tokens"):
        law(rates, base)
    base = UniformTokens(1, 50)
    with pytest.raises(DomainError, match=r"0 <= t0 <= t1 <= 1, got t0=0\.5 and t1=0\.2"):
        law(rates, base, t0=0.5, t1=0.2)
    with pytest.raises(ShapeError, match=r"each of 50 states, got \(3,\)"):
        law(rates, base, start=torch.ones(3))
    with pytest.raises(DomainError, match="sum to 1, got values from 1 to 1 with sum 50"):
        law(rates, base, start=torch.ones(50))
    late = lambda t, x, context: torch.where(t[:, None, None] > 0.5, torch.nan, 0.0) + flat(t, x, 0)
    with pytest.raises(
        DomainError, match=r"law: the rates of 50 of \d+ tokens are not finite at t=0\.[5-9]"
    ):
        law(NetworkPosterior(late, base), base)
    from_minus = torch.full((50,), -1.0)

    class Negative(DirectRates):
        """Hold minus the sum where a token stays, as the rows of a generator do."""

    negative = Negative(lambda t, x, context: flat(t, x, 0), 50)
    negative.forward = lambda t, x, context=None: from_minus.expand(*x.shape, 50)  # type: ignore
    with pytest.raises(DomainError, match="rates must be 0 or more, got -1"):
        law(negative, base)


def test_the_clock_of_direct_rates_may_be_any() -> None:
    """Rates per unit of s = t^2."""

    class Square(Clock):
        """Count s = t^2."""

        def __call__(self, t: Tensor) -> Tensor:
            return t.square()

        def speed(self, t: Tensor) -> Tensor:
            return 2 * t

        def time(self, s: Tensor) -> Tensor:
            return s.sqrt()

    base = Categorical(1, torch.tensor([1.0, 0.0]))
    flip = DirectRates(lambda t, x, context: torch.zeros(*x.shape, 2), 2, clock=Square())
    p = law(flip, base, t1=0.5, solver=Dopri5(1e-10, 1e-12))
    assert torch.allclose(p[1], torch.tensor((1 - math.exp(-2 * 0.25)) / 2))
