"""Costs of tokens, and couplings of them: optimal pairs, weights that stay floating."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cflow.base import UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.jump import (
    EmbeddingCost,
    HammingCost,
    JumpFlow,
    NetworkPosterior,
    TokenMLP,
    jump_matching,
)
from cflow.matching import (
    EntropicCoupling,
    IndependentCoupling,
    OTCoupling,
    PairedCoupling,
    PartialCoupling,
    UnbalancedCoupling,
)

EVENT = (3, 2)


def tokens(n: int) -> Tensor:
    return torch.randint(5, (n, *EVENT))


def counted(x0: Tensor, x1: Tensor) -> Tensor:
    return (x0[:, None] != x1).flatten(2).sum(-1).double()


def test_costs_are_what_they_say() -> None:
    x0, x1, table = tokens(7), tokens(9), torch.randn(5, 4)
    assert torch.equal(HammingCost()(x0, x1).double(), counted(x0, x1))
    apart = (table[x0][:, None] - table[x1]).square().flatten(2).sum(-1)
    assert torch.allclose(EmbeddingCost(table)(x0, x1), apart)
    far = torch.tensor([[50_000]]), torch.tensor([[50_001], [50_000]])
    assert HammingCost()(*far).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("n", [40, 80])  # by assignment, and by the simplex
@pytest.mark.parametrize("embedded", [False, True])
def test_pairs_are_optimal(n, embedded) -> None:
    x0, x1, table = tokens(n), tokens(n), torch.randn(5, 4)
    cost = EmbeddingCost(table) if embedded else HammingCost()
    pairs = OTCoupling(cost=cost)(x0, x1)
    assert sorted(pairs.i.tolist()) == list(range(n))
    matrix = cost(x0, x1).double()
    best = matrix.numpy()[linear_sum_assignment(matrix.numpy())].sum()
    assert torch.isclose(matrix[pairs.i, pairs.j].sum(), torch.tensor(best))
    assert matrix[torch.arange(n), torch.arange(n)].sum() > 1.3 * best


@pytest.mark.parametrize(
    "coupling",
    [
        IndependentCoupling(),
        PairedCoupling(),
        OTCoupling(cost=HammingCost()),
        EntropicCoupling(reg=1.0, cost=HammingCost()),
        UnbalancedCoupling(reg=1.0, penalty=5.0, cost=HammingCost()),
        PartialCoupling(mass=0.5, cost=HammingCost()),
    ],
    ids=lambda coupling: type(coupling).__name__,
)
def test_every_coupling_takes_tokens_and_weighs_them_in_floating_numbers(coupling) -> None:
    x0, x1 = tokens(12), tokens(12)
    mass = torch.rand(12) + 0.1
    mass = mass / mass.sum()
    both = (None if isinstance(coupling, OTCoupling | PartialCoupling) else mass, mass)
    floating = coupling(
        x0.double(), x1.double(), weights=both, generator=torch.Generator().manual_seed(0)
    )
    i, j, weight = coupling(x0, x1, weights=both, generator=torch.Generator().manual_seed(0))
    assert torch.equal(i, floating.i)
    assert torch.equal(j, floating.j)
    assert (weight is None) == (floating.weight is None)
    if weight is not None:
        assert weight.dtype == torch.get_default_dtype()
        assert floating.weight is not None
        assert torch.allclose(weight, floating.weight)
    if isinstance(coupling, IndependentCoupling | PairedCoupling | OTCoupling):
        assert weight is not None
        assert torch.allclose(weight, 12 * mass)


def test_coupled_tokens_have_fewer_jumps_to_make_and_train_a_flow() -> None:
    base, coupling = UniformTokens(EVENT, 5), OTCoupling(cost=HammingCost())
    flow = JumpFlow(base, NetworkPosterior(TokenMLP(EVENT, 5, 5, hidden_features=(8,)), base))
    x0, x1 = tokens(64), tokens(64)
    i, j, _ = coupling(x0, x1)
    assert (x0[i] != x1[j]).double().mean() < (x0 != x1).double().mean() - 0.1
    assert jump_matching(flow, x1, x0=x0, coupling=coupling).shape == (64,)


def test_bad_tables_and_tokens_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(states, features\), got \(5,\)"):
        EmbeddingCost(torch.zeros(5))
    with pytest.raises(DomainError, match="table must be finite"):
        EmbeddingCost(torch.full((5, 2), torch.nan))
    with pytest.raises(DomainError, match=r"tokens 0 to 4, got 5 in x1 at index \(0, 1\)"):
        EmbeddingCost(torch.zeros(5, 2))(torch.zeros(1, 2).long(), torch.tensor([[0, 5]]))
