"""Fields on meshes: no flux is lost at edges, so densities integrate to one, as samples do."""

import math

import pytest
import torch
from torch import Generator, Tensor

from cflow import Flow, tracked
from cflow.base import Base
from cflow.data import meshes
from cflow.errors import DomainError
from cflow.field import Exact, FunctionField, SurfaceField, TangentField
from cflow.manifold import Mesh, Product, Torus
from cflow.nets import MLP
from cflow.ode import RK4, Dopri5
from cflow.state import State
from cflow.transport import ODE


class Uniform(Base):
    """The uniform law of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__((3,))
        self.mesh = mesh

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        like = torch.zeros((), dtype=torch.get_default_dtype())
        return self.mesh.uniform(shape, (3,), like=like, generator=generator)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.full_like(x[..., 0], -self.mesh.log_volume((3,)))


def ambient(seed: int = 0) -> FunctionField:
    """Return a smooth random field of space."""
    torch.manual_seed(seed)
    net = MLP(3, 3, context=1, hidden_features=(16,), activation="tanh")
    field = FunctionField(lambda t, x, context: net(x, t[..., None]))
    field.net = net
    return field


def sphere(level: int = 2) -> Mesh:
    return Mesh(*meshes.icosphere(level), eigenpairs=4)


def quadrature(mesh: Mesh, n: int) -> tuple[Tensor, Tensor]:
    """Return points and weights: the middles of n^2 equal parts of every face."""
    low = [((i + 1 / 3) / n, (j + 1 / 3) / n) for i in range(n) for j in range(n - i)]
    high = [((i + 2 / 3) / n, (j + 2 / 3) / n) for i in range(n) for j in range(n - i - 1)]
    share = torch.tensor(low + high)
    share = torch.cat([1 - share.sum(1, keepdim=True), share], 1)
    corner = mesh.vertices[mesh.faces]
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    weight = 0.5 * torch.linalg.vector_norm(normal, dim=-1) / len(share)
    x = torch.einsum("qk,fkd->fqd", share, corner)
    return x.reshape(-1, 3), weight.repeat_interleave(len(share))


def sides_of_edges(mesh: Mesh) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points just this side and just that of edges, and both directions across."""
    corner = mesh.vertices[mesh.faces]
    a, b, c = corner.unbind(1)
    share = torch.rand(len(a), 1)
    on = share * b + (1 - share) * a
    along = (b - a) / torch.linalg.vector_norm(b - a, dim=-1, keepdim=True)
    inwards = c - a - ((c - a) * along).sum(-1, keepdim=True) * along
    out = -inwards / torch.linalg.vector_norm(inwards, dim=-1, keepdim=True)
    here = on - 1e-7 * out
    there, across = mesh.geodesic(here, 2e-7 * out, torch.ones(len(a)))
    return here, there, out, across / 2e-7


@pytest.mark.parametrize("build", [lambda: meshes.icosphere(1), lambda: meshes.torus(9, 5)])
def test_the_flux_is_the_same_on_both_sides_of_edges(build) -> None:
    mesh = Mesh(*build())
    u = ambient()
    here, there, out, across = sides_of_edges(mesh)
    t = torch.full((len(here),), 0.3)
    for field, equal in ((SurfaceField(u, mesh), True), (u, False)):
        before, after = (mesh.proju(x, field(t, x)) for x in (here, there))
        flux = [(v * w).sum(-1) for v, w in ((before, out), (after, across))]
        assert torch.allclose(*flux, atol=1e-5) is equal
    v = SurfaceField(u, mesh)(t, here)
    assert torch.allclose(mesh.proju(here, v), v, atol=1e-12)


def test_on_a_fine_sphere_it_is_the_tangent_part() -> None:
    error = []
    for level in (1, 3):
        mesh = sphere(level)
        x, u = mesh.uniform((200,), (3,), like=torch.zeros(())), torch.randn(200, 3)
        error.append(float((mesh.conserve(x, u) - mesh.proju(x, u)).abs().max()))
    assert error[1] < 0.3 * error[0] < 0.3


@torch.no_grad()
def test_the_divergence_is_bounded_next_to_vertices() -> None:
    mesh = sphere(1)
    corner = mesh.vertices[mesh.faces]
    field = SurfaceField(ambient(), mesh)
    most = []
    for r in (1e-2, 1e-8):
        x = corner[:, 0] + r * (0.3 * corner[:, 1] + 0.7 * corner[:, 2] - corner[:, 0])
        t = torch.full((len(x),), 0.3)
        most.append(float(Exact()(field, t, x, None, None, frame=mesh.frame(x)).div.abs().max()))
    assert most[1] < 1.1 * most[0] < 5


def test_vectors_along_the_normal_make_no_sinks_of_vertices() -> None:
    """Round each vertex a small circle has inflow on one side and outflow on the other."""
    mesh = sphere()
    u = ambient()
    field = SurfaceField(lambda t, x, context: u(t, x, context) + 5 * x, mesh)
    corner = mesh.vertices[mesh.faces]
    radial = []
    for k in range(3):
        for share in (0.1, 0.5, 0.9):
            way = share * corner[:, k - 1] + (1 - share) * corner[:, k - 2] - corner[:, k]
            way = way / torch.linalg.vector_norm(way, dim=-1, keepdim=True)
            x = corner[:, k] + 1e-6 * way
            radial.append((field(torch.zeros(len(x)), x) * way).sum(-1))
    vertex = torch.cat([mesh.faces[:, k] for k in range(3) for _ in range(3)])
    low = torch.full((len(mesh.vertices),), math.inf)
    low = low.scatter_reduce(0, vertex, torch.cat(radial), "amin")
    high = (-torch.full_like(low, math.inf)).scatter_reduce(0, vertex, torch.cat(radial), "amax")
    assert (low < 0).all()
    assert (high > 0).all()


@torch.no_grad()
def test_the_divergence_integrates_to_zero() -> None:
    """To the error of the quadrature; a field that is merely projected makes volume at edges."""
    mesh = sphere(1)
    x, weight = quadrature(mesh, 4)
    t = torch.full((len(x),), 0.3)

    def integral(field: FunctionField | SurfaceField) -> tuple[float, float]:
        velocity = lambda t, x, context: mesh.proju(x, field(t, x, context))
        div = Exact()(velocity, t, x, None, None, frame=mesh.frame(x)).div
        return float((div * weight).sum().abs()), float((div.abs() * weight).sum())

    lost, size = integral(SurfaceField(ambient(), mesh))
    assert lost < 1e-5 * size
    lost, size = integral(ambient())
    assert lost > 0.1 * size


@torch.no_grad()
def test_densities_integrate_to_one() -> None:
    mesh = sphere()
    flow = Flow(Uniform(mesh), ODE(SurfaceField(ambient(), mesh), RK4(16), manifold=mesh))
    x, weight = quadrature(mesh, 2)
    log_prob = flow.log_prob(x)
    assert log_prob.max() - log_prob.min() > 2
    assert float((log_prob.exp() * weight).sum()) == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_samples_follow_the_density() -> None:
    """Chi-squared over the 20 parts of the icosphere; false alarm 1e-6."""
    from scipy.stats import chisquare

    mesh = sphere(1)
    flow = Flow(Uniform(mesh), ODE(SurfaceField(ambient(), mesh), RK4(8), manifold=mesh))
    drawn = flow.sample((5000,), generator=torch.Generator().manual_seed(0))
    assert mesh.check_point(drawn, atol=1e-10)[0]
    x, weight = quadrature(mesh, 3)
    vertices, faces = meshes.icosphere(0)
    towards = vertices[faces].sum(1)
    part = lambda x: (x @ towards.mT).argmax(-1)  # each is made of four faces
    mass = torch.zeros(20).index_add(0, part(x), flow.log_prob(x).exp() * weight)
    count = torch.bincount(part(drawn), minlength=20)
    expected = 5000 * mass / mass.sum()
    assert chisquare(count.numpy(), expected.numpy()).pvalue > 1e-6


@torch.no_grad()
def test_forth_and_back_again() -> None:
    """Velocities turn a little at edges, so a step that just misses one on the way back is off."""
    mesh = sphere()
    ode = ODE(SurfaceField(ambient(), mesh), RK4(48), manifold=mesh)
    x = mesh.uniform((50,), (3,), like=torch.zeros(()))
    there = ode.push(tracked(x, event_dim=1))
    assert torch.linalg.vector_norm(there.x - x, dim=-1).mean() > 0.3
    back = ode.pull(there)
    assert torch.linalg.vector_norm(back.x - x, dim=-1).max() < 1e-5
    assert back.ladj is not None
    assert back.ladj.abs().max() < 1e-5


@torch.no_grad()
def test_adaptive_solvers_find_the_same_end() -> None:
    """The divergence jumps at edges, where an error estimate says too little: 100 tolerances."""
    mesh = sphere()
    x = mesh.uniform((30,), (3,), like=torch.zeros(()))
    ends = [
        ODE(SurfaceField(ambient(), mesh), solver, manifold=mesh).push(tracked(x, event_dim=1))
        for solver in (Dopri5(1e-4, 1e-4), RK4(48))
    ]
    assert torch.linalg.vector_norm(ends[0].x - ends[1].x, dim=-1).median() < 1e-3
    assert ends[0].ladj is not None
    assert ends[1].ladj is not None
    assert (ends[0].ladj - ends[1].ladj).abs().median() < 1e-2


@torch.no_grad()
def test_ladj_is_that_of_small_triangles() -> None:
    """Their areas, pushed by many steps; where three corners pass a vertex on the same side."""
    mesh = sphere(1)
    ode = ODE(SurfaceField(ambient(), mesh), RK4(32), manifold=mesh)
    x = mesh.uniform((20,), (3,), like=torch.zeros(()))
    axes = mesh.frame(x)[0]
    corner = torch.stack([mesh.expmap(x, 1e-5 * axes[:, k]) for k in range(2)] + [x])
    pushed = ode.push(State(corner)).x
    area = lambda p: torch.linalg.vector_norm(torch.linalg.cross(p[0] - p[2], p[1] - p[2]), dim=-1)
    ladj = ode.push(tracked(x, event_dim=1)).ladj
    assert ladj is not None
    off = (ladj - (area(pushed) / area(corner)).log()).abs()
    assert off.median() < 2e-3
    assert (off < 2e-2).double().mean() > 0.9


@torch.no_grad()
def test_turning_everything_leaves_the_density() -> None:
    vertices, faces = meshes.icosphere(1)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turn = turn * torch.linalg.det(turn)
    field = ambient()
    turned = FunctionField(lambda t, x, context: field(t, x @ turn, context) @ turn.mT)

    def log_prob(vertices: Tensor, field: FunctionField, x: Tensor) -> Tensor:
        mesh = Mesh(vertices, faces)
        ode = ODE(SurfaceField(field, mesh), RK4(8), manifold=mesh)
        return Flow(Uniform(mesh), ode).log_prob(x)

    x = sphere(1).uniform((40,), (3,), like=vertices)
    one = log_prob(vertices, field, x)
    other = log_prob(vertices @ turn.mT, turned, x @ turn.mT)
    assert torch.allclose(one, other, atol=1e-9)


def test_gradients_of_a_likelihood_are_those_of_differences() -> None:
    mesh = sphere(1)
    field = ambient()
    flow = Flow(Uniform(mesh), ODE(SurfaceField(field, mesh), RK4(4), manifold=mesh))
    x = mesh.uniform((20,), (3,), like=torch.zeros(()))
    weight = next(p for p in field.parameters() if p.dim() == 2)
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), weight)
    way = torch.randn_like(slope)
    ends = []
    with torch.no_grad():
        for h in (1e-6, -1e-6):
            weight += h * way
            ends.append(flow.log_prob(x))
            weight -= h * way
    rate = (ends[0] - ends[1]) / 2e-6
    assert (rate.abs() < 1e3).all()  # no stage has changed its face in between
    assert float(rate.sum()) == pytest.approx(float((slope * way).sum()), rel=1e-4)


def test_projected_steps_agree() -> None:
    field, x = ambient(), sphere(1).uniform((30,), (3,), like=torch.zeros(()))
    ends = []
    for steps in ("exponential", "projected"):
        mesh = Mesh(*meshes.icosphere(1), steps=steps)
        ode = ODE(SurfaceField(field, mesh), RK4(50), manifold=mesh)
        with torch.no_grad():
            ends.append(ode.push(State(x)).x)
    assert torch.linalg.vector_norm(ends[0] - ends[1], dim=-1).median() < 2e-3


def test_a_likelihood_asks_for_a_field_that_conserves_mass() -> None:
    mesh = sphere(1)
    x = mesh.uniform((5,), (3,), like=torch.zeros(()))
    log_prob = lambda field: Flow(Uniform(mesh), ODE(field, RK4(2), manifold=mesh)).log_prob(x)
    for plain in (ambient(), TangentField(ambient(), mesh)):
        assert ODE(plain, RK4(2), manifold=mesh).push(State(x)).x.isfinite().all()
        with pytest.raises(DomainError, match=r"merely projected to Mesh.*SurfaceField"):
            log_prob(plain)
    kept = SurfaceField(ambient(), mesh)
    slowed = FunctionField(lambda t, x, context: 0.5 * kept(t, x, context))
    slowed.kept = kept  # a part of it, as of the fields that wrap another
    assert log_prob(slowed).isfinite().all()
    own = FunctionField(lambda t, x, context: mesh.conserve(x, torch.cos(x)))
    own.conserves = True
    assert log_prob(own).isfinite().all()
    both = Product((mesh, 3), (Torus(), 1))
    ode = ODE(TangentField(FunctionField(lambda t, x, context: x), both), manifold=both)
    point = tracked(torch.cat([x, torch.ones(5, 1)], -1), event_dim=1)
    with pytest.raises(DomainError, match="makes or loses mass"):
        ode.push(point)
