"""Options of the ODE: steered end times, counted evaluations, another way of solving."""

import pytest
import torch
from torch import Tensor

from cflow import Flow, State, recipes, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.field import (
    Exact,
    FunctionField,
    GatedField,
    Hutchinson,
    JacobianNorm,
    KineticEnergy,
    MLPField,
    TwoLayerField,
)
from cflow.ode import RK4, Backsolve, Checkpoint, Direct, Dopri5, Euler
from cflow.transport import ODE, Affine, Chain, Inverse


def decay(steer: float = 0.0, solver=None) -> ODE:
    field = FunctionField(lambda t, x, context: x)
    return ODE(field, RK4(20) if solver is None else solver, steer=steer)


def test_steered_pulls_end_at_uniform_times() -> None:
    """x' = x from t = 1 back to t_end gives log x = t_end - 1, so the end times can be read off.

    Kolmogorov's distance of 4000 uniform draws exceeds 0.031 by chance at about 1e-3; the seed is
    fixed.
    """
    ode, half = decay(0.4), 0.4
    state = ode.pull(tracked(torch.ones(4000, 1)), generator=torch.Generator().manual_seed(0))
    ends = 1 + state.x[:, 0].log()
    assert torch.allclose(state.ladj, ends - 1, atol=1e-6)
    assert ends.abs().max() <= half + 1e-6
    ranks = (ends.sort().values + half) / (2 * half)
    assert (ranks - torch.linspace(0, 1, 4000)).abs().max() < 0.031
    again = ode.pull(tracked(torch.ones(4000, 1)), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.x, state.x)


@pytest.mark.parametrize("solver", [RK4(20), Dopri5(1e-9, 1e-9)], ids=str)
def test_only_tracked_pulls_in_training_are_steered(solver) -> None:
    ode, x = decay(0.4, solver), torch.ones(50, 1)
    shrunk, grown = torch.full((50, 1), torch.e).pow(-1), torch.full((50, 1), torch.e)
    assert torch.allclose(ode.push(tracked(x)).x, grown, atol=1e-6)
    assert torch.allclose(ode.pull(State(x)).x, shrunk, atol=1e-6)
    assert ode.pull(tracked(x)).x.std() > 0.01
    ode.eval()
    assert torch.allclose(ode.pull(tracked(x)).x, shrunk, atol=1e-6)


def test_steering_reaches_any_batch_axes_contexts_and_costs() -> None:
    field = MLPField(2, 3, hidden_features=(8,))
    ode = ODE(field, RK4(4), steer=0.2, cost=KineticEnergy(), divergence=Hutchinson())
    for batch in ((), (0,), (4,), (2, 3)):
        x, context = torch.randn(*batch, 2), torch.randn(*batch, 3)
        state = ode.pull(tracked(x), context)
        assert state.ladj.shape == state.cost.shape == batch
        assert bool((state.cost >= 0).all())


def test_steering_by_an_instant_or_more_is_refused() -> None:
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(DomainError, match=r"steer must lie in \[0, 1\)"):
            decay(wrong)


def test_evaluations_count_every_row_in_both_passes() -> None:
    ode = ODE(MLPField(2, hidden_features=(8,)), RK4(5))
    state = ode.push(tracked(torch.randn(7, 2)))
    assert ode.evaluations == 7 * 20 == int(state.nfe.sum())
    state.ladj.sum().backward()
    assert ode.evaluations == 7 * 20  # Direct keeps the graph: nothing runs again
    ode.trajectory(torch.randn(3, 2), [0.0, 0.5, 1.0])
    assert ode.evaluations > 140
    assert "evaluations" not in "".join(ode.state_dict())


def test_evaluations_of_an_adaptive_solve_are_those_it_reports() -> None:
    ode = ODE(TwoLayerField(2, hidden_features=(8, 8)), Dopri5(1e-6, 1e-6))
    torch.nn.init.normal_(ode.field.last.weight)
    state = ode.push(tracked(torch.randn(40, 2)))
    assert int(state.nfe.sum()) <= ode.evaluations <= 1.05 * int(state.nfe.sum()) + 40
    assert state.nfe.unique().numel() > 1


def trained_on_estimates(x: Tensor) -> Flow:
    flow = recipes.cnf(3, hidden_features=(8,), solver=RK4(4), divergence=Hutchinson())
    torch.nn.init.normal_(flow.transport.field.net.last.weight)
    return flow


def test_a_flow_trained_on_estimates_is_evaluated_exactly() -> None:
    x = torch.randn(5, 3)
    flow = trained_on_estimates(x)
    exact = flow.with_solver(divergence=Exact())
    assert (flow.likelihood, exact.likelihood) == ("estimate", "exact")
    assert exact.transport.solver == RK4(4)
    assert torch.equal(exact.log_prob(x), exact.log_prob(x))
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    mean, error = flow.log_prob_with_error(x, repeats=500)
    assert bool((mean - exact.log_prob(x)).abs().lt(6 * error).all())


def test_what_is_not_named_stays_and_modes_are_kept() -> None:
    ode = ODE(MLPField(2), Euler(3), divergence=Hutchinson(2), cost=KineticEnergy(0.5), steer=0.25)
    flow = Flow(Gaussian(2), Chain(Affine(2.0), Inverse(ode))).eval()
    ode.field.train()
    again = flow.with_solver(RK4(2), adjoint=Direct())
    inner = again.transport[1].transport
    assert (inner.solver, inner.divergence, inner.steer) == (RK4(2), Hutchinson(2), 0.25)
    assert inner.cost == KineticEnergy(0.5)
    assert inner.field is ode.field
    assert not again.training
    assert not inner.training
    assert ode.field.training  # shared modules are left alone
    assert flow.with_solver().transport[1].transport.solver == Euler(3)


ADJOINTS = [
    pytest.param(Checkpoint(), RK4(8), 1e-12, id="checkpoint, rk4"),
    pytest.param(Checkpoint(), Dopri5(1e-5, 1e-5), 1e-12, id="checkpoint, dopri5"),
    pytest.param(Backsolve(), RK4(24), 1e-5, id="backsolve, rk4"),
    pytest.param(Backsolve(), Dopri5(1e-8, 1e-8), 1e-6, id="backsolve, dopri5"),
]
TRACKED = [
    pytest.param(
        lambda: TwoLayerField(2, hidden_features=(6, 6)), None, KineticEnergy(), id="analytic"
    ),
    pytest.param(
        lambda: GatedField(2, hidden_features=(6, 6)), Exact(), JacobianNorm(), id="exact"
    ),
    pytest.param(
        lambda: GatedField(2, hidden_features=(6, 6)), Exact(chunk=1), None, id="exact, chunked"
    ),
    pytest.param(
        lambda: GatedField(2, hidden_features=(6, 6)),
        Hutchinson(2),
        KineticEnergy(),  # checkpointing has another random estimate of the Jacobian's norm
        id="hutchinson",
    ),
]


@pytest.mark.parametrize(("adjoint", "solver", "tolerance"), ADJOINTS)
@pytest.mark.parametrize(("build", "divergence", "cost"), TRACKED)
def test_every_adjoint_takes_tracked_steered_pulls(
    build, divergence, cost, adjoint, solver, tolerance
) -> None:
    """Gradients of the likelihood and its cost are those of the steps, and backward is counted."""
    field = build()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x, gradients = torch.randn(6, 2), []
    for way in (Direct(), adjoint):
        ode = ODE(field, solver, divergence=divergence, cost=cost, adjoint=way, steer=0.2)
        points = x.clone().requires_grad_()
        state = ode.pull(tracked(points), generator=torch.Generator().manual_seed(1))
        forward, value = ode.evaluations, state.x.square().sum() + state.ladj.sum()
        value = value if state.cost is None else value + state.cost.sum()
        of = [points, *field.parameters()]
        grads = torch.autograd.grad(value, of, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in grads if g is not None]))
        assert (ode.evaluations > forward) == (way != Direct())
    scale = gradients[0].abs().max()
    assert torch.allclose(gradients[1], gradients[0], rtol=0, atol=tolerance * scale)
