"""Products: distances by Pythagoras, volumes that agree with weights, parts of every kind."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from cflow.base import Gaussian, Joint, ManifoldUniform
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField
from cflow.flow import Flow
from cflow.manifold import (
    AffineInvariantSPD,
    Euclidean,
    Lorentz,
    MeanFree,
    PoincareBall,
    Product,
    Quaternions,
    RigidMotions,
    Rotations,
    Sphere,
    Torus,
)
from cflow.ode import RK4, Dopri5
from cflow.state import State, tracked
from cflow.transport import ODE

SPACE = Product((Sphere(), 3), (Torus(), 2), (Rotations(), (3, 3)), weights=(2.0, 0.5, 3.0))


def draw(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SPACE.uniform((n,), (14,), like=torch.zeros(()), generator=generator)


def test_splitting_and_joining_undo_each_other() -> None:
    x = draw(6).reshape(2, 3, 14)
    direction, angles, turn = SPACE.split(x)
    assert direction.shape == (2, 3, 3)
    assert angles.shape == (2, 3, 2)
    assert turn.shape == (2, 3, 3, 3)
    assert torch.equal(SPACE.join([direction, angles, turn]), x)
    assert torch.equal(SPACE.join([direction[0, 0], angles, turn])[1, 2, :3], direction[0, 0])
    scalars = Product((Euclidean(0), ()), (Torus(ndim=2), (2, 2)))
    y = torch.randn(4, 5)
    assert scalars.split(y)[0].shape == (4,)
    assert torch.equal(scalars.join(scalars.split(y)), y)
    assert SPACE.split(torch.zeros(0, 14))[2].shape == (0, 3, 3)
    with pytest.raises(ShapeError, match=r"Product.split: x must end in shape \(14,\)"):
        SPACE.split(torch.zeros(13))
    with pytest.raises(ShapeError, match=r"Product.join: points\[1\] must end in shape \(2,\)"):
        SPACE.join([direction, direction, turn])
    with pytest.raises(ShapeError, match="one tensor for each of 3 parts"):
        SPACE.join([direction, angles])


def test_weights_count_alike_in_distances_lengths_and_volumes() -> None:
    x, y = draw(20), draw(20, seed=1)
    squares = [
        weight * part.dist(a, b).square()
        for weight, (part, _), a, b in zip(
            SPACE.weights, SPACE.parts, SPACE.split(x), SPACE.split(y), strict=True
        )
    ]
    assert torch.allclose(SPACE.dist(x, y).square(), sum(squares), atol=1e-12)
    u = SPACE.logmap(x, y)
    assert torch.allclose(SPACE.inner(x, u, u), sum(squares), atol=1e-10)
    radius = 1.7  # a weight w makes a sphere one of radius sqrt(w)
    for n, area in ((2, 2 * math.pi * radius), (3, 4 * math.pi * radius**2)):
        sphere = Product((Sphere(), n), weights=(radius**2,))
        assert sphere.log_volume((n,)) == pytest.approx(math.log(area))
    parts = sum(part.log_volume(shape) for part, shape in SPACE.parts)
    scale = 0.5 * (2 * math.log(2.0) + 2 * math.log(0.5) + 3 * math.log(3.0))
    assert SPACE.log_volume((14,)) == pytest.approx(parts + scale)
    assert SPACE.dim((14,)) == 7


def test_the_volume_is_that_of_the_metric_in_coordinates() -> None:
    """Of a torus with sides of other lengths: the integral of sqrt(det g) over its angles."""
    space = Product((Torus(), 1), (Torus(3.0), 1), weights=(4.0, 0.3))
    x = space.projx(torch.rand(1, 2))
    one = torch.eye(2)
    g = space.inner(x[:, None, None].expand(1, 2, 2, 2), one[:, None].expand(1, 2, 2, 2), one)
    volume = torch.linalg.det(g[0]).sqrt() * 2 * math.pi * 3.0
    assert space.log_volume((2,)) == pytest.approx(volume.log().item())


def test_products_inside_products_are_flat_ones() -> None:
    inner = Product((Sphere(), 3), (Torus(), 2), weights=(2.0, 0.5))
    nested = Product((inner, 5), (Rotations(), (3, 3)), weights=(3.0, 1.0))
    flat = Product((Sphere(), 3), (Torus(), 2), (Rotations(), (3, 3)), weights=(6.0, 1.5, 1.0))
    x, y = draw(10), draw(10, seed=1)
    assert torch.allclose(nested.dist(x, y), flat.dist(x, y), atol=1e-12)
    assert nested.log_volume((14,)) == pytest.approx(flat.log_volume((14,)))
    for mine, theirs in zip(nested.frame(x), flat.frame(x), strict=True):
        assert torch.equal(mine, theirs)
    u = flat.logmap(x, y)
    assert torch.equal(nested.logmap(x, y), u)
    assert torch.equal(nested.log_det_exp(x, u), flat.log_det_exp(x, u))


def test_frames_and_volume_elements_of_flat_parts() -> None:
    assert Product((Torus(), 2), (Euclidean(), 3)).frame(torch.zeros(4, 5)) is None
    mixed = Product((Euclidean(), 2), (MeanFree(), (2, 1)), (PoincareBall(), 2))
    x = mixed.projx(0.3 * torch.randn(4, 6))
    vectors, _ = mixed.frame(x)
    assert vectors.shape == (4, 5, 6)
    assert torch.equal(vectors[:, :2, :2], torch.eye(2).expand(4, 2, 2))
    ball = mixed.parts[2][0].log_volume_element(mixed.split(x)[2])
    assert torch.equal(mixed.log_volume_element(x), ball)
    assert SPACE.log_volume_element(draw(2)) is None


def test_it_knows_of_its_parts_how_they_close_and_step() -> None:
    assert Product((Euclidean(), 2), (Lorentz(), 3)).loop == math.inf
    assert Product((Sphere(), 3), (Euclidean(), 2)).loop is None
    assert Product((Rotations(), (3, 3)), (Quaternions(), 4)).smooth_frame
    assert not SPACE.smooth_frame
    assert SPACE.steps == "projected"
    part = Sphere(steps="exponential")
    assert Product((part, 3), (Torus(), 2)).steps == "exponential"
    assert Product((part, 3), (Torus(), 2), steps="projected").steps == "projected"


def test_a_part_without_volume_has_no_uniform_law_and_says_so() -> None:
    space = Product((Sphere(), 3), (Product((Euclidean(), 2), (Torus(), 1)), 3))
    assert space.log_volume((6,)) == math.inf
    with pytest.raises(DomainError, match=r"part 1, Product\(\(Euclidean\(\), 2\), .*Joint"):
        space.uniform((5,), (6,), like=torch.zeros(()))
    with pytest.raises(DomainError, match="no finite volume"):
        ManifoldUniform(space, 6)


def test_uniform_points_have_independent_parts() -> None:
    """Coordinates of the sphere and angles are uniform and uncorrelated; false alarm 1e-6."""
    from scipy.stats import kstest

    x = draw(20_000)
    direction, angles, _ = SPACE.split(x)
    assert kstest(direction[:, 2].numpy(), "uniform", args=(-1, 2)).pvalue > 5e-7
    assert kstest(angles[:, 0].numpy(), "uniform", args=(0, 2 * math.pi)).pvalue > 5e-7
    both = torch.stack([direction[:, 2], angles[:, 0], angles[:, 1]])
    off = torch.corrcoef(both)[0, 1:].abs().max()
    assert off < 5.1 / math.sqrt(20_000)


@pytest.mark.unchecked
def test_wrong_parts_are_refused() -> None:
    with pytest.raises(DomainError, match="at least one part"):
        Product()
    with pytest.raises(DomainError, match=r"part 1 must be a manifold of cflow.manifold and"):
        Product((Sphere(), 3), Torus())
    with pytest.raises(ShapeError, match=r"part 0, Torus\(ndim=2\), has 2 axes, got shape \(3,\)"):
        Product((Torus(ndim=2), 3))
    with pytest.raises(ShapeError, match="Sphere: a point is a vector"):
        Product((Sphere(), 1))
    with pytest.raises(DomainError, match="each of 1 parts needs a weight, got 2"):
        Product((Sphere(), 3), weights=(1.0, 2.0))
    with pytest.raises(DomainError, match=r"weights\[1\] must be positive and finite, got -1"):
        Product((Sphere(), 3), (Torus(), 1), weights=(1.0, -1.0))
    with pytest.raises(ShapeError, match=r"a point is a vector of 14 entries, got \(13,\)"):
        SPACE.dim((13,))
    x = draw(2)
    x[1, :3] *= 2
    on, reason = SPACE.check_point(x)
    assert (on, reason) == (False, "of part 0, Sphere(), lengths differ from 1 by up to 1")


def test_how_it_is_written() -> None:
    said = "Product((Sphere(), 3), (Rotations(), (3, 3)), weights=(1.0, 2.0))"
    assert repr(Product((Sphere(), 3), (Rotations(), (3, 3)), weights=(1.0, 2.0))) == said
    part = (Sphere(steps="exponential"), 3)
    assert repr(Product(part)) == "Product((Sphere(steps='exponential'), 3))"
    assert repr(Product((Torus(), 1), steps="exponential")).endswith("steps='exponential')")


def test_parts_that_do_not_see_each_other_add_their_log_determinants() -> None:
    sphere, spd = Sphere(), AffineInvariantSPD()
    space = Product((sphere, 3), (spd, (2, 2)), weights=(2.0, 0.5))
    swirl = lambda t, x, c: sphere.proju(x, x.roll(1, -1).sin())
    grow = lambda t, x, c: spd.proju(x, 0.3 * x @ x)
    together = lambda t, z, c: space.join(
        [f(t, x, c) for f, x in zip((swirl, grow), space.split(z), strict=True)]
    )
    x = sphere.projx(torch.randn(5, 3))
    a = torch.randn(5, 2, 2)
    y = 0.3 * a @ a.mT + 0.3 * torch.eye(2)
    solver = Dopri5(1e-9, 1e-9)
    run = lambda f, space, x: ODE(FunctionField(f), solver, manifold=space).push(
        tracked(x, event_dim=space.ndim)
    )
    one, other = run(swirl, sphere, x), run(grow, spd, y)
    both = run(together, space, space.join([x, y]))
    assert torch.allclose(both.x, space.join([one.x, other.x]), atol=1e-7)
    assert torch.allclose(both.ladj, one.ladj + other.ladj, atol=1e-6)


def test_the_flow_of_a_joint_law_integrates_to_one() -> None:
    """Over S^1 x R^1, weighted, on a grid: the law, its volume and ladj agree."""
    circle = Sphere()
    space = Product((circle, 2), (Euclidean(), 1), weights=(4.0, 0.5))
    base = Joint(ManifoldUniform(circle, 2), Gaussian(1), manifold=space)

    def swirl(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return space.proju(x, 0.6 * (x.roll(1, -1) + x[..., :1]).sin())

    flow = Flow(base, ODE(FunctionField(swirl), RK4(12), manifold=space))
    angle = torch.linspace(0, 2 * math.pi, 65)[:-1]
    height = torch.linspace(-9, 9, 181)
    a, h = (z.flatten() for z in torch.meshgrid(angle, height, indexing="ij"))
    with torch.no_grad():
        log_p = flow.log_prob(torch.stack([a.cos(), a.sin(), h], -1))
    cell = 2.0 * (angle[1] - angle[0]) * math.sqrt(0.5) * (height[1] - height[0])
    assert abs(log_p.exp().sum() * cell - 1) < 1e-6


@pytest.mark.unchecked
def test_it_compiles_exports_and_works_under_vmap() -> None:
    space = Product((RigidMotions(), (4, 4)), (Torus(), 2), weights=(2.0, 1.0))
    field = FunctionField(lambda t, x, c: space.proju(x, 0.2 * x.sin()))
    one = space.join([torch.eye(4), torch.ones(2)])
    x = space.expmap(one, space.proju(one, torch.randn(3, 18)))

    class Push(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ode = ODE(field, RK4(1), manifold=space)

        def forward(self, x: Tensor) -> Tensor:
            return self.ode.push(State(x)).x

    push = Push()
    expected = push(x)
    exported = torch.export.export(push, (x,), strict=False)
    assert torch.allclose(exported.module()(x), expected)
    kernel = lambda x, y: space.expmap(x, 0.5 * space.logmap(x, y))
    compiled = torch.compile(kernel, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, expected), kernel(x, expected))
    assert torch.allclose(vmap(kernel)(x, expected), kernel(x, expected))
