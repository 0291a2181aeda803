"""The recipes of continuous flows: saved whole, exact where they say so, moved by their context."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cflow import Flow, load, nll, recipes
from cflow.errors import DomainError
from cflow.field import (
    Analytic,
    CostSum,
    Exact,
    GatedField,
    Hutchinson,
    JacobianNorm,
    KineticEnergy,
)
from cflow.ode import RK4, Direct, Dopri5, Euler
from cflow.recipes import exact_cnf, ffjord
from cflow.transport import ODE, MovingBatchNorm

BUILDS: dict[str, Callable[..., Flow]] = {
    "exact_cnf": lambda context=0: exact_cnf(3, context, hidden_features=(8, 9), solver=RK4(4)),
    "exact_cnf, blocks": lambda context=0: exact_cnf(
        3, context, hidden_features=(8, 8), blocks=2, solver=RK4(4), activation="softplus"
    ),
    "ffjord": lambda context=0: ffjord(3, context, hidden_features=(8,), solver=RK4(4)),
    "ffjord, squash": lambda context=0: ffjord(
        3, context, hidden_features=(8, 8), layer="squash", batch_norm=False, solver=RK4(4)
    ),
    "ffjord, concat, blocks": lambda context=0: ffjord(
        3, context, blocks=2, hidden_features=(8,), layer="concat", activation="silu", solver=RK4(4)
    ),
}
every = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def away(flow: Flow) -> Flow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow.eval()


@every
def test_it_starts_as_the_identity(build: Callable[..., Flow]) -> None:
    x = torch.randn(4, 3)
    assert torch.allclose(build().eval().pull(x), x, atol=1e-4)


@every
def test_the_context_changes_density_and_samples(build: Callable[..., Flow]) -> None:
    flow, x = away(build(2)).with_solver(divergence=Exact()), torch.randn(6, 3)
    here, there = torch.zeros(6, 2), torch.ones(6, 2)
    assert bool((flow.log_prob(x, here) - flow.log_prob(x, there)).abs().gt(1e-3).all())
    assert bool((flow.push(x, here) - flow.push(x, there)).abs().sum(-1).gt(1e-3).all())


@every
def test_evaluation_is_deterministic_and_its_gradients_reach_everything(
    build: Callable[..., Flow],
) -> None:
    flow, x = away(build()).with_solver(divergence=Exact()), torch.randn(6, 3)
    value = flow.log_prob(x)
    assert flow.likelihood == "exact"
    assert torch.equal(value, flow.log_prob(x))
    value.sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_the_closed_form_and_the_trace_give_one_likelihood() -> None:
    flow, x = away(BUILDS["exact_cnf, blocks"]()), torch.randn(6, 3)
    assert all(part.divergence == Analytic() for part in flow.transport)
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))
    exact = flow.with_solver(divergence=Exact())
    assert torch.allclose(flow.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-12)


def test_ffjord_estimates_without_bias() -> None:
    """z-scores of 300 points are standard normal: |mean| < 6 / sqrt(300) fails below 1e-8."""
    flow, x = away(BUILDS["ffjord"]()), torch.randn(300, 3)
    with torch.no_grad():
        value, error = flow.log_prob_with_error(x, repeats=64)
        z = (value - flow.with_solver(divergence=Exact()).log_prob(x)) / error
    assert abs(z.mean().item()) < 0.35
    assert 0.8 < z.std().item() < 1.25


@torch.no_grad()
@pytest.mark.parametrize("kind", [exact_cnf, ffjord])
def test_densities_integrate_to_one(kind: Callable[..., Flow]) -> None:
    flow = away(kind(2, hidden_features=(12, 12), solver=Dopri5(1e-6, 1e-6)))
    flow = flow.with_solver(divergence=Exact()) if kind is ffjord else flow
    axis = torch.linspace(-12, 12, 161)
    mass = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)
    assert not torch.allclose(flow.pull(torch.ones(1, 2)), torch.ones(1, 2), atol=0.05)


def saved() -> list[Flow]:
    costs = CostSum((KineticEnergy(0.1), JacobianNorm(0.2)))
    return [
        ffjord(3, 2, blocks=2, hidden_features=(8,), solver=Euler(2), cost=costs, steer=0.25),
        ffjord(3, layer="squash", activation="softplus", divergence=Exact(memory=2.0)),
        exact_cnf(3, 2, hidden_features=[8, 7], cost=KineticEnergy(0.1), adjoint=Direct()),
        recipes.cnf(3, divergence=Hutchinson(2), cost=costs),
    ]


@pytest.mark.parametrize("flow", saved(), ids=lambda flow: flow.recipe.name)
def test_a_saved_flow_comes_back_whole(flow: Flow, tmp_path) -> None:
    context = None if flow.context_shape is None else torch.randn(5, 2)
    flow.double()  # built in float32, when the tests were collected
    flow.initialize(2 + 3 * torch.randn(50, 3), None if context is None else torch.randn(50, 2))
    flow = away(flow)
    flow.save(tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    x = torch.randn(5, 3)
    with torch.no_grad():
        seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        ours, theirs = (
            f.log_prob(x, context, generator=g) for f, g in zip((flow, again), seeds, strict=True)
        )
    assert torch.allclose(ours, theirs, rtol=1e-9)  # a file's memory may round otherwise
    options = [
        [
            (m.solver, m.divergence, m.adjoint, m.cost, m.steer)
            for m in f.modules()
            if type(m) is ODE
        ]
        for f in (flow, again)
    ]
    assert options[0] == options[1]


def test_training_moves_the_statistics_and_lowers_the_loss() -> None:
    flow = ffjord(2, hidden_features=(16, 16), solver=RK4(4), steer=0.1, cost=KineticEnergy(0.01))
    x = torch.randn(512, 2) * torch.tensor([3.0, 0.2]) + 5
    flow.initialize(x)
    norms = [part for part in flow.transport if isinstance(part, MovingBatchNorm)]
    assert len(norms) == 2
    bent = torch.stack([x[:, 0], x[:, 1] + x[:, 0].square() / 9], -1)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses, means = [], [norm.mean.clone() for norm in norms]
    for _ in range(60):
        optimizer.zero_grad()
        loss = nll(flow, bent).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[5] - 0.2
    assert all(not torch.equal(n.mean, m) for n, m in zip(norms, means, strict=True))


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(DomainError, match="blocks must be positive"):
        ffjord(2, blocks=0)
    with pytest.raises(DomainError, match="blocks must be positive"):
        exact_cnf(2, blocks=0)
    with pytest.raises(DomainError, match="two of them"):
        exact_cnf(2, hidden_features=(8,))
    with pytest.raises(DomainError, match="one layer hidden at least"):
        GatedField(2, hidden_features=())


@pytest.mark.parametrize("layer", ["concatsquash", "squash", "concat"])
def test_gated_layers_are_their_formulas(layer) -> None:
    torch.manual_seed(3)
    field = GatedField(2, 1, hidden_features=(4,), layer=layer)
    for parameter in field.parameters():
        nn.init.normal_(parameter)
    t, x, context = torch.rand(5), torch.randn(5, 2), torch.randn(5, 1)
    c, h = torch.cat([t[:, None], context], 1), x
    for k, part in enumerate(field.layers):
        y = h @ part.linear.weight.T + part.linear.bias
        if layer != "concat":
            y = y * torch.sigmoid(c @ part.gate.weight.T + part.gate.bias)
        if layer != "squash":
            y = y + c @ part.shift.weight.T
        h = torch.tanh(y) if k == 0 else y
    assert torch.allclose(field(t, x, context), h)
