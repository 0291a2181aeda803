"""Chains through snapshots: every marginal kept, neighbours paired by the plan, errors in words."""

from dataclasses import dataclass

import pytest
import torch
from torch import Generator

from cflow.errors import DomainError, ShapeError
from cflow.matching import (
    Coupling,
    IndependentCoupling,
    OTCoupling,
    PairedCoupling,
    Pairs,
    along,
    chain,
)


@dataclass(frozen=True)
class Given(Coupling):
    pairs: Pairs

    def __call__(
        self, x0, x1, context=None, *, source_context=None, weights=None, generator=None
    ) -> Pairs:
        return self.pairs


def test_chains_of_equal_snapshots_are_joined_optimal_pairs() -> None:
    """In one dimension optimal plans keep the order, so a chain keeps its rank at all times."""
    snapshots = [torch.randn(40, 1) * s + s for s in (1.0, 3.0, 0.5, 2.0)]
    index = chain(OTCoupling(), snapshots)
    assert index.shape == (40, 4)
    ranks = [x[:, 0].argsort().argsort()[i] for x, i in zip(snapshots, index.T, strict=True)]
    assert all(torch.equal(ranks[0], r) for r in ranks)
    assert all(sorted(column.tolist()) == list(range(40)) for column in index.T)


def test_neighbours_of_a_chain_are_pairs_of_the_plan() -> None:
    snapshots = [torch.randn(30, 2) + k for k in range(3)]
    index = chain(OTCoupling(), snapshots)
    for k in range(2):
        i, j, _ = OTCoupling()(snapshots[k], snapshots[k + 1])
        plan = dict(zip(j.tolist(), i.tolist(), strict=True))
        assert all(plan[b] == a for a, b in index[:, k : k + 2].tolist())


@pytest.mark.parametrize("coupling", [OTCoupling(), IndependentCoupling()])
@pytest.mark.parametrize("n", [None, 10, 100])
def test_snapshots_of_unequal_sizes_keep_their_marginals(coupling, n) -> None:
    """Every point is used as often as any other of its snapshot, to within one."""
    sizes = (12, 30, 7)
    index = chain(coupling, [torch.randn(m, 2) for m in sizes], n=n)
    assert index.shape == (n or 30, 3)
    for m, column in zip(sizes, index.T, strict=True):
        counts = torch.bincount(column, minlength=m)
        assert len(counts) == m
        assert counts.max() - counts.min() <= 1


def test_a_chain_is_markov_where_couplings_are_independent() -> None:
    """Three snapshots of two points: all eight tuples are equally likely (6 standard errors)."""
    index = chain(IndependentCoupling(), [torch.randn(2, 1)] * 3, n=8000)
    code = index @ torch.tensor([4, 2, 1])
    counts = torch.bincount(code, minlength=8).double()
    assert bool(((counts - 1000).abs() < 6 * 1000**0.5).all())


def test_a_source_of_many_targets_carries_all_of_them() -> None:
    """A plan that sends everything through source 0 keeps the last marginal."""
    all_from_one = Given(Pairs(torch.zeros(5, dtype=torch.long), torch.arange(5)))
    index = chain(all_from_one, [torch.randn(5, 1)] * 3)
    assert sorted(index[:, 2].tolist()) == list(range(5))
    assert len(index[:, 1].unique()) == len(index[:, 0].unique()) == 1


def test_images_keep_their_shape() -> None:
    snapshots = [torch.randn(6, 3, 4, 4), torch.randn(9, 3, 4, 4)]
    index = chain(OTCoupling(), snapshots)
    points = along(snapshots, index)
    assert points.shape == (9, 2, 3, 4, 4)
    for row, (a, b) in zip(points, index.tolist(), strict=True):
        assert torch.equal(row[0], snapshots[0][a])
        assert torch.equal(row[1], snapshots[1][b])


def test_contexts_go_to_the_coupling_beside_their_points() -> None:
    """With class by class transport every chain stays in its class."""
    label = [torch.arange(12) % 3, (torch.arange(24) // 8), torch.arange(6) // 2]
    snapshots = [torch.randn(len(c), 2) for c in label]
    contexts = [c[:, None].double() for c in label]
    index = chain(OTCoupling(context_weight=torch.inf), snapshots, contexts=contexts, n=24)
    seen = torch.stack([c[i] for c, i in zip(label, index.T, strict=True)], dim=1)
    assert bool((seen == seen[:, :1]).all())


def test_one_generator_decides_the_chains() -> None:
    snapshots = [torch.randn(8, 2), torch.randn(5, 2), torch.randn(11, 2)]
    draw = lambda s: chain(IndependentCoupling(), snapshots, generator=Generator().manual_seed(s))
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_paired_rows_cannot_be_told_apart_from_shuffled_ones() -> None:
    with pytest.raises(DomainError, match="PairedCoupling is the chain of the rows themselves"):
        chain(PairedCoupling(), [torch.zeros(3, 1), torch.zeros(3, 1)])


def test_bad_snapshots_are_refused_in_words() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(ShapeError, match=r"snapshot 1 is empty, shape \(0, 2\); leave that time"):
        chain(OTCoupling(), [x, x[:0], x])
    with pytest.raises(DomainError, match="two snapshots or more, got 1"):
        chain(OTCoupling(), [x])
    with pytest.raises(ShapeError, match=r"one event shape, got \(2,\) in snapshot 0 and \(3,\)"):
        chain(OTCoupling(), [x, torch.randn(4, 3)])
    with pytest.raises(DomainError, match="snapshot 2 must be finite"):
        chain(OTCoupling(), [x, x, x * torch.nan])
    with pytest.raises(DomainError, match="points must be floating"):
        chain(OTCoupling(), [x, torch.zeros(4, 2, dtype=torch.long)])
    with pytest.raises(DomainError, match="n must be positive"):
        chain(OTCoupling(), [x, x], n=0)
    with pytest.raises(ShapeError, match=r"numbers \[4, 4\], got \[4, 3\]"):
        chain(OTCoupling(), [x, x], contexts=[torch.zeros(4), torch.zeros(3)])
    with pytest.raises(ShapeError, match=r"numbers \[4, 4\], got \[4\]"):
        chain(OTCoupling(), [x, x], contexts=[torch.zeros(4)])
    i = torch.arange(4)
    with pytest.raises(DomainError, match="Given weights its pairs"):
        chain(Given(Pairs(i, i, torch.ones(4))), [x, x])
    with pytest.raises(DomainError, match="left 1 of 4 targets without a source"):
        chain(Given(Pairs(i[:3], i[:3])), [x, x])
    with pytest.raises(ShapeError, match=r"one column for each of 2 snapshots, got \(4, 3\)"):
        along([x, x], torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match="along: all snapshots need one event shape"):
        along([x, torch.zeros(4, 3)], torch.zeros(4, 2, dtype=torch.long))
