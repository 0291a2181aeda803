"""Condition-aware couplings: p(context) kept, sources independent of contexts, classes apart."""

import math

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.matching import EntropicCoupling, OTCoupling, PartialCoupling, UnbalancedCoupling
from cflow.matching.plan import _deal

CLASSWISE = OTCoupling(context_weight=math.inf)


def two_classes(n: int) -> tuple[Tensor, Tensor]:
    """Return points around -4 and 4, and their labels."""
    label = torch.arange(n) % 2
    return (8.0 * label - 4)[:, None] + torch.randn(n, 2), label


def source_means(coupling: OTCoupling, batches: int = 60, n: int = 32) -> tuple[Tensor, int]:
    """Return the mean first coordinate of the sources that class 1 gets, and their number."""
    generator, seen = torch.Generator().manual_seed(5), []
    for _ in range(batches):
        x1, label = two_classes(n)
        x0 = torch.randn(n, 2)
        i, j, weight = coupling(x0, x1, label, generator=generator)
        assert weight is None
        assert sorted(i.tolist()) == j.tolist() == list(range(n))  # p(context) as in the batch
        seen.append(x0[i][label[j] == 1, 0])
    return torch.cat(seen).mean(), batches * n // 2


def test_plain_ot_skews_sources_by_class_and_classwise_ot_does_not() -> None:
    """Without skew the mean is N(0, 1 / count): five deviations fail by chance below 1e-6."""
    skewed, count = source_means(OTCoupling())
    assert skewed > 0.5
    fair, _ = source_means(CLASSWISE)
    assert abs(fair) < 5 / count**0.5


def test_a_growing_weight_makes_sources_independent_of_continuous_contexts() -> None:
    """The correlation of source and context falls to that of 2000 independent pairs."""
    correlation = []
    for weight in (0.0, 1.0, 1e4):
        coupling, sources, contexts = OTCoupling(context_weight=weight), [], []
        generator = torch.Generator().manual_seed(2)
        for _ in range(25):
            c = torch.randn(80, 1)
            x0, x1 = torch.randn(80, 1), c + 0.1 * torch.randn(80, 1)
            i, j, _ = coupling(x0, x1, c, generator=generator)
            sources.append(x0[i, 0])
            contexts.append(c[j, 0])
        pairs = torch.stack([torch.cat(sources), torch.cat(contexts)])
        correlation.append(torch.corrcoef(pairs)[0, 1].item())
    assert correlation[0] > 0.95
    assert correlation[0] > correlation[1] > abs(correlation[2])
    assert abs(correlation[2]) < 5 / 2000**0.5


def test_a_finite_weight_is_transport_of_points_with_their_contexts() -> None:
    x0, x1, c0, c1 = (torch.randn(30, 2) for _ in range(4))
    joint = OTCoupling()(torch.cat([x0, 3 * c0], 1), torch.cat([x1, 3 * c1], 1))
    ours = OTCoupling(context_weight=9.0)(x0, x1, c1, source_context=c0)
    assert torch.equal(ours.i, joint.i)


def test_sources_with_classes_of_their_own_meet_only_their_class() -> None:
    x0, c0 = two_classes(40)
    x1, c1 = two_classes(40)
    order = torch.randperm(40)
    i, j, _ = CLASSWISE(x0, x1[order], c1[order], source_context=c0)
    assert torch.equal(c0[i], c1[order][j])
    for k in (0, 1):
        rows, columns = torch.nonzero(c0 == k)[:, 0], torch.nonzero(c1[order] == k)[:, 0]
        inner = OTCoupling()(x0[rows], x1[order][columns])
        assert torch.equal(rows[inner.i], i[columns])


@pytest.mark.parametrize("weight", [2.0, math.inf])
@pytest.mark.parametrize("uniform", [True, False])
def test_dealt_contexts_keep_both_marginals_whatever_the_sizes(
    weight: float, uniform: bool
) -> None:
    a, b = torch.rand(7) + 0.1, torch.rand(5) + 0.1
    weights = None if uniform else (a / a.sum(), b / b.sum())
    a, b = (torch.full((7,), 1 / 7), torch.full((5,), 0.2)) if weights is None else weights
    coupling = OTCoupling(context_weight=weight)
    x0, x1, label = torch.randn(7, 2), torch.randn(5, 2), torch.tensor([0, 1, 0, 2, 1])
    plan = coupling.plan(x0, x1, label, weights=weights)
    assert torch.allclose(plan.sum(1), a, atol=1e-12)
    assert torch.allclose(plan.sum(0), b, atol=1e-12)
    pairs = coupling(x0, x1, label, weights=weights)
    assert pairs.j.tolist() == [0, 1, 2, 3, 4]
    assert bool((pairs.i < 7).all())


def test_every_source_meets_every_context_in_proportion() -> None:
    """Mean over 4000 deals of the mass of source i with the context of target j is a_i b_j.

    One deal gives between 0 and a_i, so a mean has a deviation of at most a_i / 2 / sqrt(4000); six
    of those fail by chance below 1e-7. Without the random turn source 0 gets 0.35 of the middle.
    """
    a, b = torch.tensor([0.6, 0.4]), torch.tensor([0.25, 0.5, 0.25])
    total, generator = torch.zeros(2, 3), torch.Generator().manual_seed(0)
    for _ in range(4000):
        source, donor, mass = _deal(a, b, 2, 3, generator, a.device)
        assert mass is not None
        total.index_put_((source, donor), mass, accumulate=True)
    total = total / 4000
    assert torch.allclose(total.sum(1), a)
    assert torch.allclose(total.sum(0), b)
    assert bool(((total - a[:, None] * b).abs() < 6 * a[:, None] / 2 / 4000**0.5).all())


def test_other_plans_solve_class_by_class() -> None:
    x0, c0 = two_classes(12)
    x1, c1 = two_classes(12)
    apart = c0[:, None] != c1
    entropic = EntropicCoupling(reg=50.0, context_weight=math.inf)
    plan = entropic.plan(x0, x1, c1, source_context=c0)
    assert bool((plan[apart] == 0).all())
    assert torch.allclose(plan.sum(0), torch.full((12,), 1 / 12))
    share = PartialCoupling(mass=0.5, context_weight=math.inf)
    plan = share.plan(x0, x1, c1, source_context=c0)
    assert plan[:, c1 == 0].sum().item() == pytest.approx(0.25)  # half of each class
    assert len(share(x0, x1, c1, source_context=c0).i) == 6
    lone = c1.clone()
    lone[3] = 7  # a class that no source has
    uneven = UnbalancedCoupling(reg=1.0, penalty=1.0, context_weight=math.inf)
    assert uneven.plan(x0, x1, lone, source_context=c0)[:, 3].sum() == 0
    assert 3 not in uneven(x0, x1, lone, source_context=c0).j


def test_one_generator_deals_the_contexts() -> None:
    x1, label = two_classes(40)
    x0 = torch.randn(40, 2)
    draw = lambda seed: CLASSWISE(x0, x1, label, generator=torch.Generator().manual_seed(seed)).i
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_contexts_that_do_not_fit_are_refused() -> None:
    x, c = torch.randn(4, 2), torch.tensor([0.0, 0.0, 1.0, 1.0])
    with pytest.raises(DomainError, match="context_weight is inf, so a context is needed"):
        CLASSWISE(x, x)
    with pytest.raises(DomainError, match=r"sources of context 0.0 have mass 0.25.*targets 0.5"):
        CLASSWISE(x, x, c, source_context=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ShapeError, match=r"one shape after the batch axis, got \(4, 2\) and \(4,"):
        CLASSWISE(x, x, c, source_context=x)
    with pytest.raises(DomainError, match="context must be finite, got nan"):
        CLASSWISE(x, x, c.log() - c.log())
