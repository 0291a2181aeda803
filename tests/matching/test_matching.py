"""Paths, couplings and the loss: marginals kept, seeds obeyed, the regression target right."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare
from torch import Tensor

from cflow import State
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, MLPField
from cflow.matching import (
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    euler_times,
    matching,
    reflow_pairs,
)
from cflow.ode import Euler, Heun
from cflow.transport import ODE

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


def test_linear_path_is_a_line_and_its_target_the_derivative() -> None:
    x0, x1, t = torch.randn(5, 2, 2), torch.randn(5, 2, 2), torch.rand(5)
    point = LinearPath().sample(x0, x1, t)
    assert torch.equal(LinearPath().sample(x0, x1, torch.zeros(5)).x, x0)
    assert torch.equal(LinearPath().sample(x0, x1, torch.ones(5)).x, x1)
    _, slope = torch.func.jvp(
        lambda s: LinearPath().sample(x0, x1, s).x, (t,), (torch.ones_like(t),)
    )
    assert torch.allclose(point.target, slope)
    with pytest.raises(DomainError, match=r"must lie in \[0, 1\]"):
        LinearPath().sample(x0, x1, t + 1)
    with pytest.raises(ShapeError, match="one shape"):
        LinearPath().sample(x0, x1[:4], t)


def test_the_conditional_mean_of_the_target_is_the_marginal_velocity() -> None:
    """Between N(0, 1) and N(m, s^2) the velocity is known; regression must find it.

    v(t, x) = m + (t s^2 - (1 - t)) (x - t m) / ((1 - t)^2 + t^2 s^2). A straight line fitted to
    n targets has standard errors of about 2 / sqrt(n); 6 of them fail by chance below 1e-8.
    """
    n, m, s = 200_000, 2.0, 0.5
    x0, x1 = torch.randn(n, 1), m + s * torch.randn(n, 1)
    for t in (0.0, 0.3, 0.9):
        point = LinearPath().sample(x0, x1, torch.full((n,), t))
        variance = (1 - t) ** 2 + t**2 * s**2
        design = torch.cat([torch.ones(n, 1), (point.x - t * m) / variance**0.5], dim=1)
        fit = torch.linalg.lstsq(design, point.target).solution[:, 0]
        expected = torch.tensor([m, (t * s**2 - (1 - t)) / variance**0.5])
        assert torch.allclose(fit, expected, atol=6 * 2 / n**0.5)


def test_matching_is_the_mean_square_error_and_the_context_follows_its_target() -> None:
    x1 = torch.arange(6.0)[:, None]
    context = x1.clone()
    seen = {}

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.update(t=t, x=x, c=c)
        return torch.zeros_like(x)

    x0 = torch.randn(6, 1)
    t = torch.ones(6)
    losses = matching(field, LinearPath(), OTCoupling(), x1, x0=x0, context=context, t=t)
    assert losses.shape == (6,)
    assert torch.equal(seen["x"], seen["c"])  # at t = 1 the point is its target
    assert torch.allclose(losses.sum(), (x1.sort(0)[0] - x0.sort(0)[0]).square().sum())
    with pytest.raises(ShapeError, match="must return the shape of x"):
        matching(lambda t, x, c: x[:, :0], LinearPath(), OTCoupling(), x1)


def test_one_generator_reproduces_the_loss() -> None:
    field, x1 = MLPField(2), torch.randn(32, 2)
    draw = lambda seed: matching(
        field, LinearPath(), OTCoupling(), x1, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_reflow_pairs_are_the_ends_of_the_field() -> None:
    ode = ODE(FunctionField(lambda t, x, c: x if c is None else x * c), Heun(30))
    x0, x1 = reflow_pairs(Gaussian(2), ode, 50, batch=7)
    assert torch.allclose(x1, torch.e * x0, rtol=1e-3)
    context = torch.arange(50.0)[:, None] / 50
    a, b = reflow_pairs(Gaussian(2), ode, 50, batch=7, context=context)
    assert torch.allclose(b, a * context.exp(), rtol=1e-3)
    assert not b.requires_grad
    with pytest.raises(DomainError, match="must be positive"):
        reflow_pairs(Gaussian(2), ode, 0)


def test_perfect_distillation_makes_euler_exact() -> None:
    """On pairs x1 = x0 + 3 the velocity is 3 everywhere: one step equals any number."""
    t = euler_times(1000, 4, like=torch.zeros(1))
    assert sorted(set(t.tolist())) == [0.0, 0.25, 0.5, 0.75]
    field = FunctionField(lambda t, x, c: torch.full_like(x, 3.0))
    x0 = torch.randn(1000, 1)
    loss = matching(field, LinearPath(), PairedCoupling(), x0 + 3, x0=x0, t=t)
    assert loss.max() < 1e-20
    assert torch.allclose(ODE(field, Euler(1)).push(State(x0)).x, x0 + 3)
