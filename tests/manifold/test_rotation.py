"""Rotations as matrices and quaternions: scipy, Haar's law, isometries, angles of zero and pi."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import kstest
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

from cflow.base import ManifoldUniform, WrappedNormal
from cflow.errors import DomainError, ShapeError
from cflow.field import FrameField, FunctionField, TimedMLP
from cflow.manifold import Quaternions, Rotations
from cflow.manifold.quaternion import arc, hat
from cflow.ode import RK4, Dopri5
from cflow.state import State, tracked
from cflow.transport import ODE

both = pytest.mark.parametrize("space", [Rotations(), Quaternions()], ids=repr)
Space = Rotations | Quaternions
ANGLES = [1e-9, 1e-4, 0.3, math.pi / 2, 2.5, math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-8]


def draw(space: Space, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    event = (3, 3) if isinstance(space, Rotations) else (4,)
    generator = torch.Generator().manual_seed(seed)
    return space.uniform((n,), event, like=torch.zeros((), dtype=dtype), generator=generator)


def scipy_of(space: Space, x: Tensor) -> Rotation:
    kind = Rotation.from_matrix if isinstance(space, Rotations) else Rotation.from_quat
    return kind(x.double().numpy())


def turned(x: Tensor, rotvec: Tensor) -> Tensor:
    """Return rotations and then turns in their frame, by scipy."""
    turn = Rotation.from_rotvec(rotvec.double().numpy())
    return torch.tensor((scipy_of(Rotations(), x) * turn).as_matrix())


def directions(n: int) -> Tensor:
    axes = torch.randn(n, 3, generator=torch.Generator().manual_seed(2))
    return axes / axes.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exponential_and_logarithm_are_those_of_scipy(angle: float, dtype: torch.dtype) -> None:
    """At every angle, to the digits of the precision, in which the ends are rounded as well."""
    space, x, w = Rotations(), draw(Rotations(), 200), angle * directions(200)
    u, y = x @ hat(w), turned(x, w)
    error = 20 * torch.finfo(dtype).eps
    x0, u0, x1 = (z.to(dtype) for z in (x, u, y))
    assert (space.expmap(x0, u0).double() - y).abs().max() < error
    assert (space.dist(x0, x1).double() - angle).abs().max() < error
    log = space.logmap(x0, x1).double()
    gap = (log - u).abs().amax((-2, -1))
    if math.pi - angle < 1e-6:  # float32 cannot tell the two shortest ways
        gap = torch.minimum(gap, (log + u).abs().amax((-2, -1)))
    assert gap.max() < error


def test_quaternions_are_those_of_scipy() -> None:
    """Axes and angles of half turns among them, where other formulas divide by zero."""
    q = draw(Quaternions(), 50)
    special = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, -1]])
    q = torch.cat([q, special, Quaternions().projx(special + 1e-9)])
    r = Quaternions().to_matrix(q)
    assert torch.allclose(r, torch.tensor(Rotation.from_quat(q.numpy()).as_matrix()), atol=1e-14)
    back = Quaternions().from_matrix(r)
    assert (back[:, 3] >= 0).all()
    assert torch.minimum((back - q).norm(dim=-1), (back + q).norm(dim=-1)).max() < 1e-14
    with pytest.raises(ShapeError, match=r"Quaternions.to_matrix: q must end in shape \(4,\)"):
        Quaternions().to_matrix(torch.zeros(3))
    with pytest.raises(ShapeError, match=r"Quaternions.from_matrix: r must end in shape \(3, 3\)"):
        Quaternions().from_matrix(torch.zeros(4))


def test_quaternions_and_matrices_are_isometric() -> None:
    """Distances, and lengths, logarithms and frames as the derivative carries them."""
    space, other = Quaternions(), Rotations()
    p, q = draw(space, 30), draw(space, 30, seed=1)
    x, y = space.to_matrix(p), space.to_matrix(q)
    assert torch.allclose(space.dist(p, q), other.dist(x, y), atol=1e-12)
    assert torch.allclose(space.dist(p, -q), space.dist(p, q), atol=1e-14)
    assert torch.equal(space.dist(p, -p), torch.zeros(30))
    u = space.logmap(p, q)
    assert torch.allclose(space.logmap(p, -q), u, atol=1e-14)
    assert torch.allclose(space.logmap(-p, q), -u, atol=1e-14)
    carried = jvp(space.to_matrix, (p,), (u,))[1]
    assert torch.allclose(other.logmap(x, y), carried, atol=1e-12)
    assert torch.allclose(space.inner(p, u, u), other.inner(x, carried, carried), atol=1e-12)
    assert torch.allclose(space.log_det_exp(p, u), other.log_det_exp(x, carried), atol=1e-12)
    assert space.log_volume((4,)) == other.log_volume((3, 3))
    mine, theirs = space.frame(p)[0], other.frame(x)[0]
    for k in range(3):
        moved = jvp(space.to_matrix, (p,), (mine[:, k],))[1]
        assert torch.allclose(moved, theirs[:, k], atol=1e-12)


@both
def test_the_angle_of_a_uniform_rotation_is_haars(space: Space) -> None:
    """Its density is (1 - cos a) / pi. Kolmogorov-Smirnov, false alarm 1e-6."""
    x = draw(space, 20_000)
    one = draw(space, 1, seed=7)
    law = lambda a: (a - torch.sin(torch.as_tensor(a)).numpy()) / math.pi
    assert kstest(space.dist(x, one).numpy(), law).pvalue > 1e-6


def test_the_volume_is_the_integral_of_the_exponential() -> None:
    """Over the ball of radius pi: 4 pi int_0^pi (2 - 2 cos a) da = 8 pi^2."""
    a = torch.linspace(0, math.pi, 2001)[:, None, None]
    u = a * hat(torch.tensor([0.6, 0.0, 0.8]))
    density = Rotations().log_det_exp(torch.eye(3).expand(2001, 3, 3), u).exp()
    shells = 4 * math.pi * a.flatten().square() * density
    volume = torch.trapezoid(shells, a.flatten())
    assert volume.log().item() == pytest.approx(Rotations().log_volume((3, 3)), abs=1e-6)
    assert math.exp(Quaternions().log_volume((4,))) == pytest.approx(8 * math.pi**2)


def test_turns_from_left_and_right_are_isometries() -> None:
    space, x, y = Rotations(), draw(Rotations(), 20), draw(Rotations(), 20, seed=1)
    left, right = draw(Rotations(), 2, seed=2)
    for move in (lambda x: left @ x, lambda x: x @ right, lambda x: x.mT):
        assert torch.allclose(space.dist(move(x), move(y)), space.dist(x, y), atol=1e-12)
        u, v = jvp(move, (x,), (space.logmap(x, y),))
        assert torch.allclose(space.logmap(u, move(y)), v, atol=1e-11)


@both
def test_half_turns_are_told_and_one_shortest_way_is_given(space: Space) -> None:
    x = draw(space, 100)
    at_pi = space.expmap(x, math.pi * space.frame(x)[0][:, 0])
    assert space.cut_locus(x, at_pi).all()
    assert not space.cut_locus(x, space.expmap(x, 3.14 * space.frame(x)[0][:, 0])).any()
    assert torch.allclose(space.dist(x, at_pi), torch.tensor(math.pi), atol=1e-7)
    u = space.logmap(x, at_pi)
    assert torch.allclose(space.inner(x, u, u).sqrt(), torch.tensor(math.pi), atol=1e-7)
    assert space.dist(space.expmap(x, u), at_pi).max() < 1e-7


@both
@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-6, math.pi - 1e-4, math.pi])
def test_gradients_are_finite_at_zero_and_near_pi(space: Space, angle: float) -> None:
    """In float32, of each map by each argument; lengths of the distance's are one."""
    x = draw(space, 50, dtype=torch.float32)
    start = x.clone().requires_grad_()
    u = (angle * space.frame(x)[0][:, 1]).detach().requires_grad_()
    y = space.expmap(x, u).detach().requires_grad_()
    rate = space.proju(x, torch.ones_like(x))
    for value in (
        space.expmap(start, u), space.logmap(start, y), space.dist(start, y),
        space.log_det_exp(start, u), space.log_rate(start, u, y, rate), space.projx(y),
    ):  # fmt: skip
        assert torch.isfinite(value).all()
        for grad in torch.autograd.grad(value.sum(), (start, u, y), allow_unused=True):
            assert grad is None or torch.isfinite(grad).all()
    if 1e-4 < angle < math.pi:
        along = torch.stack([space.frame(y)[0][:, k] for k in range(3)], 1).flatten(2)
        grad = torch.autograd.grad(space.dist(x, y).sum(), y)[0].flatten(1)
        length = torch.einsum("nkd,nd->nk", along, grad).norm(dim=-1)
        assert torch.allclose(length, torch.ones(50, dtype=torch.float32), atol=1e-3)


def newton_polar(x: Tensor) -> Tensor:
    """Return the orthogonal factor of matrices, by an iteration that is smooth to any order."""
    for _ in range(10):
        x = 0.5 * (x + torch.linalg.inv(x).mT)
    return x


def test_the_projection_has_two_derivatives_at_rotations_too() -> None:
    """Where singular values are equal and those of torch.linalg.svd are not a number."""
    space = Rotations()
    x = draw(space, 3)
    for y in (x, x + 0.2 * torch.randn_like(x)):
        assert torch.allclose(space.projx(y), newton_polar(y), atol=1e-12)
        exact = vmap(jacrev(newton_polar))(y)
        twice = vmap(jacrev(jacrev(newton_polar)))(y)
        for first in (jacrev(space.projx), jacfwd(space.projx)):
            assert torch.allclose(vmap(first)(y), exact, atol=1e-11)
            for second in (jacrev, jacfwd):
                assert torch.allclose(vmap(second(first))(y), twice, atol=1e-10)
    leaf = x.clone().requires_grad_()
    space.projx(leaf).pow(3).sum().backward()
    assert torch.allclose(leaf.grad, vmap(jacrev(lambda y: newton_polar(y).pow(3).sum()))(x))


def test_the_projection_finds_the_nearest_rotation() -> None:
    """Reflections, singular matrices and zero among the matrices; against random rotations."""
    space = Rotations()
    x = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(3))
    special = torch.stack([-torch.eye(3), torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1, 0]))])
    x = torch.cat([x, special])
    nearest = space.projx(x)
    assert space.check_point(nearest, atol=1e-12) == (True, "")
    off = (nearest - x).square().sum((-2, -1))
    away = (draw(space, 3000)[:, None] - x).square().sum((-2, -1)).amin(0)
    assert (off <= away + 1e-12).all()
    grad = jvp(space.projx, (x,), (torch.ones_like(x),))[1]
    assert torch.isfinite(grad[:40]).all()


def test_what_is_no_rotation_is_refused() -> None:
    space = Rotations()
    on, reason = space.check_point(-torch.eye(3).expand(2, 3, 3))
    assert (on, reason) == (False, "2 matrices reflect, determinant -1")
    on, reason = space.check_point(1.1 * torch.eye(3))
    assert "0.21" in reason
    assert space.check_point(torch.zeros(0, 3, 3)) == (True, "")
    with pytest.raises(ShapeError, match=r"Quaternions takes vectors of four"):
        space.dim((4,))
    with pytest.raises(ShapeError, match=r"\(x, y, z, w\)"):
        Quaternions().dim((3, 3))
    ode = ODE(FunctionField(lambda t, x, c: x), RK4(1), manifold=space)
    with pytest.raises(DomainError, match=r"must lie on Rotations\(\), but products of columns"):
        ode.push(State(torch.ones(2, 3, 3)))


def test_how_they_are_written() -> None:
    assert repr(Rotations()) == "Rotations()"
    assert repr(Rotations(steps="exponential")) == "Rotations(steps='exponential')"
    assert repr(Quaternions()) == "Quaternions()"
    assert repr(Quaternions(steps="exponential")) == "Quaternions(steps='exponential')"


@pytest.mark.parametrize("space", [Rotations(), Rotations(steps="exponential"), Quaternions()])
def test_a_constant_angular_velocity_is_a_turn(space: Space) -> None:
    """R(1) = R(0) exp(w), volume kept: for steps of every kind, against scipy."""
    w = torch.tensor([0.4, -1.1, 2.0])
    field = FrameField(lambda t, x, c: w.expand(*t.shape, 3), space)
    x = draw(space, 5)
    state = ODE(field, Dopri5(1e-10, 1e-10), manifold=space).push(tracked(x, event_dim=space.ndim))
    end = scipy_of(space, x) * Rotation.from_rotvec(w.numpy())
    assert torch.allclose(
        torch.tensor(scipy_of(space, state.x).as_matrix()),
        torch.tensor(end.as_matrix()),
        atol=1e-8,
    )
    assert state.ladj is not None
    assert state.ladj.abs().max() < 1e-12


def test_one_flow_has_one_density_on_matrices_and_quaternions() -> None:
    """And the same one at q and -q, since coefficients of the matrix make an odd field."""
    matrices, quaternions = Rotations(), Quaternions()
    torch.manual_seed(0)
    net = TimedMLP((3, 3), 3, hidden_features=(16,))
    ours = FrameField(net, matrices)
    theirs = FrameField(lambda t, q, c: net(t, quaternions.to_matrix(q), c), quaternions)
    q = draw(quaternions, 6)
    solver = Dopri5(1e-8, 1e-8)
    x = ODE(ours, solver, manifold=matrices).push(tracked(quaternions.to_matrix(q), event_dim=2))
    for sign in (1, -1):
        y = ODE(theirs, solver, manifold=quaternions).push(tracked(sign * q))
        assert torch.allclose(quaternions.to_matrix(y.x), x.x, atol=1e-7)
        assert torch.allclose(y.ladj, x.ladj, atol=1e-7)
    assert x.ladj.abs().max() > 1e-2


@both
def test_densities_integrate_to_one(space: Space) -> None:
    """By 100 000 uniform points; 4.9 standard errors, false alarm 1e-6."""
    event = (3, 3) if isinstance(space, Rotations) else (4,)
    x = draw(space, 100_000)
    law = WrappedNormal(space, event, mean=x[0], scale=0.7)
    p = law.log_prob(x[1:]).exp().detach() * math.exp(space.log_volume(event))
    assert abs(p.mean() - 1) < 4.9 * p.std() / math.sqrt(len(p))
    uniform = ManifoldUniform(space, event)
    assert torch.allclose(uniform.log_prob(x[:2]), torch.tensor(-math.log(8 * math.pi**2)))


def test_arcs_are_accurate_with_their_derivatives() -> None:
    h = torch.tensor([1e-12, 1e-4, 0.5, math.pi / 4 - 1e-9, math.pi / 4 + 1e-9, 1.0, 1.5])
    exact = h / h.sin()
    assert torch.allclose(arc(h.sin().square(), h.cos()), exact, rtol=1e-14)
    slope = vmap(jacrev(lambda h: arc(h.sin().square(), h.cos())))(h)
    expected = torch.where(h > 1e-3, (h.sin() - h * h.cos()) / h.sin().square(), h / 3)
    assert torch.allclose(slope, expected, rtol=1e-8)


@both
@pytest.mark.unchecked
def test_kernels_compile_and_vmap(space: Space) -> None:
    x, y = draw(space, 5), draw(space, 5, seed=1)

    def kernel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def way(y: Tensor) -> Tensor:
            u = space.logmap(space.projx(x), y)
            half = 0.5 * x.new_ones(x.shape[: x.dim() - space.ndim])
            return space.log_rate(x, u, y, space.proju(y, x)) + space.geodesic(x, u, half)[0]

        return jvp(way, (y,), (space.proju(y, x),))

    expected = kernel(x, y)
    for run in (vmap(kernel), torch.compile(kernel, backend="aot_eager", fullgraph=True)):
        for found, value in zip(run(x, y), expected, strict=True):
            assert torch.allclose(found, value, atol=1e-12)


@both
@pytest.mark.unchecked
def test_solves_export(space: Space) -> None:
    x = draw(space, 3)

    class Push(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            field = FunctionField(lambda t, x, context: space.proju(x, x.sin()))
            self.ode = ODE(field, RK4(1), manifold=space)

        def forward(self, x: Tensor) -> Tensor:
            return self.ode.push(State(x)).x

    exported = torch.export.export(Push(), (x,), strict=False)
    assert torch.allclose(exported.module()(x), Push()(x))
