"""Positive definite matrices: derivatives at equal eigenvalues, isometries, volumes."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from cflow.errors import ShapeError
from cflow.field import FunctionField
from cflow.manifold import AffineInvariantSPD, LogEuclideanSPD
from cflow.manifold.symmetric import clip, log_rate_spd, log_spd, symmetric
from cflow.ode import RK4, Dopri5
from cflow.state import tracked
from cflow.transport import ODE

both = pytest.mark.parametrize("space", [AffineInvariantSPD(), LogEuclideanSPD()], ids=repr)
Metric = AffineInvariantSPD | LogEuclideanSPD
ONE = torch.eye(3, dtype=torch.float64)
TWINS = torch.diag(torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))


def draw(n: int = 5, size: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, size, size, generator=generator, dtype=torch.float64)
    return 0.5 * a @ a.mT + 0.3 * torch.eye(size)


def log(w: Tensor) -> Tensor:
    return log_spd(w, w - torch.eye(w.shape[-1], dtype=w.dtype))


def by_series(w: Tensor) -> Tensor:
    """Return the logarithm by its power series, which holds near the identity only."""
    e = w - torch.eye(w.shape[-1])
    term, total = e, e
    for k in range(2, 60):
        term = term @ e
        total = total + (-1) ** (k + 1) / k * term
    return total


def test_logarithms_are_those_of_scipy() -> None:
    for w in draw():
        expected = torch.from_numpy(np.real(scipy.linalg.logm(w.numpy())))
        assert torch.allclose(log(w), expected, atol=1e-12)
        h = symmetric(torch.randn(3, 3))
        direct = jvp(log, (w,), (h,))[1]
        assert torch.allclose(log_rate_spd(log(w), h), direct, atol=1e-12)


@pytest.mark.parametrize("at", [ONE, TWINS / 2, draw(1)[0] / 4], ids=["one", "twins", "any"])
def test_three_derivatives_of_the_logarithm_are_exact_at_equal_eigenvalues(at: Tensor) -> None:
    at = ONE + 0.3 * (at - ONE)  # where the series converges
    h = symmetric(torch.randn(3, 3))

    def along(log, order: int, derivative) -> Tensor:
        f = lambda s: log(at + s * h)
        for _ in range(order):
            f = derivative(f)
        return f(torch.tensor(0.0))

    for order in (1, 2, 3):
        expected = along(by_series, order, jacfwd)
        for derivative in (jacfwd, jacrev):
            assert torch.allclose(along(log, order, derivative), expected, atol=1e-9), order


@both
def test_maps_pass_gradcheck_twice_at_equal_eigenvalues(space: Metric) -> None:
    x, y = torch.eye(2, requires_grad=True), torch.eye(2, requires_grad=True)
    other = draw(1, 2)[0].requires_grad_()
    even = lambda f: lambda a, b: f(symmetric(a), symmetric(b))
    for f in (space.expmap, space.logmap):
        assert gradcheck(even(f), (x, other), check_forward_ad=True)
        assert gradgradcheck(even(f), (x, y))
    assert gradcheck(lambda a: space.log_volume_element(symmetric(a)), (x,))
    assert gradcheck(even(space.dist), (x, other))


@both
def test_distances_from_the_identity_have_a_hessian(space: Metric) -> None:
    """Half the squared distance has the metric for its Hessian: the identity, at the identity."""
    half = lambda y: 0.5 * (space.logmap(ONE, symmetric(y)) ** 2).sum()
    h = hessian(half)(ONE).reshape(9, 9)
    u = symmetric(torch.randn(3, 3)).flatten()
    assert torch.allclose(h @ u, u, atol=1e-9)


def test_changes_of_units_are_isometries_of_the_affine_invariant_metric() -> None:
    space, x, y = AffineInvariantSPD(), draw(), draw(seed=1)
    a = torch.randn(3, 3)
    move = lambda x: a @ x @ a.mT
    assert torch.allclose(space.dist(move(x), move(y)), space.dist(x, y), atol=1e-10)
    inverse = torch.linalg.inv
    assert torch.allclose(space.dist(inverse(x), inverse(y)), space.dist(x, y), atol=1e-10)
    u = space.logmap(x, y)
    assert torch.allclose(space.logmap(move(x), move(y)), move(u), atol=1e-8)
    gained = space.log_volume_element(move(x)) - space.log_volume_element(x)
    log_det = 4 * torch.linalg.slogdet(a).logabsdet  # of X -> A X A' on symmetric matrices: n + 1
    assert torch.allclose(gained, (-log_det).expand(5), atol=1e-10)


def test_affine_invariant_distances_are_those_of_generalised_eigenvalues() -> None:
    space, x, y = AffineInvariantSPD(), draw(), draw(seed=1)
    for a, b, dist in zip(x, y, space.dist(x, y), strict=True):
        values = scipy.linalg.eigh(b.numpy(), a.numpy(), eigvals_only=True)
        assert dist.item() == pytest.approx(float(np.linalg.norm(np.log(values))), rel=1e-10)


@both
def test_rotations_are_isometries(space: Metric) -> None:
    x, y = draw(), draw(seed=1)
    q = torch.linalg.qr(torch.randn(3, 3)).Q
    move = lambda x: q @ x @ q.mT
    assert torch.allclose(space.dist(move(x), move(y)), space.dist(x, y), atol=1e-10)
    assert torch.allclose(space.log_volume_element(move(x)), space.log_volume_element(x))


@pytest.mark.parametrize(
    "at", [ONE, 2 * ONE, TWINS, draw(1)[0]], ids=["one", "two", "twins", "any"]
)
def test_the_log_euclidean_volume_is_that_of_the_logarithm(at: Tensor) -> None:
    vectors = LogEuclideanSPD().frame(at)[0]
    jacobian = jacrev(lambda c: log(at + (c[:, None, None] * vectors).sum(0)))(torch.zeros(6))
    log_det = torch.linalg.slogdet(vectors.flatten(1) @ jacobian.flatten(0, 1)).logabsdet
    assert torch.allclose(LogEuclideanSPD().log_volume_element(at), log_det, atol=1e-9)


def test_a_flow_of_congruences_keeps_the_affine_invariant_volume() -> None:
    a = torch.randn(3, 3)
    field = FunctionField(lambda t, x, context: a @ x + x @ a.mT)
    ode = ODE(field, Dopri5(1e-9, 1e-9), manifold=AffineInvariantSPD())
    x = draw()
    state = ode.push(tracked(x, event_dim=2))
    grown = torch.linalg.matrix_exp(a)
    assert torch.allclose(state.x, grown @ x @ grown.mT, rtol=1e-6)
    assert state.ladj is not None
    assert state.ladj.abs().max() < 1e-6


@pytest.mark.parametrize("steps", ["projected", "exponential"])
def test_a_linear_flow_of_logarithms_has_the_log_det_of_its_rates(steps) -> None:
    space = LogEuclideanSPD(steps=steps)
    velocity = lambda t, x, context: space.logmap(x, space.expmap(ONE, 0.7 * log(x) + log(x)))
    ode = ODE(FunctionField(velocity), RK4(12), manifold=space)
    state = ode.push(tracked(draw(2), event_dim=2))
    assert torch.allclose(log(state.x), math.exp(0.7) * log(draw(2)), atol=1e-4)
    assert state.ladj is not None
    assert torch.allclose(state.ladj, torch.full((2,), 6 * 0.7), atol=1e-4)


def test_one_exponential_step_is_exact_for_a_constant_rate_of_the_logarithm() -> None:
    space, x, y = LogEuclideanSPD(steps="exponential"), draw(), draw(seed=1)
    way = log(y) - log(x)
    velocity = lambda t, z, context: jvp(torch.linalg.matrix_exp, (log(z),), (way,))[1]
    end = ODE(FunctionField(velocity), RK4(1), manifold=space).push(tracked(x, event_dim=2))
    assert space.dist(end.x, y).max() < 1e-9


@both
def test_float32_tells_small_distances_and_far_scales(space: Metric) -> None:
    x = draw().float()
    y = x * 1.0001
    exact = math.sqrt(3) * math.log(1.0001)
    slack = 0.02 if isinstance(space, AffineInvariantSPD) else 0.05
    assert torch.allclose(space.dist(x, y), torch.full((5,), exact).float(), rtol=slack)
    far = math.sqrt(3) * math.log(1e8)
    assert torch.allclose(space.dist(x, 1e-8 * x), torch.full((5,), far).float(), rtol=1e-4)


def test_projection_lifts_eigenvalues_and_is_differentiable() -> None:
    space = LogEuclideanSPD()
    x = torch.diag(torch.tensor([1.0, 1.0, -0.5]))
    assert space.check_point(space.projx(x))[0]
    assert torch.equal(space.projx(ONE), ONE)
    jacobian = jacrev(lambda x: space.projx(x))(ONE).reshape(9, 9)
    u = symmetric(torch.randn(3, 3)).flatten()
    assert torch.allclose(jacobian @ u, u)
    low = symmetric(torch.randn(4, 4)).requires_grad_()
    assert gradcheck(lambda x: clip(symmetric(x), 1e-9), (low,), check_forward_ad=True)


def test_what_is_no_covariance_is_told() -> None:
    space = AffineInvariantSPD()
    ok, reason = space.check_point(torch.tensor([[1.0, 0.3], [0.1, 1.0]]))
    assert (ok, reason) == (False, "matrices differ from their transposes by up to 0.2")
    ok, reason = space.check_point(torch.ones(2, 2) - 2 * torch.eye(2))
    assert (ok, reason) == (False, "the smallest eigenvalue is -2")
    assert "not finite" in space.check_point(torch.full((2, 2), math.nan))[1]
    with pytest.raises(ShapeError, match=r"square matrix \(n, n\), got \(2, 3\)"):
        space.dim((2, 3))
    assert space.dim((4, 4)) == 10


@both
def test_kernels_vmap(space: Metric) -> None:
    x, y = draw(), draw(seed=1)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        u = space.logmap(x, y)
        end = space.projx(space.expmap(x, 0.5 * u))
        return space.dist(x, end) + space.log_volume_element(end) + space.log_det_exp(x, u)

    assert torch.allclose(vmap(kernel)(x, y), kernel(x, y))


@both
@pytest.mark.unchecked
def test_distances_compile_with_their_gradients(space: Metric) -> None:
    x, y = draw(), draw(seed=1).requires_grad_()
    compiled = torch.compile(space.dist, backend="aot_eager", fullgraph=True)
    dist, expected = compiled(x, y), space.dist(x, y)
    assert torch.allclose(dist, expected)
    (gradient,) = torch.autograd.grad(dist.sum(), y)
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), y)[0], atol=1e-9)
