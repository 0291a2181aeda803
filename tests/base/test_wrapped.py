"""Wrapped normal laws against explicit sums and other laws, and where they refuse."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow
from cflow.base import DiagonalGaussian, ManifoldUniform, WrappedNormal
from cflow.errors import DomainError, ShapeError
from cflow.manifold import (
    AffineInvariantSPD,
    Euclidean,
    LogEuclideanSPD,
    Lorentz,
    PoincareBall,
    Simplex,
    Sphere,
    Torus,
)
from cflow.transport import Chain


def test_in_flat_space_it_is_the_normal_law() -> None:
    mean, scale = torch.randn(2, 3), torch.rand(6) + 0.5
    base = WrappedNormal(Euclidean(2), (2, 3), mean=mean, scale=scale)
    peer = DiagonalGaussian((2, 3))
    peer.mean.data, peer.log_scale.data = mean, scale.log().reshape(2, 3)
    x = torch.randn(10, 2, 3)
    assert torch.allclose(base.log_prob(x), peer.log_prob(x))


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.4, 2.6, 8.0, 100.0])
def test_on_a_torus_it_is_the_sum_over_all_windings(scale: float) -> None:
    base = WrappedNormal(Torus(ndim=2), (2, 2), mean=torch.full((2, 2), 6.0), scale=scale)
    x = 2 * math.pi * torch.rand(30, 2, 2)
    gaps = x[..., None] - 6.0 + 2 * math.pi * torch.arange(-400, 401)
    each = -0.5 * (gaps / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(base.log_prob(x), each.logsumexp(-1).sum((-1, -2)), atol=1e-12)


def test_on_a_torus_nothing_breaks_at_the_seam_or_opposite_the_mean() -> None:
    base = WrappedNormal(Torus(), 1, mean=torch.tensor([1.0]), scale=1.3)
    for place in (0.0, 1.0 + math.pi):
        ends = torch.tensor([[place + 2 * math.pi - 1e-9], [place + 1e-9]]).requires_grad_()
        log_prob = base.log_prob(ends)
        (slope,) = torch.autograd.grad(log_prob.sum(), ends)
        assert torch.allclose(log_prob[0], log_prob[1], atol=1e-7)
        assert torch.allclose(slope[0], slope[1], atol=1e-7)


@pytest.mark.parametrize("scale", [0.4, 2.0, 4.0])
def test_the_circle_is_a_sphere_and_a_torus(scale: float) -> None:
    turn = torch.linspace(-3, 3, 40)
    on_circle = torch.stack([turn.cos(), turn.sin()], -1)
    circle = WrappedNormal(Sphere(), 2, scale=scale)  # about the first axis
    angle = WrappedNormal(Torus(), 1, scale=scale)
    assert torch.allclose(
        circle.log_prob(on_circle), angle.log_prob(turn[:, None].remainder(2 * math.pi)), atol=1e-9
    )


@pytest.mark.parametrize("n", [2, 5])
def test_on_a_sphere_it_is_the_sum_over_all_ways_round(n: int) -> None:
    """Points at angle r are hit at lengths r + 2 pi j from one side, 2 pi j - r from the other."""
    scale, r = 1.5, torch.linspace(0.1, 3.0, 20)
    x = torch.zeros(20, n + 1)
    x[:, 0], x[:, 2] = r.cos(), r.sin()
    total = torch.zeros(20)
    for j in range(6):
        for length in [2 * math.pi * j + r] + ([2 * math.pi * j - r] if j else []):
            normal = (-0.5 * (length / scale).square()).exp() / (2 * math.pi * scale**2) ** (n / 2)
            total += normal * (length / r.sin()).abs() ** (n - 1)
    got = WrappedNormal(Sphere(), n + 1, scale=scale, images=6).log_prob(x)
    assert torch.allclose(got, total.log(), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_and_its_antipode_have_finite_gradients(dtype: torch.dtype) -> None:
    for scale in (0.3, 1.0, torch.tensor([0.5, 1.0])):
        base = WrappedNormal(Sphere(), 3, scale=scale).to(dtype)
        x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]], dtype=dtype).requires_grad_()
        log_prob = base.log_prob(x)
        log_prob.sum().backward()
        assert torch.isfinite(log_prob).all()
        for tensor in (x, *base.parameters()):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()


def test_models_of_hyperbolic_space_agree() -> None:
    ball, sheet = PoincareBall(-0.5), Lorentz(-0.5)
    mean, x = 0.4 * torch.rand(2), ball.projx(0.5 * torch.randn(20, 2))
    one = WrappedNormal(ball, 2, mean=mean, scale=0.8)
    other = WrappedNormal(sheet, 3, mean=sheet.from_poincare(mean), scale=0.8)
    assert torch.allclose(one.log_prob(x), other.log_prob(sheet.from_poincare(x)), atol=1e-10)


def test_translations_of_matrices_leave_the_density_alone() -> None:
    """X -> A X A^T is an isometry, and so is the logarithm of the log-Euclidean metric."""
    space, a = AffineInvariantSPD(), torch.randn(3, 3)
    b = torch.randn(20, 3, 3)
    x = b @ b.mT + 0.5 * torch.eye(3)
    one = WrappedNormal(space, (3, 3), scale=0.6)  # about the unit matrix
    other = WrappedNormal(space, (3, 3), mean=a @ a.T, scale=0.6)
    assert torch.allclose(one.mean, torch.eye(3))
    assert torch.allclose(one.log_prob(x), other.log_prob(a @ x @ a.T), atol=1e-8)
    flat = WrappedNormal(LogEuclideanSPD(), (3, 3), scale=0.6).log_prob(x)
    logs = torch.linalg.eigvalsh(x).log().square().sum(-1)
    expected = -0.5 * logs / 0.36 - 6 * math.log(0.6) - 3 * math.log(2 * math.pi)
    assert torch.allclose(flat, expected, atol=1e-8)


def test_scales_are_along_the_frame_made_orthonormal() -> None:
    ball, mean = PoincareBall(), torch.tensor([0.3, 0.2])
    base = WrappedNormal(ball, 2, mean=mean, scale=torch.tensor([0.01, 0.5]))
    u = ball.logmap(mean.expand(2000, 2), base.sample((2000,)).detach())
    spread = u.std(0) * 2 / (1 - mean.square().sum())  # in units of the metric there
    assert torch.allclose(spread, torch.tensor([0.01, 0.5]), rtol=0.1)


def fitted(x: Tensor, steps: int = 150) -> Flow:
    flow = Flow(WrappedNormal(Sphere(), 3, scale=1.0), Chain())
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
    return flow


def test_mean_and_scale_are_learned() -> None:
    goal = Sphere().projx(torch.tensor([-0.2, 0.5, 0.9]))
    x = WrappedNormal(Sphere(), 3, mean=goal, scale=0.3).sample((500,)).detach()
    base = fitted(x).base
    assert isinstance(base, WrappedNormal)
    assert Sphere().dist(Sphere().projx(base.mean), goal) < 0.1
    assert base.log_scale.exp().item() == pytest.approx(0.3, abs=0.03)
    fixed = WrappedNormal(Sphere(), 3, learned=False)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"mean", "log_scale"}


def test_bad_options_are_refused() -> None:
    with pytest.raises(DomainError, match=r"Simplex\(\) does not tell all geodesics"):
        WrappedNormal(Simplex(), 3)
    with pytest.raises(DomainError, match="mean must lie on"):
        WrappedNormal(Sphere(), 3, mean=torch.ones(3))
    with pytest.raises(ShapeError, match=r"mean must have shape \(3,\), got \(2,\)"):
        WrappedNormal(Sphere(), 3, mean=torch.tensor([1.0, 0.0]))
    with pytest.raises(DomainError, match="scale must be positive and finite"):
        WrappedNormal(Sphere(), 3, scale=0.0)
    with pytest.raises(ShapeError, match="scale must be one number or 2, one for each direction"):
        WrappedNormal(Sphere(), 3, scale=torch.ones(3))
    with pytest.raises(DomainError, match=r"images reach to 28\.3; raise images to 11"):
        WrappedNormal(Sphere(), 3, scale=10.0)
    assert WrappedNormal(Sphere(), 3, scale=10.0, images=11)
    with pytest.raises(DomainError, match="has no finite volume"):
        ManifoldUniform(Euclidean(), 3)
    with pytest.raises(ShapeError, match="a point is a vector"):
        ManifoldUniform(Sphere(), (3, 3))
