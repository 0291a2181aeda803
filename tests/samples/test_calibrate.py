"""Calibration: what it measures is the error, what it chooses is better, and it says so."""

import pytest
import torch
from torch import Generator, Tensor

from cflow import Flow, recipes
from cflow.base import Gaussian, ManifoldUniform
from cflow.errors import DomainError
from cflow.field import FunctionField
from cflow.manifold import Sphere
from cflow.ode import RK4, Dopri5, Euler, Heun, Midpoint, Tuned
from cflow.samples import calibrate
from cflow.samples.tuning import scheme_of
from cflow.transport import ODE, Affine, Chain


def whirl(t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Turn faster and faster, and the more the farther out: curved, and known to any precision."""
    rate = (1 + 3 * t) / (1 + x.square().sum(-1))
    return rate[..., None] * torch.stack([-x[..., 1], x[..., 0]], -1)


def whirling() -> Flow:
    return Flow(Gaussian(2), ODE(FunctionField(whirl), Dopri5(1e-9, 1e-9)))


def seeded() -> Generator:
    return Generator().manual_seed(0)


def rms(flow: Flow, solver: object) -> float:
    x0 = torch.randn(2000, 2, generator=Generator().manual_seed(5))
    exact = flow.push(x0)
    return (flow.with_solver(solver).push(x0) - exact).square().mean().sqrt().item()  # type: ignore[arg-type]


def test_four_tuned_evaluations_beat_every_standard_four_and_eight_of_euler() -> None:
    flow = whirling()
    result = calibrate(flow, 4, generator=seeded())
    ours = rms(flow, result.solver)
    assert ours < 0.5 * min(rms(flow, s) for s in (Euler(4), Midpoint(2), Heun(2), RK4(1)))
    assert ours < 0.5 * rms(flow, Euler(8))
    x = flow.with_solver(result.solver).transport.push(flow_state(3))
    assert x.nfe.tolist() == [4] * 3
    # The error that is reported is the true one: 256 draws, so within a fifth.
    assert abs(result.error / ours - 1) < 0.2


def flow_state(n: int) -> object:
    from cflow import State

    return State(torch.randn(n, 2))


def test_errors_are_listed_best_first_and_do_not_depend_on_batches() -> None:
    flow = whirling()
    first = calibrate(flow, 2, n=64, generator=seeded())
    again = calibrate(flow, 2, n=64, batch=7, generator=seeded())
    assert list(first.errors.values()) == sorted(first.errors.values())
    assert first.error == next(iter(first.errors.values()))
    standard = calibrate(flow, 2, n=64, tune=False, generator=seeded())
    assert not isinstance(standard.solver, Tuned)
    for name, error in standard.errors.items():
        assert again.errors[name] == pytest.approx(error, rel=1e-9)
    assert again.error == pytest.approx(first.error, rel=1e-3)


def test_chains_contexts_and_leaps_are_calibrated_too() -> None:
    flow = recipes.cnf(2, 3, hidden_features=(16,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    chain = Flow(
        flow.base, Chain(Affine(2.0), flow.transport, Affine(3.0)), context_shape=(3,)
    ).eval()
    context = torch.randn(64, 3)
    result = calibrate(chain, 3, n=64, context=context, generator=seeded())
    assert chain.with_solver(result.solver).sample(2, context[0]).shape == (2, 2)
    leaps = recipes.cnf(2, hidden_features=(16,), average=True).eval()
    for parameter in leaps.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = calibrate(leaps, 3, n=64, generator=seeded())
    assert isinstance(found.solver, Tuned)  # three average velocities, weighed anew
    assert found.error < found.errors["Euler(steps=3)"]
    assert leaps.with_solver(found.solver).sample(2).shape == (2, 2)


def test_on_a_manifold_only_standard_solvers_are_tried() -> None:
    field = FunctionField(lambda t, x, context: x.roll(1, -1))
    flow = Flow(ManifoldUniform(Sphere(), 3), ODE(field, manifold=Sphere()))
    result = calibrate(flow, 2, n=16, generator=seeded())
    assert not any(name.startswith("Tuned") for name in result.errors)


def test_what_has_no_steps_is_refused() -> None:
    with pytest.raises(DomainError, match="found 0"):
        calibrate(recipes.realnvp(2, transforms=2), 4)
    with pytest.raises(DomainError, match="steps"):
        calibrate(whirling(), 0)
    with pytest.raises(DomainError, match="one condition for each"):
        calibrate(recipes.cnf(2, 3), 2, context=torch.zeros(3))


def test_the_scheme_of_a_method_is_its_weights() -> None:
    times, weights = scheme_of(Midpoint(2))  # type: ignore[misc]
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75]
    expected = [[0.25, 0, 0, 0], [0, 0.5, 0, 0], [0, 0.5, 0.25, 0], [0, 0.5, 0, 0.5]]
    assert torch.allclose(weights, torch.tensor(expected))
    assert scheme_of(Heun(2)) is None
