"""The transformer over tokens: what it sees, what steers it, and where it begins."""

import pytest
import torch

from cflow.errors import DomainError, ShapeError
from cflow.nets import Rotary, TokenTransformer


def awake(**sizes) -> TokenTransformer:
    """Return a small network none of whose branches is zero."""
    net = TokenTransformer(6, 5, 4, width=16, layers=2, heads=2, **sizes)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def test_it_starts_with_logits_of_zero_for_every_value() -> None:
    net = TokenTransformer(6, 5, 4, width=16, layers=1, heads=2)
    assert torch.equal(net(torch.randint(5, (3, 6))), torch.zeros(3, 6, 4))


def test_every_place_reads_every_place_and_knows_where_it_is() -> None:
    net, x = awake(), torch.zeros(1, 6, dtype=torch.long)
    y = net(x)
    for place in range(6):
        other = x.clone()
        other[0, place] = 1
        assert bool(((net(other) - y).abs().amax(-1) > 1e-6).all())
    mirrored = net(torch.tensor([[0, 1, 2, 3, 0, 1]]).flip(1)).flip(1)
    assert not torch.allclose(net(torch.tensor([[0, 1, 2, 3, 0, 1]])), mirrored)


def test_places_are_told_apart_where_all_tokens_are_one() -> None:
    """As all are masks at the start: one law for each place has to be possible there."""
    y = awake()(torch.full((1, 6), 4))[0].detach()
    assert float(torch.pdist(y).min()) > 1e-3


def test_rotary_products_depend_on_distances_alone() -> None:
    turn = Rotary(8, 10)
    a, b = torch.randn(8), torch.randn(8)
    q, k = turn(a.expand(10, 8)), turn(b.expand(10, 8))
    scores = q @ k.T
    for shift in range(1, 5):
        assert torch.allclose(scores.diagonal(shift), scores[0, shift].expand(10 - shift))
    assert not torch.allclose(scores[0, 1], scores[0, 2])


def test_a_condition_steers_and_batches_do_not_mix() -> None:
    net = awake(condition=3)
    x, c = torch.randint(5, (2, 6)), torch.randn(2, 3)
    y = net(x, c)
    assert torch.allclose(net(x[:1], c[:1]), y[:1])
    assert not torch.allclose(net(x, c + 1), y)


def test_bad_sizes_and_inputs_are_named() -> None:
    with pytest.raises(DomainError, match="even share"):
        TokenTransformer(6, 5, 4, width=6, heads=2)
    with pytest.raises(ShapeError, match="may be 6 tokens long"):
        awake()(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(DomainError, match="needs a condition"):
        awake(condition=3)(torch.zeros(1, 6, dtype=torch.long))
