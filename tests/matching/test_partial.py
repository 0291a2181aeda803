"""Partial plans: the mass that was asked for, at the least cost, and nothing else."""

import numpy as np
import ot
import pytest
import torch

from cflow.errors import DomainError
from cflow.matching import OTCoupling, PartialCoupling


@pytest.mark.parametrize("mass", [0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_the_mass_is_exact_and_its_cost_the_least(mass: float) -> None:
    x0, x1 = torch.randn(12, 2), torch.randn(17, 2) + 1
    a, b = torch.rand(12) + 0.1, torch.rand(17) + 0.1
    a, b = a / a.sum(), b / b.sum()
    cost = torch.cdist(x0, x1).square()
    plan = PartialCoupling(mass).plan(x0, x1, weights=(a, b))
    assert plan.sum().item() == pytest.approx(mass, abs=1e-12)
    assert bool((plan >= 0).all() & (plan.sum(1) < a + 1e-12).all())
    assert bool((plan.sum(0) < b + 1e-12).all())
    peer = ot.partial.partial_wasserstein(
        a.numpy(), b.numpy(), cost.numpy(), m=mass - 1e-12, nb_dummies=2
    )
    assert (plan * cost).sum().item() == pytest.approx(float(np.sum(peer * cost.numpy())), rel=1e-6)


@pytest.mark.parametrize("n", [128, 256])
def test_a_share_of_equal_batches_is_so_many_whole_pairs(n: int) -> None:
    """Where a peer's plan was all NaN; an assignment with dummies finds the same."""
    x0, x1 = torch.randn(n, 2), torch.randn(n, 2)
    i, j, weight = PartialCoupling(0.75)(x0, x1)
    assert weight is None
    assert len(i) == len(set(i.tolist())) == len(set(j.tolist())) == 3 * n // 4
    cost = torch.cdist(x0, x1).square()
    wide = torch.zeros(n + n // 4, n + n // 4)
    wide[:n, :n] = cost
    wide[n:, n:] = 1e6
    rows, columns = torch.nonzero(OTCoupling(cost=lambda a, b: wide).plan(wide, wide)).T
    real = (rows < n) & (columns < n)
    assert cost[i, j].sum().item() == pytest.approx(cost[rows[real], columns[real]].sum().item())


def test_all_of_the_mass_is_the_exact_plan_and_a_cost_may_be_negative() -> None:
    x0, x1 = torch.randn(40, 2), torch.randn(40, 2)
    assert torch.equal(PartialCoupling(1.0)(x0, x1).i, OTCoupling()(x0, x1).i)
    below = lambda a, b: torch.cdist(a, b).square() - 100
    assert torch.equal(PartialCoupling(0.5, cost=below)(x0, x1).i, PartialCoupling(0.5)(x0, x1).i)
    same = PartialCoupling(0.5)(torch.zeros(6, 2), torch.zeros(6, 2))
    assert len(same.i) == len(set(same.j.tolist())) == 3


def test_a_target_served_in_part_weighs_less() -> None:
    x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.5]])
    pairs = PartialCoupling(0.75)(x0, x1)
    assert pairs.j.tolist() == [0, 1]
    assert pairs.weight is not None
    assert torch.allclose(pairs.weight, torch.tensor([4 / 3, 2 / 3]))


@pytest.mark.parametrize("mass", [0.0, 1.5, float("nan")])
def test_a_share_lies_between_none_and_all(mass: float) -> None:
    with pytest.raises(DomainError, match=r"PartialCoupling: mass must lie in \(0, 1\]"):
        PartialCoupling(mass)
