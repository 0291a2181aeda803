"""The simplex: its sphere, its volume, its edges, and a likelihood that integrates to one."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from cflow.errors import ShapeError
from cflow.field import FunctionField
from cflow.manifold import Simplex, Sphere
from cflow.ode import RK4
from cflow.state import tracked
from cflow.transport import ODE


def draw(n: int = 10, size: int = 4) -> Tensor:
    return torch.softmax(torch.randn(n, size), -1)


def test_it_is_the_positive_part_of_a_sphere_of_radius_two() -> None:
    simplex, sphere = Simplex(), Sphere()
    p, q = draw(), draw()
    x, y = p.sqrt(), q.sqrt()
    assert torch.allclose(simplex.dist(p, q), 2 * sphere.dist(x, y), atol=1e-12)
    w = sphere.logmap(x, y)
    assert torch.allclose(simplex.logmap(p, q), 2 * x * w, atol=1e-12)
    assert torch.allclose(simplex.expmap(p, 2 * x * 0.5 * w), sphere.expmap(x, 0.5 * w) ** 2)
    u = simplex.logmap(p, q)
    assert torch.allclose(simplex.log_det_exp(p, u), sphere.log_det_exp(x, w), atol=1e-12)


def test_volumes_are_those_of_a_grid_integral() -> None:
    """Over p = (sin^2 a, cos^2 a sin^2 b, ...), where the element has no poles; 2 pi for n = 3."""
    n = 400
    a, b = ((torch.arange(n) + 0.5) / n * math.pi / 2 for _ in range(2))
    a, b = torch.meshgrid(a, b, indexing="ij")
    p = torch.stack([a.sin() ** 2, (a.cos() * b.sin()) ** 2, (a.cos() * b.cos()) ** 2], -1)
    steps = 4 * a.sin() * a.cos() * a.cos() ** 2 * b.sin() * b.cos()  # |dp_1 dp_2 / da db|
    volume = (Simplex().log_volume_element(p).exp() * steps).mean() * (math.pi / 2) ** 2
    assert volume.item() == pytest.approx(math.exp(Simplex().log_volume((3,))), rel=1e-5)
    assert Simplex().log_volume((3,)) == pytest.approx(math.log(2 * math.pi))
    assert Simplex().log_volume((2,)) == pytest.approx(math.log(math.pi))


def test_uniform_points_have_arcsine_like_margins() -> None:
    """Entries of n = 4 follow Beta(1/2, 3/2). Kolmogorov-Smirnov, false alarm 1e-6."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(0)
    p = Simplex().uniform((20_000,), (4,), like=torch.zeros(()), generator=generator)
    assert kstest(p[:, 2].numpy(), "beta", args=(0.5, 1.5)).pvalue > 1e-6


def test_permutations_are_isometries() -> None:
    simplex, order = Simplex(), torch.tensor([2, 0, 3, 1])
    p, q = draw(), draw()
    assert torch.allclose(simplex.dist(p[:, order], q[:, order]), simplex.dist(p, q))
    assert torch.allclose(simplex.logmap(p[:, order], q[:, order]), simplex.logmap(p, q)[:, order])
    element = simplex.log_volume_element
    assert torch.allclose(element(p[:, order]), element(p))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_edges_and_corners_are_finite(dtype: torch.dtype) -> None:
    simplex = Simplex()
    corners = torch.eye(3, dtype=dtype)
    assert simplex.check_point(corners)[0]
    apart = simplex.dist(corners[:, None], corners)
    assert torch.equal(apart.diagonal(), torch.zeros(3, dtype=dtype))
    assert torch.allclose(apart[0, 1], torch.tensor(math.pi, dtype=dtype), atol=1e-6)
    inner = torch.tensor([[0.2, 0.3, 0.5]], dtype=dtype)
    for x, y in ((corners, inner.expand(3, 3)), (inner.expand(3, 3), corners)):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        u = simplex.logmap(x, y)
        total = u.sum() + simplex.dist(x, y).sum() + simplex.log_volume_element(x).sum()
        assert torch.isfinite(total)
        for gradient in torch.autograd.grad(total, (x, y)):
            assert torch.isfinite(gradient).all()
    middle = simplex.geodesic(inner, simplex.logmap(inner, corners[:1]), inner[:, 0] * 0 + 1)[0]
    assert torch.allclose(middle, corners[:1], atol=1e-6)


def test_geodesics_are_mirrored_at_the_edges() -> None:
    simplex = Simplex()
    p = torch.tensor([0.25, 0.75])
    u = simplex.logmap(p, torch.tensor([0.0, 1.0]))  # the edge is at distance pi / 3
    assert simplex.dist(p, simplex.expmap(p, 2 * u)) == pytest.approx(0.0, abs=1e-9)
    assert torch.allclose(simplex.expmap(p, 1.5 * u), simplex.expmap(p, 0.5 * u))


def test_second_derivatives_are_finite_at_zero_length() -> None:
    simplex = Simplex()
    p = draw(1)[0]
    basis = simplex.frame(p)[0]
    to = lambda c: simplex.logmap(p, simplex.expmap(p, c @ basis))
    assert torch.allclose(jacrev(to)(torch.zeros(3)), basis.mT, atol=1e-9)
    assert torch.allclose(jacrev(jacrev(to))(torch.zeros(3)), torch.zeros(()), atol=1e-8)


@pytest.mark.parametrize("steps", ["projected", "exponential"])
def test_the_density_of_a_flow_from_uniform_integrates_to_one(steps) -> None:
    """A replicator field, which vanishes at the edges; a grid over the sphere of n = 3."""
    simplex = Simplex(steps=steps)
    mix = 2 * torch.tensor([[0.0, 1.0, -0.5], [-1.0, 1.0, 0.8], [0.5, -0.8, -1.0]])

    def velocity(t: Tensor, p: Tensor, context: Tensor | None) -> Tensor:
        gain = (p @ mix).sin()
        return p * (gain - (p * gain).sum(-1, keepdim=True))

    n = 30
    a, b = torch.meshgrid(*((torch.arange(n) + 0.5) / n * math.pi / 2 for _ in "ab"), indexing="ij")
    p = torch.stack([a.sin() ** 2, (a.cos() * b.sin()) ** 2, (a.cos() * b.cos()) ** 2], -1)
    ode = ODE(FunctionField(velocity), RK4(4), manifold=simplex)
    pulled = ode.pull(tracked(p.flatten(0, 1)))
    assert pulled.ladj is not None
    density = (pulled.ladj - simplex.log_volume((3,))).exp().unflatten(0, (n, n))
    assert density.max() / density.min() > 2
    areas = 4 * a.cos() * (math.pi / 2 / n) ** 2  # on the sphere of radius 2
    assert (density * areas).sum().item() == pytest.approx(1.0, abs=1e-3)


def test_bad_input_is_told() -> None:
    ok, reason = Simplex().check_point(torch.tensor([[0.7, 0.5, -0.1]]))
    assert not ok
    assert reason == "sums differ from 1 by up to 0.1, and the smallest entry is -0.1"
    with pytest.raises(ShapeError, match="2 probabilities or more"):
        Simplex().dim((1,))
    assert repr(Simplex(steps="exponential")) == "Simplex(steps='exponential')"


@pytest.mark.unchecked
def test_kernels_compile_and_vmap() -> None:
    simplex, p, q = Simplex(), draw(), draw()

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        end = simplex.projx(simplex.expmap(p, 0.5 * simplex.logmap(p, q)))
        return simplex.dist(p, end) + simplex.log_volume_element(end)

    assert torch.allclose(vmap(kernel)(p, q), kernel(p, q))
    compiled = torch.compile(kernel, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(p, q), kernel(p, q))
