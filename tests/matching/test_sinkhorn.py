"""Entropic and unbalanced plans: closed forms, limits, peers, and what happens without an end."""

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, SolverError
from cflow.matching import EntropicCoupling, OTCoupling, UnbalancedCoupling
from cflow.matching.sinkhorn import Sinkhorn


def problem(n: int = 20, m: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = torch.rand(n) + 0.1, torch.rand(m) + 0.1
    return torch.randn(n, 2), torch.randn(m, 2) + 1, a / a.sum(), b / b.sum()


def test_entropic_plan_between_gaussians_has_the_known_covariance() -> None:
    """cov(x0, x1) = (sqrt(4 s0^2 s1^2 + e^2) - e) / 2, e = reg / 2; Janati et al. (2020).

    Theorem 1 of arXiv 2006.02572, on a grid whose truncation costs less than 1e-8.
    """
    x = torch.linspace(-9, 9, 181)[:, None]
    for s0, s1, reg in ((1.0, 1.0, 2.0), (0.8, 1.3, 0.5), (1.0, 0.7, 10.0)):
        a, b = (torch.exp(-x[:, 0].square() / (2 * s * s)) for s in (s0, s1))
        weights = (a / a.sum(), b / b.sum())
        plan = EntropicCoupling(reg, tolerance=1e-9).plan(x, x, weights=weights)
        covariance = (plan * (x * x.T)).sum().item()
        e = reg / 2
        expected = (np.sqrt(4 * s0**2 * s1**2 + e**2) - e) / 2
        assert covariance == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reg", [0.05, 0.5, 5.0])
def test_entropic_plan_is_that_of_pot(reg: float) -> None:
    x0, x1, a, b = problem()
    ours = EntropicCoupling(reg, tolerance=1e-10, max_iterations=50_000)
    cost = torch.cdist(x0, x1).square().numpy()
    peer = ot.sinkhorn(
        a.numpy(), b.numpy(), cost, reg, "sinkhorn_log", numItermax=20_000, stopThr=1e-10
    )
    assert np.allclose(ours.plan(x0, x1, weights=(a, b)).numpy(), np.asarray(peer), atol=1e-8)


def test_small_reg_keeps_all_mass() -> None:
    """Where a plain kernel underflows to a plan of mass 0.007: Gaussians one apart per axis."""
    x0, x1 = torch.randn(128, 2), torch.randn(128, 2) + 1
    plan = EntropicCoupling(0.05).plan(x0, x1)
    assert (plan.sum(0) - 1 / 128).abs().sum() < 1e-12
    assert (plan.sum(1) - 1 / 128).abs().sum() <= 1e-5


def test_tiny_and_huge_reg_are_the_exact_and_the_independent_plan() -> None:
    x0, x1, a, b = problem(12, 12)
    cost = torch.cdist(x0, x1).square()
    tiny = EntropicCoupling(1e-3, max_iterations=100_000).plan(1e3 * x0, 1e3 * x1)
    exact = OTCoupling().plan(x0, x1)
    assert torch.allclose(tiny, exact, atol=1e-6)
    assert (tiny * cost).sum().item() == pytest.approx((exact * cost).sum().item(), rel=1e-4)
    huge = EntropicCoupling(1e9).plan(x0, x1, weights=(a, b))
    assert torch.allclose(huge, a[:, None] * b, atol=1e-8)


def test_points_without_mass_get_none() -> None:
    x0, x1, _, b = problem(4, 30)
    a = torch.tensor([0.5, 0.0, 0.5, 0.0])
    for coupling in (EntropicCoupling(0.5), UnbalancedCoupling(0.5, 2.0)):
        plan = coupling.plan(x0, x1, weights=(a, b))
        assert bool((plan[1::2] == 0).all())
        kept = coupling.plan(x0[::2], x1, weights=(a[::2], b))
        assert torch.allclose(plan[::2], kept, atol=1e-12)


def test_a_plan_that_does_not_converge_is_an_error_or_a_stated_fallback() -> None:
    x0, x1, a, b = problem()
    with pytest.raises(
        SolverError, match=r"marginals are off by .* after \d+ iterations at reg=0.01"
    ):
        EntropicCoupling(0.01, max_iterations=5)(x0, x1)
    rounding = EntropicCoupling(0.01, max_iterations=5, fallback=True)
    with pytest.warns(UserWarning, match="the last plan is pulled onto its marginals"):
        plan = rounding.plan(x0, x1, weights=(a, b))
    assert bool((plan >= 0).all())
    assert torch.allclose(plan.sum(0), b, atol=1e-14)
    assert torch.allclose(plan.sum(1), a, atol=1e-14)
    with pytest.raises(SolverError, match=r"would still move .* penalty=3 .* wanted 1e-05"):
        UnbalancedCoupling(0.01, 3.0, max_iterations=5)(x0, x1)
    with pytest.warns(UserWarning, match="the last plan is used"):
        UnbalancedCoupling(0.01, 3.0, max_iterations=5, fallback=True)(x0, x1)


def test_relaxation_does_not_change_the_plan_and_saves_iterations() -> None:
    x0, x1, a, b = problem(60, 60)
    cost = torch.cdist(x0, x1).square()
    plan, error, iterations = Sinkhorn(0.1, tolerance=1e-9, max_iterations=50_000)(cost, a, b)
    assert error <= 1e-9
    assert iterations < 1_000
    potential = (plan / (a[:, None] * b)).log() * 0.1 + cost  # must be f_i + g_j
    residual = potential - potential[:1] - potential[:, :1] + potential[0, 0]
    assert residual.abs().max() < 1e-8 * cost.max()
    assert (plan.sum(1) - a).abs().sum() <= 1e-9


def test_unbalanced_plan_is_that_of_pot() -> None:
    x0, x1, a, b = problem()
    cost = torch.cdist(x0, x1).square().numpy()
    for reg, penalty in ((0.5, 1.0), (1.0, 0.1), (2.0, 20.0)):
        peer = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), cost, reg, penalty, numItermax=20_000, stopThr=1e-12
        )
        ours = UnbalancedCoupling(reg, penalty, tolerance=1e-10).plan(x0, x1, weights=(a, b))
        assert np.allclose(ours.numpy(), np.asarray(peer), atol=1e-7)


def test_unbalanced_plan_is_the_minimum() -> None:
    """At a small reg, where peers lose the mass: no change of a row or a column lowers the sum."""
    x0, x1, a, b = problem()
    reg, penalty, cost = 0.1, 0.5, torch.cdist(x0, x1).square()
    kl = lambda p, q: (torch.special.xlogy(p, p / q) - p + q).sum()
    value = lambda p: (
        (cost * p).sum()
        + reg * kl(p, a[:, None] * b)
        + penalty * (kl(p.sum(1), a) + kl(p.sum(0), b))
    )
    plan = UnbalancedCoupling(reg, penalty, tolerance=1e-10).plan(x0, x1, weights=(a, b))
    best = value(plan)
    for _ in range(50):
        for size in (0.01, 0.3):
            assert value(plan * (size * torch.randn(20, 1)).exp()) > best
            assert value(plan * (size * torch.randn(20, 30)).exp()) > best
    slope = torch.autograd.functional.jacobian(lambda s: value(plan * s), torch.ones(20, 30))
    assert slope.abs().max() < 1e-9


def test_unbalanced_becomes_entropic_as_the_penalty_grows() -> None:
    x0, x1, _, _ = problem(20, 20)
    entropic = EntropicCoupling(1.0, tolerance=1e-10).plan(x0, x1)
    gaps = []
    for penalty in (10.0, 100.0, 1e6):
        soft = UnbalancedCoupling(1.0, penalty, tolerance=1e-10, max_iterations=100_000)
        gaps.append((soft.plan(x0, x1) - entropic).abs().sum().item())
    assert gaps[0] > 5 * gaps[1]
    assert gaps[2] < 1e-5


def test_an_outlier_keeps_little_mass_and_the_weights_say_so() -> None:
    x0, x1 = torch.randn(50, 2), torch.randn(50, 2)
    x1[7] = 6.0
    coupling = UnbalancedCoupling(0.5, 2.0)
    pairs, plan = coupling(x0, x1), coupling.plan(x0, x1)
    assert pairs.weight is not None
    assert pairs.weight[7] < 0.01
    assert pairs.weight.mean().item() == pytest.approx(1.0)
    assert torch.allclose(pairs.weight, plan.sum(0) / plan.sum(0).mean())


def test_options_are_checked() -> None:
    with pytest.raises(DomainError, match="EntropicCoupling: reg must be positive"):
        EntropicCoupling(0.0)
    with pytest.raises(DomainError, match="EntropicCoupling: tolerance must be positive"):
        EntropicCoupling(1.0, tolerance=-1.0)
    with pytest.raises(DomainError, match="UnbalancedCoupling: penalty must be positive"):
        UnbalancedCoupling(1.0, float("inf"))
    with pytest.raises(DomainError, match="EntropicCoupling: context_weight must be 0 or more"):
        EntropicCoupling(1.0, context_weight=-1.0)
