"""Paths and the loss: seeds obeyed, the regression target right."""

import pytest
import torch
from torch import Tensor

from cflow import State
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, MLPField
from cflow.matching import (
    LinearPath,
    OTCoupling,
    PairedCoupling,
    euler_times,
    matching,
    reflow_pairs,
)
from cflow.ode import Euler, Heun
from cflow.transport import ODE


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
