"""Laws of tokens: probabilities and draws agree, and bad input is named."""

import itertools

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cflow.base import Categorical, EmpiricalTokens, MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError

FALSE_ALARM = 1e-6  # of each chi-square test
EACH = torch.tensor([[0.7, 0.0, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
TABLE = torch.tensor([[0, 2], [1, 1], [1, 1], [2, 0], [2, 3]])
BASES = {
    "masks": lambda: MaskTokens(2, 3),
    "uniform": lambda: UniformTokens(2, 3),
    "shared": lambda: Categorical(2, torch.tensor([0.0, 1.0, 3.0, 0.0])),
    "own": lambda: Categorical(2, EACH),
    "some masks": lambda: Categorical(2, torch.tensor([0.3, 0.2, 0.1, 0.4]), masked=True),
    "table": lambda: EmpiricalTokens(TABLE, 3, masked=True),
    "grid": lambda: Categorical((2, 1), torch.rand(2, 1, 3)),
    "single": lambda: Categorical((), torch.tensor([0.2, 0.8])),
    "single table": lambda: EmpiricalTokens(torch.tensor([2, 2, 0]), 3),
}
each_base = pytest.mark.parametrize("name", BASES)


def states(base: TokenBase) -> Tensor:
    """Return all states of an event, `(states ** tokens, *event)`."""
    n = max(1, len(torch.empty(base.event_shape).flatten()))
    every = list(itertools.product(range(base.states), repeat=n))
    return torch.tensor(every).reshape(-1, *base.event_shape)


@each_base
def test_probabilities_sum_to_one_and_have_the_marginals(name) -> None:
    base = BASES[name]()
    x = states(base)
    p = base.log_prob(x).exp()
    assert p.shape == x.shape[:1]
    assert torch.allclose(p.sum(), torch.ones(()))
    marginals = base.marginals().expand(*base.event_shape, base.states)
    one_hot = torch.nn.functional.one_hot(x, base.states).double()
    assert torch.allclose(torch.einsum("n,n...->...", p, one_hot), marginals.double())
    if base.independent:
        flat = one_hot.reshape(len(x), -1, base.states)
        each = torch.einsum("nis,is->ni", flat, marginals.reshape(-1, base.states))
        assert torch.allclose(each.prod(1), p)


@each_base
def test_draws_have_the_law_and_repeat_from_a_seed(name) -> None:
    base = BASES[name]()
    seed = lambda: torch.Generator().manual_seed(0)
    x = base.sample((200, 50), generator=seed())
    assert x.shape == (200, 50, *base.event_shape)
    assert x.dtype == torch.int64
    assert torch.equal(base.sample((200, 50), generator=seed()), x)
    assert base.sample(()).shape == base.event_shape
    every = states(base)
    p = base.log_prob(every).exp()
    same = x.reshape(10_000, 1, -1) == every.reshape(1, len(every), -1)
    counts = same.all(-1).sum(0)
    assert not counts[p == 0].any()
    if (p > 0).sum() > 1:
        expected = p[p > 0] / p.sum() * 10_000
        assert chisquare(counts[p > 0].numpy(), expected.numpy()).pvalue > FALSE_ALARM
    assert base.log_prob(x).shape == (200, 50)
    assert torch.isfinite(base.log_prob(x)).all()


@each_base
def test_what_is_said_of_a_base_holds(name) -> None:
    base = BASES[name]()
    assert base.absorbing == isinstance(base, MaskTokens)
    assert base.independent != isinstance(base, EmpiricalTokens)
    assert base.mask == (base.vocabulary if name in ("masks", "some masks", "table") else None)
    assert base.states == base.vocabulary + (base.mask is not None)


@each_base
def test_tokens_out_of_range_are_impossible_and_no_integers_refused(name) -> None:
    base = BASES[name]()
    x = base.sample((5,))
    for outside in (base.states, 99, -1):
        wrong = torch.where(torch.rand(x.shape) > -1, outside, x)
        assert bool((base.log_prob(wrong) == -torch.inf).all())
    with pytest.raises(DomainError, match=r"tokens must be integers, got torch\.float64"):
        base.log_prob(x.double())
    with pytest.raises(DomainError, match=r"tokens must be integers, got torch\.bool"):
        base.log_prob(x > 0)
    if base.event_shape:
        with pytest.raises(ShapeError, match="tokens must end in shape"):
            base.log_prob(x[:, :1].flatten()[:1])


def test_weights_of_a_law_need_not_sum_to_one_and_follow_the_dtype() -> None:
    weights = torch.tensor([1, 3, 4])
    base = Categorical(2, weights)
    assert torch.allclose(base.marginals(), torch.tensor([0.125, 0.375, 0.5]))
    assert base.log_prob(torch.tensor([[2, 2]], dtype=torch.int32)).exp().item() == 0.25
    half = Categorical(2, weights).float()
    assert half.log_prob(torch.tensor([0, 1])).dtype == torch.float32


def test_a_large_vocabulary_takes_no_table_of_all_draws() -> None:
    """1000 x 50 draws of 50,000 values: 2.5e9 comparisons, had they been made."""
    base = Categorical(50, torch.arange(50_000.0))
    x = base.sample((1000,), generator=torch.Generator().manual_seed(0))
    assert x.double().mean() == pytest.approx(2 / 3 * 50_000, rel=0.01)


def test_laws_that_are_none_are_refused() -> None:
    with pytest.raises(DomainError, match="vocabulary and sizes must be positive"):
        UniformTokens(3, 0)
    with pytest.raises(DomainError, match="vocabulary and sizes must be positive"):
        MaskTokens((3, 0), 2)
    with pytest.raises(ShapeError, match=r"broadcast to \(4, 3\), got \(2, 3\)"):
        Categorical(4, torch.rand(2, 3))
    for bad in ([0.5, -0.1], [0.0, 0.0], [torch.nan, 1.0]):
        with pytest.raises(DomainError, match="finite, 0 or more, and not all 0"):
            Categorical(4, torch.tensor(bad))


def test_tables_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"needs a table \(rows, \*event\), got \(0, 2\)"):
        EmpiricalTokens(torch.zeros(0, 2, dtype=torch.long), 3)
    with pytest.raises(DomainError, match=r"tokens must be integers, got torch\.float64"):
        EmpiricalTokens(torch.tensor([[0.0, torch.nan]]), 3)
    with pytest.raises(
        DomainError, match=r"between 0 and 2, got 3 at index \(4, 1\) \(1 of 10 tokens"
    ):
        EmpiricalTokens(TABLE, 3)
    with pytest.raises(DomainError, match=r"got -1 at index \(0, 0\)"):
        EmpiricalTokens(-torch.ones(1, 1, dtype=torch.long), 3)
