"""Meshes: closest points, straight walks, spectra, and what is no closed surface."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from cflow.data import meshes
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Biharmonic, Diffusion, Mesh
from cflow.manifold.spectral import spectrum
from cflow.manifold.triangles import build_faces
from cflow.matching import PremetricPath


def cube() -> tuple[Tensor, Tensor]:
    """The cube [-1, 1]^3 of 12 triangles."""
    signs = (-1.0, 1.0)
    corners = torch.tensor([[x, y, z] for x in signs for y in signs for z in signs])
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))]
    return corners, torch.tensor(faces)


def segment_distance(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    share = ((x - a) * (b - a)).sum(-1) / (b - a).square().sum(-1)
    return torch.linalg.vector_norm(a + share.clamp(0, 1)[..., None] * (b - a) - x, dim=-1)


def brute_distance(x: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the distance of points to a mesh: to a plane above its triangle, else to a side."""
    a, b, c = (corner[None] for corner in vertices[faces].unbind(1))
    x = x[:, None]
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    above = [
        (torch.linalg.cross(q - p, x - p) * normal).sum(-1) for p, q in ((a, b), (b, c), (c, a))
    ]
    inside = torch.stack(above).amin(0) >= 0
    beside = torch.stack([segment_distance(x, p, q) for p, q in ((a, b), (b, c), (c, a))]).amin(0)
    return torch.where(inside, ((x - a) * normal).sum(-1).abs(), beside).amin(1)


@pytest.mark.parametrize("scale", [0.0, 0.02, 0.3, 3.0])
@pytest.mark.parametrize("shape", ["sphere", "torus", "cube"])
def test_projected_points_are_the_closest(shape: str, scale: float) -> None:
    shapes = {"sphere": lambda: meshes.icosphere(2), "torus": meshes.torus, "cube": cube}
    vertices, faces = shapes[shape]()
    mesh = Mesh(vertices, faces, eigenpairs=4)
    x = mesh.uniform((200,), (3,), like=vertices) + scale * torch.randn(200, 3)
    y = mesh.projx(x)
    apart = torch.linalg.vector_norm(x - y, dim=-1)
    assert torch.allclose(apart, brute_distance(x, vertices, faces), atol=1e-12)
    assert brute_distance(y, vertices, faces).max() < 1e-12


def test_far_points_and_vertices_are_projected() -> None:
    vertices, faces = meshes.icosphere(1)
    mesh = Mesh(vertices, faces)
    assert torch.allclose(mesh.projx(vertices), vertices, atol=1e-12)
    assert torch.allclose(mesh.projx(100 * vertices), vertices, atol=1e-12)
    x = 1e4 * torch.randn(20, 3)
    far = torch.linalg.vector_norm(x - mesh.projx(x), dim=-1)
    assert torch.allclose(far, brute_distance(x, vertices, faces), rtol=1e-12)
    mixed = torch.stack([vertices[0], torch.full((3,), math.nan), 5 * vertices[1]])
    there = mesh.projx(mixed)
    assert torch.isnan(there[1]).all()
    assert torch.allclose(there[::2], vertices[:2], atol=1e-12)
    assert mesh.projx(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(ShapeError, match=r"points must end in shape \(3,\), got \(4,\)"):
        mesh.projx(torch.zeros(4))


def test_the_derivative_of_a_projection_is_that_of_the_plane() -> None:
    mesh = Mesh(*meshes.icosphere(1))
    x = mesh.uniform((1,), (3,), like=torch.zeros(()))[0]
    jacobian = torch.func.jacrev(mesh.projx)(1.001 * x)
    (axes, _) = mesh.frame(x)
    assert torch.allclose(jacobian, axes.mT @ axes, atol=1e-12)
    assert torch.allclose(torch.func.jacfwd(mesh.projx)(1.001 * x), jacobian, atol=1e-12)


def test_a_straight_way_round_a_cube_closes() -> None:
    """Four sides unfold to a strip of length 8, and a slope of 1/8 climbs by 1."""
    mesh = Mesh(*cube())
    x = torch.tensor([[-1.0, 0.2, -0.4]])
    round_it = mesh.expmap(x, torch.tensor([[0.0, 8.0, 0.0]]))
    assert torch.allclose(round_it, x, atol=1e-12)
    point, velocity = mesh.geodesic(x, torch.tensor([[0.0, 8.0, 1.0]]), torch.ones(1))
    assert torch.allclose(point, x + torch.tensor([0.0, 0.0, 1.0]), atol=1e-12)
    assert torch.allclose(velocity, torch.tensor([[0.0, 8.0, 1.0]]), atol=1e-12)
    quarter, turned = mesh.geodesic(x, torch.tensor([[0.0, 1.3, 0.1]]), torch.ones(1))
    assert torch.allclose(quarter, torch.tensor([[-0.5, 1.0, -0.3]]), atol=1e-12)
    assert torch.allclose(turned, torch.tensor([[1.3, 0.0, 0.1]]), atol=1e-12)


def test_walks_come_back_and_keep_their_length() -> None:
    mesh = Mesh(*meshes.torus())
    x = mesh.uniform((100,), (3,), like=torch.zeros(()))
    u = mesh.proju(x, 2 * torch.randn(100, 3))
    y, v = mesh.geodesic(x, u, torch.ones(100))
    assert mesh.check_point(y, atol=1e-12)[0]
    assert torch.allclose(mesh.inner(y, v, v), mesh.inner(x, u, u), atol=1e-10)
    back, w = mesh.geodesic(y, -v, torch.ones(100))
    assert torch.allclose(back, x, atol=1e-10)
    assert torch.allclose(w, -u, atol=1e-10)
    assert torch.allclose(mesh.log_rate(x, u, y, v), u, atol=1e-10)
    half = mesh.expmap(*mesh.geodesic(x, 0.5 * u, torch.ones(100)))
    assert torch.allclose(half, y, atol=1e-10)


def test_on_a_fine_sphere_walks_are_great_circles() -> None:
    """Up to the angles that are missing at vertices: the error falls with the faces."""
    error = []
    for level in (2, 4):
        mesh = Mesh(*meshes.icosphere(level), eigenpairs=4)
        x = mesh.uniform((200,), (3,), like=torch.zeros(()))
        u = mesh.proju(x, torch.randn(200, 3))
        u = 2 * u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        there = x * math.cos(2) + u / 2 * math.sin(2)
        error.append(float(torch.linalg.vector_norm(mesh.expmap(x, u) - there, dim=-1).mean()))
    assert error[1] < 0.3 * error[0] < 0.06


def test_walks_through_vertices_and_along_edges_end() -> None:
    vertices, faces = meshes.icosphere(1)
    mesh = Mesh(vertices, faces)
    corner = vertices[faces]
    middle = corner.mean(1)
    for u in (3 * (corner[:, 0] - middle), -3 * (corner[:, 0] - middle)):
        assert mesh.check_point(mesh.expmap(middle, u), atol=1e-10)[0]
    edge = corner[:, 1] - corner[:, 0]
    assert mesh.check_point(mesh.expmap(corner[:, 0], 2.5 * edge), atol=1e-10)[0]
    assert mesh.check_point(mesh.expmap(corner[:, 0] + 0.5 * edge, edge), atol=1e-10)[0]


def test_float32_walks_keep_their_digits() -> None:
    mesh = Mesh(*meshes.torus())
    x = mesh.uniform((200,), (3,), like=torch.zeros(()))
    u = mesh.proju(x, torch.randn(200, 3))
    y = mesh.expmap(x.float(), u.float())
    assert y.dtype == torch.float32
    off = torch.linalg.vector_norm(y.double() - mesh.expmap(x, u), dim=-1)
    assert off.median() < 1e-6
    assert (off < 1e-4).double().mean() > 0.98  # some pass a vertex on its other side
    assert mesh.projx(x.bfloat16()).dtype == torch.bfloat16


def test_eigenvalues_are_those_of_the_sphere() -> None:
    """l (l + 1), 2 l + 1 times each; from above, and as near as linear elements come.

    Those overestimate lambda by about a share of lambda h^2 / 12, which at l = 5 is 0.056 and 0.014
    for edges of 0.15 and 0.075.
    """
    true = torch.tensor([l * (l + 1.0) for l in range(6) for _ in range(2 * l + 1)])
    for level, share in ((3, 0.056), (4, 0.014)):
        faces = build_faces(*meshes.icosphere(level))
        values = spectrum(faces, 35).eigenvalues * faces.area.sum() / (4 * math.pi)
        error = values[1:] / true[1:] - 1
        assert (error > 0).all()
        assert error.max() < share


@pytest.mark.parametrize("level", [1, 3])  # a dense solve, and one of sparse matrices
def test_eigenfunctions_are_orthonormal_over_the_surface(level: int) -> None:
    """By the rule of edge midpoints, exact for products of linear functions."""
    vertices, faces = meshes.icosphere(level)
    mesh = Mesh(vertices, faces, eigenpairs=20)
    values, functions = mesh.spectrum
    corner = functions[faces]
    middle = 0.5 * (corner + corner.roll(1, 1))
    sides = vertices[faces] - vertices[faces].roll(1, 1)
    area = 0.5 * torch.linalg.vector_norm(torch.linalg.cross(sides[:, 0], sides[:, 1]), dim=-1)
    gram = torch.einsum("f,fki,fkj->ij", area / 3, middle, middle)
    assert torch.allclose(gram, torch.eye(21), atol=1e-9)
    assert values[0] == 0
    assert (values.diff() > -1e-9).all()
    assert math.exp(mesh.log_volume((3,))) == pytest.approx(float(area.sum()))
    x = mesh.uniform((50,), (3,), like=torch.zeros(()))
    assert torch.allclose(mesh.interpolate(vertices, functions), functions, atol=1e-9)
    assert torch.allclose(mesh.interpolate(x, vertices), x, atol=1e-12)
    assert mesh.interpolate(x, functions[:, 3]).shape == (50,)
    with pytest.raises(ShapeError, match=r"values must have shape \(\d+, \.\.\.\)"):
        mesh.interpolate(x, functions[1:])


def test_the_biharmonic_distance_is_that_of_greens_function() -> None:
    """With all eigenpairs, d^2 = G(x, x) + G(y, y) - 2 G(x, y) with G = L^+ M L^+."""
    vertices, faces = meshes.icosphere(1)
    mesh = Mesh(vertices, faces, premetric=Biharmonic())
    size = len(vertices)
    stiff, mass = torch.zeros(size, size), torch.zeros(size, size)
    for face in faces:
        p = vertices[face]
        area = 0.5 * torch.linalg.vector_norm(torch.linalg.cross(p[1] - p[0], p[2] - p[0]))
        opposite = torch.stack([p[2] - p[1], p[0] - p[2], p[1] - p[0]])
        stiff[face[:, None], face] += opposite @ opposite.mT / (4 * area)
        mass[face[:, None], face] += area / 12 * (torch.ones(3, 3) + torch.eye(3))
    one = torch.ones(size, 1)
    mean_free = torch.eye(size) - one @ (one.mT @ mass) / mass.sum()
    inverse = mean_free @ torch.linalg.pinv(stiff) @ mean_free.mT
    green = inverse @ mass @ inverse
    square = green.diagonal()[:, None] + green.diagonal() - 2 * green
    dist = mesh.dist(vertices[:, None], vertices)
    assert torch.allclose(dist.square(), square, atol=1e-10)


def test_diffusion_distances_see_less_of_high_frequencies() -> None:
    vertices, faces = meshes.icosphere(2)
    mesh = Mesh(vertices, faces, premetric=Diffusion(0.2), eigenpairs=30)
    x = mesh.uniform((8,), (3,), like=vertices)
    values, functions = mesh.spectrum
    phi = mesh.interpolate(x, functions)[:, 1:]
    square = (phi[:4] - phi[4:]).square() * (-0.4 * values[1:]).exp()
    assert torch.allclose(mesh.dist(x[:4], x[4:]), square.sum(1).sqrt(), atol=1e-12)
    assert mesh.embed(x).shape == (8, 30)
    with pytest.raises(DomainError, match="time must be positive"):
        Diffusion(0.0)
    with pytest.raises(DomainError, match="eigenpairs must be positive"):
        Mesh(vertices, faces, eigenpairs=0)


def test_uniform_points_are_so_by_area() -> None:
    """Chi-squared over the faces, Kolmogorov-Smirnov in them; false alarm 1e-6 each.

    A weight of a corner has the distribution function 1 - (1 - w)^2.
    """
    from scipy.stats import chisquare, kstest

    vertices, faces = meshes.torus(8, 6)
    mesh = Mesh(vertices, faces)
    generator = torch.Generator().manual_seed(0)
    x = mesh.uniform((40_000,), (3,), like=vertices, generator=generator)
    weights = mesh.interpolate(x, torch.eye(len(vertices)))
    assert torch.allclose(weights @ vertices, x, atol=1e-12)
    face = weights[:, faces].sum(-1).argmax(1)
    corner = vertices[faces]
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = 0.5 * torch.linalg.vector_norm(normal, dim=-1)
    count = torch.bincount(face, minlength=len(faces))
    expected = 40_000 * area / area.sum()
    assert chisquare(count.numpy(), expected.numpy()).pvalue > 1e-6
    for k in range(3):
        share = weights.gather(1, faces[face][:, k : k + 1]).squeeze(1)
        assert kstest((1 - (1 - share) ** 2).numpy(), "uniform").pvalue > 1e-6


def test_premetric_paths_run_over_a_mesh() -> None:
    mesh = Mesh(*meshes.icosphere(2), premetric=Diffusion(0.25))
    generator = torch.Generator().manual_seed(0)
    draw = lambda: mesh.uniform((64,), (3,), like=torch.zeros(()), generator=generator)
    x0, x1, t = draw(), draw(), 0.95 * torch.rand(64, generator=generator)
    point = PremetricPath(mesh, steps=60).sample(x0, x1, t)
    assert mesh.check_point(point.x, atol=1e-10)[0]
    assert torch.allclose(mesh.proju(point.x, point.target), point.target, atol=1e-10)
    share = mesh.dist(point.x, x1) / mesh.dist(x0, x1)
    assert (share - (1 - t)).abs().quantile(0.9) < 0.02


def test_what_has_no_closed_form_is_refused() -> None:
    mesh = Mesh(*meshes.icosphere(0))
    x = mesh.vertices
    with pytest.raises(DomainError, match=r"no logarithm on a mesh.*PremetricPath"):
        mesh.logmap(x, x)
    with pytest.raises(DomainError, match=r"cut_locus: it is not known on a mesh"):
        mesh.cut_locus(x, x)
    with pytest.raises(ShapeError, match=r"a point is a vector \(3,\), got \(2,\)"):
        mesh.dim((2,))
    on, reason = mesh.check_point(1.5 * x)
    assert (on, reason) == (False, "points lie up to 0.5 off the surface")


def test_what_is_no_closed_surface_is_refused_where_it_fails() -> None:
    vertices, faces = meshes.icosphere(0)
    a, b = faces[7, 1].item(), faces[7, 2].item()

    def refused(match: str, vertices: Tensor = vertices, faces: Tensor = faces) -> None:
        with pytest.raises((DomainError, ShapeError), match=match):
            Mesh(vertices, faces)

    refused(r"lies in 1 faces, and in a closed surface in two; 3 edges are so", faces=faces[1:])
    refused("lies in 3 faces", faces=torch.cat([faces, torch.tensor([[a, b, faces[0, 0].item()]])]))
    turned = faces.clone()
    turned[7] = turned[7].flip(0)
    refused(r"faces \d+ and \d+ run along the edge from vertex \d+ to \d+", faces=turned)
    refused(r"face 20 with corners \[3, 3, 4\] is degenerate", faces=torch.cat(
        [faces, torch.tensor([[3, 3, 4]])]
    ))  # fmt: skip
    wrong = faces.clone()
    wrong[2, 1] = 12
    refused(r"face 2 has corners .*, but vertices are numbered from 0 to 11", faces=wrong)
    broken = vertices.clone()
    broken[4, 1] = math.nan
    refused(r"vertices must be finite, got nan at index \(4, 1\)", broken)
    refused("vertex 12 belongs to no face", torch.cat([vertices, torch.ones(1, 3)]))
    refused(
        "falls into 2 pieces", torch.cat([vertices, vertices + 5]), torch.cat([faces, faces + 12])
    )
    touching = torch.cat([vertices, vertices + 5])
    joined = torch.cat([faces, torch.where(faces == 0, 3, faces + 12)])
    joined = torch.where(joined > 12, joined - 1, joined)
    kept = torch.cat([touching[:12], touching[13:]])
    refused("sheets of the surface touch in vertex 3 only", kept, joined)
    refused(r"vertices must have shape \(n, 3\), got \(12, 2\)", vertices[:, :2])
    refused(r"faces must be integer indices, got torch.float64", faces=faces.double())
    refused("4 faces at least, got 2", vertices[:3], torch.tensor([[0, 1, 2], [0, 2, 1]]))
    flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, 0]])
    refused("folded flat", flat, torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]]))
    with pytest.raises(DomainError, match="smoothing must be positive"):
        Mesh(vertices, faces, smoothing=0.0)
    with pytest.raises(DomainError, match="crossings must be at least 1"):
        Mesh(vertices, faces, crossings=0)


def test_what_is_remembered_follows_the_values() -> None:
    mesh = Mesh(*meshes.icosphere(1))
    x = mesh.uniform((5,), (3,), like=torch.zeros(()))
    y = mesh.uniform((5,), (3,), like=torch.zeros(()))
    buffer = x.clone()
    first = mesh.frame(buffer)[0]
    buffer.data.copy_(y)  # unseen by any counter of versions
    assert torch.equal(mesh.frame(buffer)[0], mesh.frame(y)[0])
    assert not torch.allclose(mesh.frame(buffer)[0], first)
    for other in (copy.deepcopy(mesh), pickle.loads(pickle.dumps(mesh))):
        assert torch.equal(other.frame(x)[0], first)


def test_repr_says_how_large_it_is() -> None:
    mesh = Mesh(*meshes.icosphere(0), steps="projected")
    written = "Mesh(<12 vertices>, <20 faces>, premetric=Biharmonic(), steps='projected')"
    assert repr(mesh) == written


@pytest.mark.unchecked
def test_kernels_compile_and_vectorise() -> None:
    mesh = Mesh(*meshes.icosphere(1), crossings=2)
    x = mesh.uniform((7,), (3,), like=torch.zeros(()))
    u = mesh.proju(x, 0.2 * torch.randn(7, 3))

    def kernels(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        y, v = mesh.geodesic(x, u, torch.full_like(x[..., 0], 0.7))
        return y, v, mesh.conserve(y, v), mesh.dist(x, y)

    plain = kernels(x, u)
    compiled = torch.compile(kernels, backend="eager", fullgraph=True)(x, u)
    for one, other, third in zip(plain, compiled, torch.func.vmap(kernels)(x, u), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
        assert torch.allclose(one, third, atol=1e-12)
    far = torch.func.vmap(lambda x: mesh.expmap(x, mesh.proju(x, 50 * x.roll(1))))(x)
    assert torch.isnan(far).any()  # more edges than were allowed for
    assert torch.isnan(torch.func.vmap(mesh.projx)(10 * x)).all()
