"""Couplings: one contract, marginals kept, seeds obeyed, exact plans exact."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.stats import chi2, chisquare
from torch import Tensor

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.manifold import Euclidean, Sphere
from cflow.matching import (
    EntropicCoupling,
    GeodesicCost,
    IndependentCoupling,
    OTCoupling,
    PairedCoupling,
    PartialCoupling,
    PlanCoupling,
    SquaredEuclidean,
    UnbalancedCoupling,
)

ONE_TO_ONE = [
    IndependentCoupling(),
    PairedCoupling(),
    OTCoupling(),
    OTCoupling(solver="simplex"),
    OTCoupling(solver="assignment"),
    PartialCoupling(mass=1.0),
]
PLANS = [
    OTCoupling(solver="simplex"),
    OTCoupling(solver="assignment"),
    EntropicCoupling(reg=0.5),
    UnbalancedCoupling(reg=0.5, penalty=5.0),
    PartialCoupling(mass=0.75),
]
name = lambda coupling: type(coupling).__name__
every = pytest.mark.parametrize("coupling", [*ONE_TO_ONE[:2], *PLANS], ids=name)
plans = pytest.mark.parametrize("coupling", PLANS, ids=name)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_program(cost: Tensor, a: Tensor, b: Tensor, mass: float = 1.0) -> float:
    """Return the least cost of moving the mass, by a solver that shares nothing with ours."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    result = linprog(
        cost.numpy().ravel(),
        A_ub=np.vstack([rows, columns]),
        b_ub=np.concatenate([a.numpy(), b.numpy()]) + 1e-12,
        A_eq=np.ones((1, n * m)),
        b_eq=[mass],
    )
    return result.fun


def masses(n: int) -> Tensor:
    mass = torch.rand(n) + 0.1
    return mass / mass.sum()


@pytest.mark.parametrize("coupling", ONE_TO_ONE, ids=name)
def test_every_source_and_every_target_is_used_once(coupling) -> None:
    pairs = coupling(torch.randn(256, 2, 3), torch.randn(256, 2, 3))
    assert sorted(pairs.i.tolist()) == list(range(256))
    assert sorted(pairs.j.tolist()) == list(range(256))
    assert pairs.weight is None


@pytest.mark.parametrize("coupling", PLANS[2:4], ids=name)
def test_every_target_is_used_once_where_sources_are_drawn(coupling) -> None:
    pairs = coupling(torch.randn(256, 2), torch.randn(256, 2))
    assert pairs.j.tolist() == list(range(256))


@every
def test_one_generator_decides_the_pairs(coupling) -> None:
    x0, x1 = torch.randn(64, 2), torch.randn(64, 2)
    draw = lambda: coupling(x0, x1, generator=seeded(3)).i
    np.random.seed(0)  # noqa: NPY002  the generator that must not matter
    first = draw()
    np.random.seed(1)  # noqa: NPY002
    torch.rand(7)
    assert torch.equal(first, draw())


@every
def test_images_and_single_precision_are_followed(coupling) -> None:
    x0, x1 = torch.randn(12, 3, 4, 4), torch.randn(12, 3, 4, 4, requires_grad=True)
    before = x0.clone()
    double = coupling(x0, x1, generator=seeded(0))
    single = coupling(x0.float(), x1.float(), generator=seeded(0))
    flat = coupling(x0.flatten(1), x1.flatten(1), generator=seeded(0))
    assert torch.equal(double.i, single.i)
    assert torch.equal(double.i, flat.i)
    assert torch.equal(x0, before)
    assert single.weight is None or single.weight.dtype == torch.float32


@every
def test_bad_input_is_refused(coupling) -> None:
    x = torch.randn(4, 2)
    with pytest.raises(ShapeError, match="one event shape"):
        coupling(x, torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="none may be empty"):
        coupling(torch.zeros(0, 2), x)
    with pytest.raises(ShapeError, match=r"context must hold one .* 4 targets, got shape \(3,\)"):
        coupling(x, x, torch.zeros(3))
    with pytest.raises(ShapeError, match=r"source_context must hold one .* 4 sources"):
        coupling(x, x, torch.zeros(4), source_context=torch.zeros(5, 1))
    with pytest.raises(ShapeError, match=r"weights of the 4 targets must have shape \(4,\)"):
        coupling(x, x, weights=(None, torch.full((3,), 1 / 3)))
    with pytest.raises(DomainError, match="sources must not be negative and must sum to one"):
        coupling(x, x, weights=(torch.tensor([0.5, 0.5, 0.5, -0.5]), None))
    with pytest.raises(DomainError, match=r"sum 0\.8; divide them by their sum"):
        coupling(x, x, weights=(None, torch.full((4,), 0.2)))
    with pytest.raises(DomainError, match=r"sum 1\.00004; divide"):
        coupling(x, x, weights=(None, torch.full((4,), 0.25001)))
    with pytest.raises(DomainError, match="weights of the targets must be finite, got nan"):
        coupling(x, x, weights=(None, torch.full((4,), torch.nan)))


@plans
def test_points_and_costs_that_are_not_finite_are_refused(coupling) -> None:
    bad = torch.zeros(4, 2)
    bad[1, 0] = torch.nan
    with pytest.raises(DomainError, match=r"x0 must be finite, got nan at index \(1, 0\)"):
        coupling(bad, torch.randn(4, 2))
    with pytest.raises(DomainError, match="x1 must be finite, got inf"):
        coupling(torch.randn(4, 2), bad.nan_to_num(torch.inf))
    endless = lambda a, b: torch.full((len(a), len(b)), torch.inf)
    if isinstance(coupling, OTCoupling):
        with pytest.raises(DomainError, match="cost of 16 of 16 pairs is not finite; to forbid"):
            OTCoupling(cost=endless)(torch.randn(4, 2), torch.randn(4, 2))
        with pytest.raises(ShapeError, match=r"shape \(4, 4\), got \(4, 2\)"):
            OTCoupling(cost=lambda a, b: a - b)(torch.randn(4, 2), torch.randn(4, 2))


def test_paired_coupling_needs_equal_sizes_and_masses() -> None:
    with pytest.raises(ShapeError, match="as many sources as targets, got 3 and 4"):
        PairedCoupling()(torch.zeros(3, 1), torch.zeros(4, 1))
    mass = torch.tensor([0.25, 0.75])
    with pytest.raises(DomainError, match=r"source k goes to target k.* by up to 0.25"):
        PairedCoupling()(torch.zeros(2, 1), torch.zeros(2, 1), weights=(None, mass))
    pairs = PairedCoupling()(torch.zeros(2, 1), torch.zeros(2, 1), weights=(mass, mass))
    assert pairs.weight is not None
    assert torch.allclose(pairs.weight, 2 * mass)


def test_independent_coupling_keeps_both_marginals() -> None:
    """Chi-square over 40 000 pairs, false alarm 1e-6 each."""
    i, j, _ = IndependentCoupling()(torch.zeros(4, 1), torch.zeros(40_000, 1))
    assert j.tolist() == list(range(40_000))
    assert chisquare(torch.bincount(i, minlength=4).numpy()).pvalue > 1e-6
    a, b = torch.tensor([0.1, 0.2, 0.7]), masses(40_000)
    pairs = IndependentCoupling()(torch.zeros(3, 1), torch.zeros(40_000, 1), weights=(a, b))
    counts = torch.bincount(pairs.i, minlength=3)
    assert chisquare(counts.numpy(), 40_000 * a.numpy()).pvalue > 1e-6
    assert pairs.weight is not None
    assert torch.allclose(pairs.weight / 40_000, b)


class Fixed(PlanCoupling):
    """Returns one plan, whatever the points: two targets with mass, one without."""

    TABLE = torch.tensor([[0.1, 0.0, 0.2], [0.0, 0.0, 0.3], [0.2, 0.0, 0.0]])

    def _solve(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        return self.TABLE.double()


@pytest.mark.parametrize("replace", [False, True])
def test_pairs_are_drawn_from_the_plan(replace: bool) -> None:
    """500 draws of the whole plan or of each column, chi-square, false alarm 1e-6."""
    coupling, x, generator = Fixed(replace=replace), torch.zeros(3, 1), seeded(1)
    count, plan = torch.zeros(3, 3), Fixed.TABLE.double()
    for _ in range(500):
        i, j, weight = coupling(x, x, generator=generator)
        count.index_put_((i, j), torch.ones(len(i)), accumulate=True)
        if replace:
            assert weight is None
        else:
            assert j.tolist() == [0, 2]
            assert weight is not None
            assert torch.allclose(weight, torch.tensor([0.75, 1.25]))
    expected = 1500 * plan / plan.sum() if replace else (500 * plan / plan.sum(0)).nan_to_num()
    assert bool((count[expected == 0] == 0).all())
    statistic = ((count - expected).square() / expected)[expected > 0].sum().item()
    assert chi2.sf(statistic, 3 if replace else 2) > 1e-6


def test_a_plan_without_mass_is_refused() -> None:
    far = UnbalancedCoupling(reg=0.1, penalty=0.1)
    with pytest.raises(SolverError, match="UnbalancedCoupling: the plan moves no mass"):
        far(torch.zeros(3, 1), torch.full((3, 1), 1e3))


@plans
def test_plans_keep_the_marginals_that_they_promise(coupling) -> None:
    a, b = masses(40), masses(30)
    plan = coupling.plan(torch.randn(40, 2), torch.randn(30, 2), weights=(a, b))
    assert bool((plan >= 0).all())
    if isinstance(coupling, PartialCoupling):
        assert plan.sum().item() == pytest.approx(0.75, abs=1e-12)
        assert bool((plan.sum(1) < a + 1e-12).all())
        assert bool((plan.sum(0) < b + 1e-12).all())
    elif not isinstance(coupling, UnbalancedCoupling):
        assert torch.allclose(plan.sum(0), b, atol=1e-12)
        assert (plan.sum(1) - a).abs().sum() <= 1e-5


@pytest.mark.parametrize("solver", ["auto", "simplex", "assignment"])
@pytest.mark.parametrize("n", [1, 2, 50, 200])
def test_ot_finds_the_cheapest_assignment(n: int, solver) -> None:
    x0, x1 = torch.randn(n, 3), 2 + torch.randn(n, 3)
    i, j, _ = OTCoupling(solver=solver)(x0, x1)
    cost = torch.cdist(x0, x1).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost[torch.from_numpy(rows), torch.from_numpy(columns)].sum()
    assert torch.allclose(cost[i, j].sum(), best)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6])
def test_ot_does_not_depend_on_the_unit_of_length(scale: float) -> None:
    """The simplex compares with an absolute tolerance: unscaled it shuffles close points."""
    x0, x1 = torch.randn(128, 2), torch.randn(128, 2)
    for solver in ("simplex", "assignment"):
        coupling = OTCoupling(solver=solver)
        assert torch.equal(coupling(x0, x1).i, coupling(scale * x0, scale * x1).i)


def test_ot_with_other_sizes_and_masses_solves_the_linear_program() -> None:
    for n, m in ((6, 9), (8, 8)):
        x0, x1, a, b = torch.randn(n, 2), torch.randn(m, 2), masses(n), masses(m)
        cost = torch.cdist(x0, x1).square()
        found = (OTCoupling().plan(x0, x1, weights=(a, b)) * cost).sum().item()
        assert found == pytest.approx(linear_program(cost, a, b), rel=1e-8)


def test_ot_is_a_permutation_among_equal_points_too() -> None:
    for solver in ("simplex", "assignment"):
        i, _, _ = OTCoupling(solver=solver)(torch.zeros(60, 2), torch.ones(60, 2))
        assert sorted(i.tolist()) == list(range(60))


def test_ot_pairs_approach_the_affine_map_between_gaussians() -> None:
    """From N(0, I) to N(m, S): x1 = m + S^(1/2) x0, with the error falling as the pool grows."""
    root, mean = torch.tensor([[1.5, 0.5], [0.5, 0.75]]), torch.tensor([3.0, -1.0])
    errors = []
    for n in (32, 128, 512):
        runs = []
        for _ in range(8 if n < 512 else 3):
            x0, x1 = torch.randn(n, 2), mean + torch.randn(n, 2) @ root
            i, j, _ = OTCoupling()(x0, x1)
            runs.append((x1[j] - mean - x0[i] @ root).square().sum(1).mean())
        errors.append(torch.stack(runs).mean().item())
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[2] < 0.06 * (root @ root).trace()  # an independent pair has 2 traces


@pytest.mark.parametrize("shape", [(3,), (2, 20)])
def test_squared_distances_keep_their_digits_far_from_the_origin(shape: tuple[int, ...]) -> None:
    x0, x1 = 1e6 + torch.randn(9, *shape), 1e6 + torch.randn(7, *shape)
    exact = (x0[:, None] - x1[None]).square().flatten(2).sum(2)
    assert torch.allclose(SquaredEuclidean()(x0, x1), exact, rtol=1e-8)
    half = SquaredEuclidean()(torch.ones(2, 3).bfloat16(), torch.zeros(2, 3).bfloat16())
    assert half.dtype == torch.float64


def test_any_cost_and_any_manifold() -> None:
    on_sphere = lambda n: torch.nn.functional.normalize(torch.randn(n, 3), dim=1)
    x0, x1 = on_sphere(40), on_sphere(40)
    angle = torch.acos((x0 @ x1.T).clamp(-1, 1))
    assert torch.allclose(GeodesicCost(Sphere())(x0, x1), angle.square(), atol=1e-6)
    assert torch.allclose(GeodesicCost(Sphere(), power=1.0)(x0, x1), angle, atol=1e-6)
    i, j, _ = OTCoupling(cost=GeodesicCost(Sphere()))(x0, x1)
    rows, columns = linear_sum_assignment(angle.square().numpy())
    best = angle.square()[torch.from_numpy(rows), torch.from_numpy(columns)].sum()
    assert torch.allclose(angle.square()[i, j].sum(), best)
    images = torch.randn(5, 3, 2, 2), torch.randn(6, 3, 2, 2)
    ours = GeodesicCost(Euclidean(ndim=3))(*images)
    assert torch.allclose(ours, SquaredEuclidean()(*images))
    by_name = OTCoupling(cost=lambda a, b: (a - b.T).abs())
    assert by_name(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])).i.tolist() == [1, 0]
    with pytest.raises(DomainError, match="GeodesicCost: power must be positive"):
        GeodesicCost(Sphere(), power=-1.0)


def test_context_weights_are_checked() -> None:
    for weight in (-1.0, math.nan):
        with pytest.raises(DomainError, match="OTCoupling: context_weight must be 0 or more"):
            OTCoupling(context_weight=weight)
