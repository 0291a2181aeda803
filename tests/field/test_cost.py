"""Regularisers against closed forms on linear fields, dx/dt = A x."""

import pytest
import torch
from torch import Tensor

from cflow import Flow, nll
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.field import (
    Analytic,
    CostSum,
    Exact,
    FunctionField,
    Hutchinson,
    JacobianNorm,
    KineticEnergy,
    TwoLayerField,
)
from cflow.ode import RK4, Checkpoint, Direct, Dopri5
from cflow.state import tracked
from cflow.transport import ODE

A = torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=torch.float64)


def linear(cost, divergence=None, solver=None) -> ODE:
    field = FunctionField(lambda t, x, context: x @ A.T)
    return ODE(field, RK4(20) if solver is None else solver, divergence=divergence, cost=cost)


def kinetic(x: Tensor) -> Tensor:
    """Integrate |A e^(tA) x|^2 / 2 over [0, 1] by Gauss's rule with 20 nodes."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = (torch.from_numpy(a) for a in leggauss(20))
    total = torch.zeros(len(x))
    for node, weight in zip(nodes, weights, strict=True):
        speed = x @ (A @ torch.matrix_exp(A * (node + 1) / 2)).T
        total += weight / 2 * speed.square().sum(-1) / 2
    return total


@pytest.mark.parametrize("solver", [RK4(20), Dopri5(1e-8, 1e-8)], ids=str)
def test_costs_integrate_to_their_closed_forms_in_both_directions(solver) -> None:
    x = torch.randn(6, 2)
    energy, norm = KineticEnergy(0.5), JacobianNorm(0.25)
    expected = 0.5 * kinetic(x), 0.25 * A.square().sum().expand(6)
    for cost, value in (
        (energy, expected[0]),
        (norm, expected[1]),
        (CostSum((energy, norm)), expected[0] + expected[1]),
    ):
        ode = linear(cost, solver=solver)
        there = ode.push(tracked(x))
        back = ode.pull(tracked(there.x))
        assert torch.allclose(there.cost, value, rtol=1e-6)
        assert torch.allclose(back.cost, value, rtol=1e-6)  # positive in this direction as well


@pytest.mark.parametrize("adjoint", [Direct(), Checkpoint()], ids=str)
def test_random_probes_estimate_the_jacobian_norm(adjoint) -> None:
    """The mean of 4000 solves lies 6 standard errors off by chance below 2e-9."""
    ode = linear(JacobianNorm(), Hutchinson(), RK4(2))
    ode.adjoint = adjoint
    costs = ode.push(tracked(torch.zeros(4000, 2))).cost
    assert abs(costs.mean() - A.square().sum()) < 6 * costs.std() / 4000**0.5
    assert costs.std() > 0.05


def test_evaluation_mode_charges_nothing() -> None:
    flow = Flow(Gaussian(2), linear(JacobianNorm(0.1)))
    x = torch.randn(5, 2)
    trained = nll(flow, x)
    flow.eval()
    assert flow.pull_state(x)[0].cost is None
    assert torch.allclose(trained - nll(flow, x), 0.1 * A.square().sum())
    assert torch.allclose(nll(flow, x), -flow.log_prob(x))


def test_a_closed_form_has_no_norm_to_charge() -> None:
    ode = ODE(TwoLayerField(2), RK4(2), cost=JacobianNorm())
    assert ode.divergence == Analytic()
    with pytest.raises(DomainError, match=r"no Frobenius norm.*Exact\(\) or Hutchinson\(\)"):
        ode.push(tracked(torch.zeros(1, 2)))
    ode.eval().push(tracked(torch.zeros(1, 2)))
    ODE(TwoLayerField(2), RK4(2), cost=JacobianNorm(), divergence=Exact()).push(
        tracked(torch.zeros(1, 2))
    )


@pytest.mark.unchecked
def test_a_sum_needs_costs() -> None:
    for wrong in ((), (KineticEnergy(), 3)):
        with pytest.raises(DomainError, match="needs one cost or more"):
            CostSum(wrong)
