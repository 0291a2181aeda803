"""Flows on manifolds from end to end: saved whole, trained by every loss, straightened, leaping."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

import cflow
from cflow import Flow, nll, recipes
from cflow.errors import DomainError, ShapeError
from cflow.field import Exact, FunctionField
from cflow.manifold import Rotations, Sphere, Torus
from cflow.matching import (
    GeodesicCost,
    GeodesicPath,
    IndependentCoupling,
    OTCoupling,
    RiemannianError,
    Spans,
    matching,
    mean_flow,
)
from cflow.ode import RK4, Dopri5, Euler
from cflow.train import Trainer, reflow
from cflow.transport import ODE, instantaneous

BUILDS = {
    "sphere": lambda **options: recipes.sphere_cnf(hidden_features=(16, 16), **options),
    "torus": lambda **options: recipes.torus_cnf(2, hidden_features=(16, 16), **options),
    "rotations": lambda **options: recipes.rotation_cnf(hidden_features=(16, 16), **options),
}
every = pytest.mark.parametrize("name", BUILDS)


def space_of(flow: Flow) -> Sphere | Torus | Rotations:
    return flow.base.manifold  # type: ignore[return-value]


def cap(n: int, seed: int = 0) -> Tensor:
    """Points about the north pole."""
    generator = Generator().manual_seed(seed)
    e = torch.randn(n, 3, generator=generator)
    return Sphere().projx(torch.tensor([0.0, 0.0, 3.0]) + e)


def matched(flow: Flow, x1: Tensor, *, generator: Generator, error=None) -> Tensor:
    space = space_of(flow)
    x0 = flow.base.sample((len(x1),), generator=generator)
    coupling = OTCoupling(cost=GeodesicCost(space))
    options = {} if error is None else {"error": error}
    return matching(
        flow.transport.field, GeodesicPath(space), coupling, x1, x0=x0, generator=generator,
        **options,
    )  # fmt: skip


@every
@pytest.mark.parametrize("average", [False, True])
def test_a_saved_flow_comes_back_whole(name: str, average: bool, tmp_path: Path) -> None:
    solver = None if average else RK4(4)
    flow = BUILDS[name](average=average, solver=solver).eval()
    for parameter in flow.parameters():
        parameter.data *= 0.5  # so that a leap is one to one
    x = flow.sample(5)
    assert space_of(flow).check_point(x, atol=1e-6)[0]
    flow.save(tmp_path / "flow.safetensors")
    again = cflow.load(tmp_path / "flow.safetensors")
    with torch.no_grad():
        assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert repr(space_of(again)) == repr(space_of(flow))


@every
def test_log_prob_is_that_of_the_push(name: str) -> None:
    flow = BUILDS[name](solver=Dopri5(1e-8, 1e-8)).eval()
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(6)
        assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-6)


def test_isometries_leave_the_density_as_it_is() -> None:
    """Turn the sphere: the flow with a turned field has the density of the turned points."""
    flow = BUILDS["sphere"](solver=RK4(8)).eval()
    turn = Rotations().uniform((), (3, 3), like=torch.zeros(()))
    field = flow.transport.field
    turned = FunctionField(lambda t, x, c: field(t, x @ turn, c) @ turn.mT)
    other = Flow(flow.base, ODE(turned, RK4(8), manifold=Sphere()))
    x = Sphere().uniform((6,), (3,), like=torch.zeros(()))
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x), other.log_prob(x @ turn.mT), atol=1e-10)


@every
def test_a_context_moves_the_law(name: str) -> None:
    flow = BUILDS[name](context=2, solver=RK4(4))
    loss = lambda model, x, c, *, generator: nll(model, x, c)
    x = flow.base.sample((64,))
    Trainer(flow, loss, steps=2, batch=32, progress=False).fit((x, torch.randn(64, 2)))
    with torch.no_grad():
        one, other = flow.log_prob(x, torch.ones(64, 2)), flow.log_prob(x, -torch.ones(64, 2))
    assert not torch.allclose(one, other)


def test_matching_and_likelihood_fit_a_cap() -> None:
    """The entropy of the law is not known; both fits have to come near each other, and leave
    the uniform law far behind."""
    torch.manual_seed(0)
    found = {}
    train, test = cap(2000), cap(500, seed=1)
    for name, loss, steps in (("matching", matched, 150), ("nll", nll_of, 50)):
        flow = BUILDS["sphere"](solver=RK4(4))
        Trainer(flow, loss, steps=steps, batch=128, lr=3e-3, progress=False).fit(train)
        with torch.no_grad():
            found[name] = -flow.log_prob(test).mean().item()
    uniform = math.log(4 * math.pi)
    assert found["matching"] < uniform - 0.7
    assert found["nll"] < uniform - 0.7
    assert abs(found["matching"] - found["nll"]) < 0.15


def nll_of(flow: Flow, x: Tensor, *, generator: Generator) -> Tensor:
    return nll(flow, x)


def test_the_error_may_be_that_of_the_metric() -> None:
    flow = BUILDS["rotations"](solver=RK4(2))
    x1 = flow.base.sample((8,))
    seeded = lambda error: matched(flow, x1, generator=Generator().manual_seed(0), error=error)
    plain, own = seeded(None), seeded(RiemannianError(Rotations()))
    assert torch.allclose(9 * plain, 2 * 3 * own)  # |v|^2 / 9 in entries, half of it by three


def test_reflow_straightens_along_geodesics() -> None:
    """After a round one exponential step, along a geodesic, comes nearer to many steps."""
    torch.manual_seed(0)
    flow = BUILDS["sphere"](solver=RK4(8), steps="exponential")
    Trainer(flow, matched, steps=150, batch=128, lr=3e-3, progress=False).fit(cap(1000))
    again = partial(Trainer, steps=300, batch=256, lr=3e-3, progress=False)
    (straight,) = reflow(flow, 1000, trainer=again, progress=False)
    x0 = flow.base.sample((200,), generator=Generator().manual_seed(1))

    def gap(model: Flow) -> Tensor:
        with torch.no_grad():
            fine, coarse = (model.with_solver(s).push(x0) for s in (RK4(16), Euler(1)))
        return Sphere().dist(fine, coarse).mean()

    assert gap(straight) < 0.6 * gap(flow)


def test_a_mean_flow_leaps_where_its_velocity_leads() -> None:
    torch.manual_seed(0)
    flow = recipes.sphere_cnf(hidden_features=(32, 32), average=True)

    def loss(model: Flow, x1: Tensor, *, generator: Generator) -> Tensor:
        x0 = model.base.sample((len(x1),), generator=generator)
        coupling = OTCoupling(cost=GeodesicCost(Sphere()))
        return mean_flow(
            model.transport.flow_map, GeodesicPath(Sphere()), coupling, x1, x0=x0,
            spans=Spans(whole=0.2), generator=generator,
        )  # fmt: skip

    Trainer(flow, loss, steps=150, batch=128, lr=3e-3, progress=False).fit(cap(1000))
    x0 = flow.base.sample((300,), generator=Generator().manual_seed(1))
    with torch.no_grad():
        there = flow.push(x0)
        fine = Flow(flow.base, instantaneous(flow.transport)).with_solver(RK4(16))
        assert Sphere().dist(there, fine.push(x0)).mean() < 0.25  # of a way of 1.2
        assert Sphere().dist(x0, fine.push(x0)).mean() > 0.8


def test_what_is_refused() -> None:
    with pytest.raises(DomainError, match="a divergence belongs to an ODE"):
        recipes.sphere_cnf(average=True, divergence=Exact())
    with pytest.raises(ShapeError, match="Sphere: a point is a vector"):
        recipes.sphere_cnf(1)
    flow = BUILDS["sphere"](solver=RK4(2))
    with pytest.raises(DomainError, match=r"ODE\.pull: x must lie on Sphere\(\), but lengths"):
        flow.log_prob(torch.tensor([[48.2, 16.4, 0.0]]))
    with pytest.raises(DomainError, match=r"ODE\.pull: x must lie on Torus\(\)"):
        BUILDS["torus"](solver=RK4(2)).log_prob(torch.tensor([[-0.5, 7.0]]))
    x1 = cap(8)
    with pytest.raises(DomainError, match="give sources"):
        matching(flow.transport.field, GeodesicPath(Sphere()), IndependentCoupling(), x1)
