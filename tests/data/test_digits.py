"""The digits: whole, integer, and split the same way every time."""

import torch

from cflow.data import digits


def test_the_split_is_whole_disjoint_and_fixed() -> None:
    split = digits()
    every = torch.cat(list(split))
    assert every.shape == (1797, 8, 8)
    assert (every.min().item(), every.max().item()) == (0, 16)
    assert not every.is_floating_point()
    assert torch.equal(digits().test, split.test)
    assert not torch.equal(digits(seed=1).test, split.test)
    assert int(every.sum()) == 561_718  # the sum over scikit-learn's own array
