"""Measures of paths against closed forms, and quality by steps."""

import cmath

import pytest
import torch
from torch import Generator, Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, GaussianMixture, MixtureField, MLPField
from cflow.manifold import Sphere
from cflow.ode import Euler
from cflow.samples import by_steps, path_measures
from cflow.transport import ODE, Affine, Chain

TURN = 2.0  # radians


def flow_of(velocity, **options) -> Flow:
    return Flow(Gaussian(2), ODE(FunctionField(velocity)), **options)


def rotation(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
    return TURN * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_a_constant_field_is_straight_and_costs_its_square() -> None:
    flow = flow_of(lambda t, x, c: torch.tensor([3.0, 4.0]).expand_as(x))
    found = path_measures(flow, 7)
    assert torch.allclose(found.costs, torch.full((7,), 25.0))
    assert found.straightness < 1e-28
    assert torch.allclose(found.energy, torch.tensor(25.0))
    assert found.standard_errors["transport_cost"] < 1e-12


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_a_rotation_measures_as_its_polygon_does(steps: int) -> None:
    """Euler multiplies by q = 1 + i w / n: |v_k|^2 = w^2 |q|^2k r^2, |x1 - x0|^2 = |q^n - 1|^2 r^2.

    With many steps these are w^2 r^2 and (2 - 2 cos w) r^2.
    """
    x0 = torch.randn(20, 2)
    square = x0.square().sum(1)
    found = path_measures(flow_of(rotation), x0, steps=steps)
    q = 1 + 1j * TURN / steps
    energy = sum(TURN**2 * abs(q) ** (2 * k) for k in range(steps)) / steps
    cost = abs(q**steps - 1) ** 2
    assert torch.allclose(found.costs, cost * square, rtol=1e-12)
    assert torch.allclose(found.energies, energy * square, rtol=1e-12)
    assert torch.allclose(found.bends, (energy - cost) * square, rtol=1e-12, atol=1e-12)
    fine = path_measures(flow_of(rotation), x0, steps=2000)
    chord = abs(cmath.exp(1j * TURN) - 1) ** 2
    assert torch.allclose(fine.bends, (TURN**2 - chord) * square, rtol=5e-3)


def test_a_nearly_straight_path_keeps_its_digits_in_float32() -> None:
    """v = 1000 + 0.01 t: the variance of t over n steps is (1 - 1/n^2) / 12."""
    flow = flow_of(lambda t, x, c: (1000 + 0.01 * t)[:, None].expand_as(x))
    x0 = torch.zeros(1, 2, dtype=torch.float32)
    found = path_measures(flow, x0, steps=10).straightness
    assert found.dtype == torch.float32
    # Velocities and their mean are rounded to 6e-5, which is 2 percent of their spread of 2.9e-3;
    # energy and cost are rounded to 0.1, so that their difference would say nothing.
    assert found.item() == pytest.approx(2 * 1e-4 * 0.99 / 12, rel=0.1)


def test_the_parts_before_count_and_those_after_do_not() -> None:
    shift = ODE(FunctionField(lambda t, x, c: x))
    flow = Flow(Gaussian(2), Chain(Chain(Affine(2.0), shift), Affine(10.0)))
    found = path_measures(flow, 50, steps=1, generator=Generator().manual_seed(0))
    x0 = 2 * flow.base.sample((50,), generator=Generator().manual_seed(0))
    assert torch.allclose(found.costs, x0.square().sum(1))


def test_batches_and_contexts_change_nothing_but_the_memory() -> None:
    flow = flow_of(lambda t, x, c: c * x.flip(1), context_shape=(1,)).eval()
    x0, context = torch.randn(20, 2), torch.rand(20, 1)
    whole = path_measures(flow, x0, context=context, steps=5)
    parts = path_measures(flow, x0, context=context, steps=5, batch=3)
    assert torch.equal(whole.bends, parts.bends)
    zero = path_measures(flow, x0, context=0 * context, steps=5)
    assert zero.energy == 0


def test_an_exact_field_moves_mass_no_further_than_the_pairs_it_comes_from() -> None:
    """E |x1 - x0|^2 of independent pairs is |m|^2 + tr(S0) + tr(S1); rectification lowers it.

    By six standard errors at least, which chance does below 1e-8 of the time if they were equal.
    """
    source = GaussianMixture(torch.zeros(1, 2))
    target = GaussianMixture(torch.tensor([[2.0, 1.0], [-2.0, 1.0], [0.0, -2.0]]), 0.3)
    flow = Flow(Gaussian(2), ODE(MixtureField(source, target)))
    found = path_measures(flow, 2000, steps=50)
    independent = target.mean.square().sum() + source.covariance.trace() + target.covariance.trace()
    assert found.transport_cost + 6 * found.standard_errors["transport_cost"] < independent
    assert found.straightness > 6 * found.standard_errors["straightness"]


def test_quality_by_steps_starts_from_the_same_noise() -> None:
    flow = flow_of(lambda t, x, c: x)
    drawn = by_steps(flow, lambda x: x, n=30, steps=(1, 2, 8), batch=7)
    for k, x in drawn.items():  # Euler multiplies by (1 + 1/k)^k
        assert torch.allclose(x / (1 + 1 / k) ** k, drawn[1] / 2)
    again = [
        by_steps(flow, lambda x: x, n=5, generator=Generator().manual_seed(3)) for _ in range(2)
    ]
    assert again[0].keys() == {1, 2, 4, 8, 100}
    assert all(torch.equal(again[0][k], again[1][k]) for k in again[0])
    assert not torch.equal(by_steps(flow, lambda x: x, n=5)[1], again[0][1])
    assert flow.transport.solver != Euler(1)


def test_what_cannot_be_measured_is_refused() -> None:
    flow = Flow(Gaussian(2), ODE(MLPField(2)))
    conditional = flow_of(rotation, context_shape=(1,))
    with pytest.raises(DomainError, match="exactly one ODE, by itself or in a chain, found 0"):
        path_measures(Flow(Gaussian(2), Affine(2.0)), 5)
    sphere = Flow(Gaussian(3), ODE(MLPField(3), manifold=Sphere()))
    with pytest.raises(DomainError, match="lines in flat space are, got an ODE on Sphere"):
        path_measures(sphere, 5)
    with pytest.raises(DomainError, match="steps must be a whole number"):
        path_measures(flow, 5, steps=0)
    with pytest.raises(DomainError, match="n must be a whole number"):
        path_measures(flow, torch.zeros(0, 2))
    with pytest.raises(DomainError, match="give a context where the flow takes one"):
        path_measures(conditional, 5)
    with pytest.raises(ShapeError, match="one condition for each of the 5 paths, got 4"):
        path_measures(conditional, 5, context=torch.zeros(4, 1))
    with pytest.raises(DomainError, match="one number of steps at least"):
        by_steps(flow, lambda x: x, n=5, steps=())
    with pytest.raises(DomainError, match=r"steps\[1\] must be a whole number"):
        by_steps(flow, lambda x: x, n=5, steps=(1, 0))
