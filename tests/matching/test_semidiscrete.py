"""Semi-discrete transport: cells of equal mass, quantile intervals, agreement with discrete OT."""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.matching import (
    LinearPath,
    OTCoupling,
    PairPool,
    SemiDiscreteCoupling,
    fit_semidiscrete,
    matching,
)

STEPS, BATCH = 1200, 256


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def fitted(data: Tensor, source=None, **options) -> SemiDiscreteCoupling:
    options = {"steps": STEPS, "batch": BATCH, "generator": seeded()} | options
    return fit_semidiscrete(data, source, **options)


def test_cells_in_one_dimension_are_the_quantile_intervals() -> None:
    """Sources N(0, 1): the sorted targets own the intervals between the k/m quantiles."""
    data = 3 + 0.5 * torch.randn(16, 1)
    coupling = fitted(data, tolerance=0.05)
    order = data[:, 0].argsort()
    y, g = data[order, 0], coupling.potential[order]
    edges = (y[1:] + y[:-1]) / 2 - (g[1:] - g[:-1]) / (2 * (y[1:] - y[:-1]))
    share = torch.special.ndtr(edges)
    assert torch.allclose(share, torch.arange(1, 16) / 16, atol=0.01)
    x = torch.linspace(-3, 3, 1001)[:, None]
    cell = torch.searchsorted(edges, x[:, 0].contiguous())
    assert torch.equal(coupling(x, data).j, order[cell])
    mass = share.diff(prepend=torch.zeros(1), append=torch.ones(1))
    exact = (16 * (mass - 1 / 16).square().sum()).sqrt().item()
    assert coupling.imbalance == pytest.approx(exact, abs=0.015)


def test_the_imbalance_is_free_of_sampling_noise(monkeypatch) -> None:
    """The exact potential of 300 targets on a line, weighed on 20 000 sources.

    Their counts alone deviate by sqrt(300 / 20 000) = 0.12; freed of that the square of the figure
    has a standard deviation of sqrt(600) / 20 000 = 0.0012, of which 0.08 is more than five.
    """
    y = torch.randn(300).sort()[0]
    edges = torch.special.ndtri(torch.arange(1, 300) / 300)
    g = (y.diff() * (y[1:] + y[:-1] - 2 * edges)).cumsum(0)
    potential = torch.cat([torch.zeros(1), g])
    monkeypatch.setattr("cflow.matching.semidiscrete._ascend", lambda *rest: potential)
    assert fitted(y[:, None]).imbalance < 0.08


def test_every_target_is_used_as_often_within_statistical_error() -> None:
    """Chi-square on 1500 draws, to which a tolerated imbalance is invisible; false alarm 1e-6."""
    angle = torch.arange(24) * math.tau / 24
    data = 4 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.3 * torch.randn(24, 2)
    coupling = fitted(data, tolerance=0.05)
    x0 = torch.randn(1500, 2, generator=seeded(9))
    i, j, weight = coupling(x0, data)
    assert torch.equal(i, torch.arange(1500))
    assert weight is None
    assert chisquare(torch.bincount(j, minlength=24).numpy()).pvalue > 1e-6


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_it_agrees_with_discrete_transport_from_many_sources(epsilon: float) -> None:
    """The plan of 2000 sources to 12 targets, which has an error of its own of a few per cent."""
    data = torch.randn(12, 3) * torch.tensor([2.0, 1.0, 0.5]) + 1
    coupling = fitted(data, Gaussian(3), epsilon=epsilon)
    x0 = torch.randn(2000, 3, generator=seeded(5))
    j = coupling(x0, data, generator=seeded(6)).j
    cost = (x0[:, None] - data).square().sum(-1)
    plan = OTCoupling().plan(x0, data)
    ours, best = cost.gather(1, j[:, None]).mean(), (plan * cost).sum()
    if epsilon:  # the soft draw costs more, by less than epsilon times its entropy
        assert best < ours < best + epsilon * math.log(12)
        return
    assert ours == pytest.approx(best.item(), rel=0.03)
    assert (plan.argmax(1) == j).double().mean() > 0.93
    dual = (cost - coupling.potential).min(1).values.mean() + coupling.potential.mean()
    assert dual == pytest.approx(best.item(), rel=0.03)


def test_soft_draws_follow_their_law() -> None:
    """One source, three targets: P ~ b exp((g - c) / epsilon); chi-square, false alarm 1e-6."""
    data, g = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 0.3, 1.0])
    x0 = torch.full((30_000, 1), 0.5)
    for b in (None, torch.tensor([0.2, 0.5, 0.3])):
        coupling = SemiDiscreteCoupling(data, g, epsilon=0.7, mass=b)
        j = coupling(x0, data, generator=seeded()).j
        share = (torch.ones(3) / 3 if b is None else b) * (
            (g - (data[:, 0] - 0.5).square()) / 0.7
        ).exp()
        expected = 30_000 * share / share.sum()
        assert chisquare(torch.bincount(j, minlength=3).numpy(), expected.numpy()).pvalue > 1e-6


def test_masses_of_targets_are_kept() -> None:
    mass = torch.tensor([0.5, 0.3, 0.15, 0.05])
    data = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0], [5.0, 5.0]])
    for epsilon in (0.0, 0.3):
        coupling = fitted(data, mass=mass, epsilon=epsilon, tolerance=0.1)
        cells, variance = coupling.cells(draws=40_000, generator=seeded(3))
        slack = 6 * variance.sqrt() + 0.1 * mass
        assert bool(((cells - mass).abs() < slack).all())
        assert cells.sum() == pytest.approx(1.0)


def test_any_cost_and_any_event_shape() -> None:
    """A city-block cost between images of one column is that of its flat points."""

    def blocks(x0: Tensor, x1: Tensor) -> Tensor:
        return torch.cdist(x0.flatten(1), x1.flatten(1), p=1.0)

    data = torch.randn(8, 3, 2, 1, dtype=torch.float32)
    coupling = fitted(data, cost=blocks, tolerance=0.1, steps=600)
    flat = fitted(data.flatten(1), cost=blocks, tolerance=0.1, steps=600)
    assert torch.equal(coupling.potential, flat.potential)
    x0 = torch.randn(40, 3, 2, 1, dtype=torch.float32)
    j = coupling(x0, data).j
    assert torch.equal(j, (coupling.potential - blocks(x0, data).double()).argmax(1))


def test_one_generator_decides_the_fit_and_the_draws() -> None:
    data = torch.randn(10, 2)
    a, b, c = (
        fit_semidiscrete(data, steps=50, tolerance=math.inf, generator=seeded(s)) for s in (0, 0, 1)
    )
    assert torch.equal(a.potential, b.potential)
    assert a.imbalance == b.imbalance
    assert not torch.equal(a.potential, c.potential)
    soft = SemiDiscreteCoupling(data, a.potential, epsilon=1.0)
    x0 = torch.randn(50, 2)
    draw = lambda s: soft(x0, data, generator=seeded(s)).j
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_blocks_change_nothing(monkeypatch) -> None:
    data, x0 = torch.randn(10, 2), torch.randn(33, 2)
    for epsilon in (0.0, 0.4):
        coupling = SemiDiscreteCoupling(data, torch.randn(10), epsilon=epsilon)
        whole = coupling(x0, data, generator=seeded()).j
        with monkeypatch.context() as patch:
            patch.setattr("cflow.matching.semidiscrete.BLOCK", 70)
            assert torch.equal(coupling(x0, data, generator=seeded()).j, whole)


def test_it_trains_through_the_loss_and_through_a_pool() -> None:
    data, label = torch.randn(12, 2), torch.arange(12)
    coupling = fitted(data, steps=300, tolerance=0.5)
    seen = {}

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.update(x=x, c=c)
        return torch.zeros_like(x)

    x0 = torch.randn(30, 2)
    losses = matching(field, LinearPath(), coupling, data, x0=x0, context=label, t=torch.ones(30))
    assert losses.shape == (30,)
    assert torch.equal(seen["x"], data[seen["c"]])
    assert torch.equal(seen["c"], coupling(x0, data).j)
    pool = PairPool((data, label), coupling, pool=20, whole=True)
    a, b, c = next(pool.batches(20, seed=0))
    assert torch.equal(b, data[c])
    assert torch.equal(c, coupling(a, data).j)


def test_a_fit_that_did_not_converge_is_an_error_and_its_figure_is_right() -> None:
    data = 5 + torch.randn(30, 2)
    with pytest.raises(SolverError, match=r"fit did not converge, .* after 2 steps of 8 sources"):
        fit_semidiscrete(data, steps=2, batch=8, generator=seeded())
    with pytest.raises(SolverError, match="equal targets cannot share a cell"):
        fitted(torch.zeros(3, 2), steps=20)
    loose = fit_semidiscrete(data, steps=2, batch=8, tolerance=math.inf, generator=seeded())
    cells, _ = loose.cells(draws=20_000, generator=seeded(1))
    figure = (30 * (cells - 1 / 30).square().sum()).sqrt().item()
    assert loose.imbalance == pytest.approx(figure, rel=0.05)
    assert fitted(data[:1], steps=1).imbalance == 0  # one target has all


def test_bad_input_is_refused_in_words() -> None:
    data = torch.randn(5, 2)
    coupling = SemiDiscreteCoupling(data, torch.zeros(5))
    x0 = torch.randn(4, 2)
    with pytest.raises(DomainError, match="all 5 targets in their order, got 5 other points"):
        coupling(x0, data.flip(0))
    with pytest.raises(DomainError, match="got 3 other points; in a PairPool set whole=True"):
        coupling(x0, data[:3])
    with pytest.raises(DomainError, match="give them to fit_semidiscrete"):
        coupling(x0, data, weights=(None, torch.full((5,), 0.2)))
    with pytest.raises(ShapeError, match="none may be empty"):
        coupling(x0[:0], data)
    with pytest.raises(DomainError, match="x0 must be finite"):
        coupling(x0 * torch.nan, data)
    with pytest.raises(ShapeError, match=r"one number for each target, shape \(5,\), got \(4,\)"):
        SemiDiscreteCoupling(data, torch.zeros(4))
    with pytest.raises(DomainError, match="potential must be finite"):
        SemiDiscreteCoupling(data, torch.full((5,), torch.nan))
    with pytest.raises(DomainError, match="epsilon must be 0 or more"):
        SemiDiscreteCoupling(data, torch.zeros(5), epsilon=-1.0)
    with pytest.raises(DomainError, match="draws must be 2 or more, got 1"):
        coupling.cells(draws=1)
    for wrong in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(DomainError, match="must be positive"):
            fitted(data, **wrong)
    with pytest.raises(DomainError, match="epsilon must be 0 or more"):
        fitted(data, epsilon=math.inf)
    with pytest.raises(ShapeError, match="the data is empty"):
        fitted(data[:0])
    with pytest.raises(DomainError, match="data must be finite"):
        fitted(data * torch.nan)
    with pytest.raises(DomainError, match="must sum to one"):
        fitted(data, mass=torch.ones(5))
    with pytest.raises(DomainError, match="a target has no mass"):
        fitted(data, mass=torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]))
    with pytest.raises(ShapeError, match="sources must have the shape of the targets"):
        fitted(data, Gaussian(3))
