"""Densities integrate to 1 on a grid, through one `Flow` for layers, fields, chains, manifolds."""

import inspect
import math

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from cflow import Flow, State, tracked
from cflow.base import Gaussian, ManifoldUniform
from cflow.field import FunctionField, MLPField
from cflow.manifold import Sphere
from cflow.nets import MLP
from cflow.ode import RK4, Dopri5
from cflow.recipes import cnf, realnvp
from cflow.transport import ODE, ActNorm, Chain, CouplingLayer, Inverse, Logit


def perturbed(flow: Flow) -> Flow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.25)
    return flow


def plane(reach: float, points: int) -> tuple[Tensor, float]:
    axis = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def test_log_prob_has_a_body_of_two_lines() -> None:
    source = inspect.getsource(Flow.log_prob)
    body = source.split('"""')[2].strip().splitlines()
    assert len(body) == 2


@torch.no_grad()
def test_realnvp_integrates_to_one() -> None:
    flow = perturbed(realnvp(2, transforms=4, hidden_features=(16,), fast="sample"))
    x, cell = plane(25.0, 1251)
    assert flow.log_prob(x).exp().sum().item() * cell == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
def test_an_adaptive_ode_integrates_to_one() -> None:
    flow = perturbed(cnf(2, hidden_features=(16, 16), frequencies=2, solver=Dopri5(1e-6, 1e-6)))
    x, cell = plane(9.0, 121)
    assert flow.log_prob(x).exp().sum().item() * cell == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_a_mixed_chain_integrates_to_one() -> None:
    chain = Chain(
        CouplingLayer([False, True], MLP(1, 2, hidden_features=(8,))),
        ODE(MLPField(2, hidden_features=(16,), frequencies=2), Dopri5(1e-6, 1e-6)),
        ActNorm((2,)),
        Inverse(Logit(0.0)),
    )
    flow = perturbed(Flow(Gaussian(2), chain))
    nodes, weights = (torch.from_numpy(a) / 2 for a in leggauss(110))  # on (0, 1), not its ends
    x = torch.cartesian_prod(nodes + 0.5, nodes + 0.5)
    mass = (flow.log_prob(x).exp() * torch.cartesian_prod(weights, weights).prod(1)).sum()
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


def sphere_flow(solver: RK4 | Dopri5) -> Flow:
    """A field of R^3 that knows nothing of the sphere: the ODE projects it."""
    field = MLPField(3, hidden_features=(16,), frequencies=2)
    return perturbed(Flow(ManifoldUniform(Sphere(), 3), ODE(field, solver, manifold=Sphere())))


def sphere_grid() -> tuple[Tensor, Tensor]:
    """Gauss nodes in height times even angles: exact for polynomials of degree 59."""
    z, w = (torch.from_numpy(a) for a in leggauss(30))
    angle = torch.arange(60) * (2 * math.pi / 60)
    ring = (1 - z.square()).sqrt()[:, None]
    x, y = ring * angle.cos(), ring * angle.sin()
    points = torch.stack([x, y, z[:, None].expand_as(x)], dim=-1)
    return points.reshape(-1, 3), (w[:, None] * (2 * math.pi / 60)).expand_as(x).reshape(-1)


@torch.no_grad()
@pytest.mark.parametrize("solver", [RK4(30), Dopri5(1e-6, 1e-6)], ids=["rk4", "dopri5"])
def test_a_projected_field_on_the_sphere_integrates_to_one(solver: RK4 | Dopri5) -> None:
    flow = sphere_flow(solver)
    points, area = sphere_grid()
    density = flow.log_prob(points).exp()
    assert (density * area).sum().item() == pytest.approx(1.0, abs=1e-5)
    assert density.std() > 0.1 * density.mean()  # not the uniform law in disguise


@torch.no_grad()
def test_samples_stay_on_the_sphere_and_carry_their_density() -> None:
    flow = sphere_flow(RK4(30))
    x, log_prob = flow.sample_and_log_prob(50)
    assert Sphere().check_point(x, atol=1e-12)[0]
    assert torch.allclose(log_prob, flow.log_prob(x), atol=1e-5)


def test_sphere_ladj_is_the_change_of_area() -> None:
    """Against the autograd Jacobian between tangent planes, away from any grid."""
    flow = sphere_flow(RK4(60))
    x = Sphere().projx(torch.randn(5, 3))
    state = flow.transport.push(tracked(x))
    for k in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda z: flow.transport.push(State(z[None])).x[0], x[k]
        )
        before, after = tangent_basis(x[k]), tangent_basis(state.x[k].detach())
        area = torch.linalg.slogdet(after.T @ jacobian @ before).logabsdet
        assert torch.allclose(state.ladj[k], area, atol=1e-6)


def tangent_basis(x: Tensor) -> Tensor:
    return torch.linalg.svd(x[None]).Vh[1:].T


def test_an_affine_coupling_is_the_time_one_map_of_a_field() -> None:
    """Freeze one half, move the other along (log(scale), shift): zero steps and N steps agree."""
    layer = CouplingLayer([False, True], MLP(1, 2))
    nn.init.normal_(layer.conditioner.last.weight, std=0.5)

    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        theta = layer.conditioner(x[..., :1], None)
        log_scale, shift = layer.univariate._split(theta)
        # y(t) = y0 e^(s t) + b (e^(s t) - 1) / (e^s - 1) has y' = s y + b s / (e^s - 1).
        rate = log_scale * x[..., 1] + shift * log_scale / torch.expm1(log_scale)
        return torch.stack([torch.zeros_like(rate), rate], dim=-1)

    x = torch.randn(20, 2)
    steps, zero = ODE(FunctionField(velocity), RK4(100)).push(tracked(x)), layer.push(tracked(x))
    assert torch.allclose(steps.x, zero.x, atol=1e-8)
    assert torch.allclose(steps.ladj, zero.ladj, atol=1e-8)
    assert int(steps.nfe[0]) == 400
    assert zero.nfe == 0
