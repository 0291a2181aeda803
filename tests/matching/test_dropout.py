"""Context dropout: each sample by itself, any kind of condition, nothing written over."""

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.matching import ContextDropout, IndependentCoupling, LinearPath, matching


@pytest.mark.parametrize(
    ("context", "null"),
    [
        (torch.arange(1, 1001), 0),
        (torch.arange(1, 1001), -1),
        (torch.ones(1000, 3), 0.0),
        (torch.ones(1000, 3), torch.tensor([5.0, 6.0, 7.0])),
        (torch.ones(1000, 4, 3), torch.zeros(4, 1)),
        (torch.ones(1000, 4, 3, dtype=torch.long), torch.tensor([7, 8, 9])),
    ],
    ids=["labels", "minus one", "vectors", "a null vector", "sequences", "tokens"],
)
def test_samples_lose_their_condition_by_themselves(context: Tensor, null: Tensor | int) -> None:
    """Of 1000, 300 +- 6 standard deviations of 14.5: a false alarm below 1e-8."""
    before = context.clone()
    seen, dropped = ContextDropout(0.3, null).drop(context)
    assert 213 < dropped.sum() < 387
    assert torch.equal(context, before)
    assert seen.dtype == context.dtype
    assert torch.equal(seen[~dropped], context[~dropped])
    wanted = torch.as_tensor(null).to(context.dtype).expand(context[dropped].shape)
    assert torch.equal(seen[dropped], wanted)


def test_none_and_all() -> None:
    context = torch.randn(50, 2)
    assert torch.equal(ContextDropout(0.0).drop(context)[0], context)
    assert torch.equal(ContextDropout(1.0).drop(context)[0], torch.zeros(50, 2))


def test_a_null_condition_can_be_learned() -> None:
    null = nn.Parameter(torch.zeros(2))
    field = lambda t, x, context: context
    loss = matching(
        field,
        LinearPath(),
        IndependentCoupling(),
        torch.randn(64, 2),
        context=torch.zeros(64, 2),
        dropout=ContextDropout(0.5, null),
    )
    loss.mean().backward()
    assert null.grad is not None
    assert bool((null.grad != 0).all())


def test_one_generator_decides_what_is_lost() -> None:
    draw = lambda seed: ContextDropout(0.5).drop(
        torch.ones(99, 1), generator=torch.Generator().manual_seed(seed)
    )[1]
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_bad_input_is_refused() -> None:
    with pytest.raises(DomainError, match=r"probability must lie in \[0, 1\]"):
        ContextDropout(1.5)
    for null in (torch.zeros(2), torch.zeros(1, 3)):
        with pytest.raises(ShapeError, match="must broadcast to one condition"):
            ContextDropout(0.5, null).drop(torch.zeros(5, 3))
    with pytest.raises(ShapeError, match="must broadcast to one condition"):
        ContextDropout(0.5, torch.zeros(1)).drop(torch.arange(5))
    with pytest.raises(DomainError, match=r"null 0.5 is no torch.int64"):
        ContextDropout(0.5, 0.5).drop(torch.arange(5))
    with pytest.raises(ShapeError, match="leading batch axis"):
        ContextDropout(0.5).drop(torch.tensor(1.0))
    with pytest.raises(DomainError, match="there is no context"):
        matching(
            lambda t, x, c: x,
            LinearPath(),
            IndependentCoupling(),
            torch.zeros(3, 2),
            dropout=ContextDropout(0.5),
        )
