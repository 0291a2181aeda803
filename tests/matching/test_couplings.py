"""Couplings: marginals kept, seeds obeyed, plans as exact as they promise."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare

from cflow.errors import DomainError, ShapeError
from cflow.matching import IndependentCoupling, OTCoupling, PairedCoupling

COUPLINGS = [IndependentCoupling(), OTCoupling(), PairedCoupling()]
every = pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)


@every
def test_every_source_and_every_target_is_used_once(coupling) -> None:
    pairs = coupling(torch.randn(256, 2, 3), torch.randn(256, 2, 3))
    assert sorted(pairs.i.tolist()) == list(range(256))
    assert sorted(pairs.j.tolist()) == list(range(256))
    assert pairs.weight is None


@every
def test_one_generator_decides_the_pairs(coupling) -> None:
    x0, x1 = torch.randn(64, 2), torch.randn(64, 2)
    draw = lambda: coupling(x0, x1, generator=torch.Generator().manual_seed(3)).i
    np.random.seed(0)  # noqa: NPY002  the generator that must not matter
    first = draw()
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(first, draw())


@pytest.mark.parametrize("n", [1, 2, 50, 200])
def test_ot_finds_the_cheapest_assignment(n: int) -> None:
    x0, x1 = torch.randn(n, 3), 2 + torch.randn(n, 3)
    i, j, _ = OTCoupling()(x0, x1)
    cost = torch.cdist(x0, x1).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost[torch.from_numpy(rows), torch.from_numpy(columns)].sum()
    assert torch.allclose(cost[i, j].sum(), best)


def test_ot_is_a_permutation_among_equal_points_too() -> None:
    i, _, _ = OTCoupling()(torch.zeros(60, 2), torch.ones(60, 2))
    assert sorted(i.tolist()) == list(range(60))


def test_ot_refuses_points_that_are_not_finite() -> None:
    bad = torch.zeros(4, 2)
    bad[1, 0] = torch.nan
    with pytest.raises(DomainError, match=r"x0 must be finite, got nan at index \(1, 0\)"):
        OTCoupling()(bad, torch.randn(4, 2))


def test_ot_with_unequal_sizes_draws_sources_from_the_plan() -> None:
    """Two sources, one twice as near to most targets; chi-square, false alarm 1e-6."""
    x0, x1 = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[0.0], [20.0]])
    counts = torch.zeros(3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        i, j, _ = OTCoupling()(x0, x1, generator=generator)
        assert j.tolist() == [0, 1]
        assert i[0] in (0, 1)
        assert i[1] in (1, 2)
        counts += torch.bincount(i, minlength=3)
    # Each target takes 2/3 of its mass from its own end, 1/3 from the middle.
    assert chisquare(counts.numpy(), 1000 / 3).pvalue > 1e-6


def test_independent_coupling_is_uniform_where_sizes_differ() -> None:
    i, j, _ = IndependentCoupling()(torch.zeros(4, 1), torch.zeros(40_000, 1))
    assert len(j) == 40_000
    assert chisquare(torch.bincount(i, minlength=4).numpy()).pvalue > 1e-6


@every
def test_points_that_cannot_be_paired_are_refused(coupling) -> None:
    with pytest.raises(ShapeError, match="one event shape"):
        coupling(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="none may be empty"):
        coupling(torch.zeros(0, 2), torch.zeros(4, 2))


def test_paired_coupling_needs_equal_sizes() -> None:
    with pytest.raises(ShapeError, match="as many sources as targets, got 3 and 4"):
        PairedCoupling()(torch.zeros(3, 1), torch.zeros(4, 1))
