"""Masks: what moves, and that a mask and its complement move everything once."""

import pytest
import torch

from cflow.errors import DomainError
from cflow.transport import masks


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("mask", [masks.halves, masks.alternating], ids=lambda m: m.__name__)
def test_a_mask_and_its_complement_share_the_entries(mask, n: int) -> None:
    assert torch.equal(mask(n), ~mask(n, flip=True))
    assert mask(n).shape == (n,)
    assert n // 2 <= int(mask(n, flip=True).sum()) <= (n + 1) // 2
    assert torch.equal(masks.channels(n).flatten(), masks.halves(n))


def test_a_checkerboard_has_no_two_neighbours_of_one_colour() -> None:
    board = masks.checkerboard(4, 5)[0]
    assert bool((board[1:] != board[:-1]).all())
    assert bool((board[:, 1:] != board[:, :-1]).all())
    assert torch.equal(masks.checkerboard(4, 5, flip=True)[0], ~board)


def test_what_cannot_be_split_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"masks.halves: at least 2 entries are needed"):
        masks.halves(1)
    with pytest.raises(DomainError, match=r"masks.channels: at least 2"):
        masks.channels(1)
    with pytest.raises(DomainError, match=r"masks.checkerboard: at least 2"):
        masks.checkerboard(1, 1)
