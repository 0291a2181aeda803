"""How tokens are drawn from logits: chi-square tests with a false-alarm rate of 1e-6."""

import pytest
import torch
from scipy.stats import chisquare
from small_spaces import FALSE_ALARM, generator
from torch import Tensor

from cflow.errors import DomainError
from cflow.jump import Draw

LOGITS = torch.tensor([0.4, 0.3, 0.0, 0.2, 0.1, 0.0], dtype=torch.float64).log() + 7


def drawn(draw: Draw, logits: Tensor = LOGITS, n: int = 50_000) -> Tensor:
    u = torch.rand(n, generator=generator(), dtype=logits.dtype)
    return torch.bincount(draw(logits.expand(n, -1), u), minlength=len(logits))


def fits(counts: Tensor, p: Tensor) -> bool:
    assert not counts[p == 0].any()
    if (p > 0).sum() == 1:
        return True
    expected = counts.sum() * p[p > 0] / p.sum()
    return float(chisquare(counts[p > 0].numpy(), expected.numpy()).pvalue) > FALSE_ALARM


def test_draws_have_the_law_of_their_logits() -> None:
    p = LOGITS.softmax(-1)
    for draw in (Draw(), Draw(dtype=torch.float64), Draw(dtype=torch.float32)):
        assert fits(drawn(draw), p)
        assert not fits(drawn(draw), p + torch.tensor([0.02, -0.02, 0, 0, 0, 0]))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_is_a_power_of_probabilities(temperature) -> None:
    p = LOGITS.softmax(-1) ** (1 / temperature)
    assert fits(drawn(Draw(temperature)), p / p.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, [0]), (0.39, [0]), (0.5, [0, 1]), (0.75, [0, 1, 3]), (1.0, range(5))]
)
def test_the_nucleus_holds_the_likeliest_tokens_and_the_one_that_fills_it(top_p, kept) -> None:
    p = torch.zeros(6)
    kept = [token for token in kept if token != 2]
    p[kept] = LOGITS.softmax(-1)[kept]
    assert fits(drawn(Draw(top_p=top_p)), p)
    cold = torch.zeros(6)
    cold[0], cold[1] = 0.16, 0.09  # of 0.3 in all, 0.53 and 0.3
    assert fits(drawn(Draw(0.5, top_p=0.6)), cold)


def test_what_has_no_probability_is_never_drawn_even_at_the_ends_of_the_uniform_numbers() -> None:
    """Values without mass before, between and behind; u is 0, or the largest number below 1."""
    for dtype in (torch.float32, torch.float64):
        low = torch.zeros(3, dtype=dtype)
        high = torch.full((3,), 1 - torch.finfo(dtype).eps / 2, dtype=dtype)
        none = -torch.inf
        logits = torch.tensor(
            [
                [none, 0.0, none, 0.3, none],
                [1.0, none, none, none, none],
                [none, none, 2.0, 2, none],
            ],
            dtype=dtype,
        )
        assert Draw()(logits, low).tolist() == [1, 0, 2]
        assert Draw()(logits, high).tolist() == [3, 0, 3]
        assert Draw(dtype=torch.float32)(logits, high.double()).tolist() == [3, 0, 3]
        assert Draw()(logits.half(), torch.ones(3, dtype=dtype)).tolist() == [3, 0, 3]


def test_double_precision_reaches_what_single_precision_cannot() -> None:
    """A token of probability 1e-9 behind one of nearly 1: float32 sums step over it."""
    logits = torch.tensor([[0.0, -20.7]], dtype=torch.float32)
    u = torch.tensor([1 - 5e-10], dtype=torch.float64)
    assert Draw(dtype=torch.float64)(logits, u).tolist() == [1]
    assert Draw()(logits, u).tolist() == [0]


def test_large_logits_do_not_overflow_and_are_not_written_into() -> None:
    logits = torch.tensor([[3000.0, 3001.0], [-3000.0, -9000.0]])
    before = logits.clone()
    assert Draw(0.1, top_p=0.9)(logits, torch.tensor([0.5, 0.5])).tolist() == [1, 0]
    assert torch.equal(logits, before)


def test_options_are_checked() -> None:
    with pytest.raises(DomainError, match="temperature must be positive and finite, got 0"):
        Draw(0.0)
    with pytest.raises(DomainError, match=r"top_p must lie in \(0, 1\], got 1.5"):
        Draw(top_p=1.5)
    with pytest.raises(DomainError, match=r"float32 or float64, got torch.float16"):
        Draw(dtype=torch.float16)
