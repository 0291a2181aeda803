"""Rigid motions: what moves the whole scene changes nothing, and straight lines stay straight."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.func import jvp, vmap

from cflow.errors import DomainError, ShapeError
from cflow.field import FrameField, FunctionField, TimedMLP
from cflow.manifold import Compact, Euclidean, Product, RigidMotions, Rotations
from cflow.manifold.quaternion import hat
from cflow.ode import RK4, Dopri5
from cflow.state import State, tracked
from cflow.transport import ODE

WEIGHTED = RigidMotions(rotation_weight=2.0, translation_weight=0.3)


def poses(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=dtype)
    x = torch.zeros(n, 4, 4, dtype=dtype)
    x[:, :3, :3] = Rotations().uniform((n,), (3, 3), like=like, generator=generator)
    x[:, :3, 3] = 2 * torch.randn(n, 3, dtype=dtype, generator=generator)
    x[:, 3, 3] = 1
    return x


def test_motions_of_the_whole_scene_are_isometries() -> None:
    """Those from the left; of those from the right only the rotations and none that shift."""
    x, y = poses(20), poses(20, seed=1)
    scene, turn = poses(2, seed=2)
    turn = turn.clone()
    turn[:3, 3] = 0
    for move in (lambda x: scene @ x, lambda x: x @ turn):
        assert torch.allclose(WEIGHTED.dist(move(x), move(y)), WEIGHTED.dist(x, y), atol=1e-12)
        start, v = jvp(move, (x,), (WEIGHTED.logmap(x, y),))
        assert torch.allclose(WEIGHTED.logmap(start, move(y)), v, atol=1e-11)
    assert not torch.allclose(WEIGHTED.dist(x @ scene, y @ scene), WEIGHTED.dist(x, y), atol=0.1)


def test_the_frame_moves_with_the_scene_and_is_orthonormal_up_to_the_weights() -> None:
    x, scene = poses(5), poses(1, seed=2)[0]
    vectors, covectors = WEIGHTED.frame(x)
    moved = WEIGHTED.frame(scene @ x)[0]
    assert torch.allclose(scene @ vectors, moved, atol=1e-12)
    at = x[:, None, None].expand(5, 6, 6, 4, 4)
    lengths = WEIGHTED.inner(at, vectors[:, :, None], vectors[:, None])
    expected = torch.diag(torch.tensor([2.0] * 3 + [0.3] * 3))
    assert torch.allclose(lengths, expected.expand(5, 6, 6), atol=1e-12)
    assert vectors.shape == covectors.shape == (5, 6, 4, 4)


def test_geodesics_turn_as_scipy_does_and_go_straight() -> None:
    x = poses(10)
    w, go = torch.randn(10, 3), torch.randn(10, 3)
    u = torch.zeros(10, 4, 4)
    u[:, :3, :3], u[:, :3, 3] = x[:, :3, :3] @ hat(w), go
    y = WEIGHTED.expmap(x, 0.4 * u)
    turn = Rotation.from_matrix(x[:, :3, :3].numpy()) * Rotation.from_rotvec(0.4 * w.numpy())
    assert torch.allclose(y[:, :3, :3], torch.tensor(turn.as_matrix()), atol=1e-13)
    assert torch.allclose(y[:, :3, 3], x[:, :3, 3] + 0.4 * go, atol=1e-13)
    length = (2.0 * w.square().sum(-1) + 0.3 * go.square().sum(-1)).sqrt()
    assert torch.allclose(WEIGHTED.dist(x, y), 0.4 * length, atol=1e-12)


def test_it_is_the_product_of_rotations_and_space() -> None:
    """The same distances and log-determinants, by a field of the same coefficients."""
    product = Product((Rotations(), (3, 3)), (Euclidean(), 3), weights=(2.0, 0.3))
    flat = lambda x: product.join([x[..., :3, :3], x[..., :3, 3]])
    x, y = poses(6), poses(6, seed=1)
    assert torch.allclose(product.dist(flat(x), flat(y)), WEIGHTED.dist(x, y), atol=1e-12)
    torch.manual_seed(0)
    net = TimedMLP(12, 6, hidden_features=(16,))
    field = FrameField(lambda t, x, c: net(t, flat(x), c), WEIGHTED)

    def beside(t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        r, _ = product.split(z)
        a = net(t, z, context)
        go = (r @ (a[..., 3:, None] / math.sqrt(0.3))).squeeze(-1)
        return product.join([r @ hat(a[..., :3] / math.sqrt(2.0)), go])

    solver = Dopri5(1e-8, 1e-8)
    ours = ODE(field, solver, manifold=WEIGHTED).push(tracked(x, event_dim=2))
    theirs = ODE(FunctionField(beside), solver, manifold=product).push(tracked(flat(x)))
    assert torch.allclose(flat(ours.x), theirs.x, atol=1e-7)
    assert torch.allclose(ours.ladj, theirs.ladj, atol=1e-7)
    assert ours.ladj.abs().max() > 1e-2


@pytest.mark.parametrize("steps", ["projected", "exponential"])
def test_last_rows_stay(steps: str) -> None:
    space = RigidMotions(steps=steps)
    torch.manual_seed(0)
    field = FrameField(TimedMLP((4, 4), 6, hidden_features=(8,)), space)
    end = ODE(field, RK4(4), manifold=space).push(State(poses(5))).x
    assert torch.equal(end[:, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(5, 4))
    assert space.check_point(end, atol=1e-12) == (True, "")


def test_what_is_no_motion_is_refused() -> None:
    space = RigidMotions()
    x = poses(3)
    bent = x.clone()
    bent[1, 3, 0] = 0.5
    assert space.check_point(bent) == (False, "the last rows differ from 0, 0, 0, 1 by up to 0.5")
    assert "of the rotations, products of columns" in space.check_point(2 * x)[1]
    lost = x.clone()
    lost[0, 0, 3] = math.inf
    assert space.check_point(lost) == (False, "1 translations are not finite")
    assert torch.allclose(space.projx(bent), x, atol=1e-12)
    with pytest.raises(ShapeError, match=r"a homogeneous matrix of shape \(4, 4\)"):
        space.dim((3, 4))
    with pytest.raises(DomainError, match="rotation_weight must be positive"):
        RigidMotions(rotation_weight=0.0)
    assert not isinstance(space, Compact)
    assert space.log_volume((4, 4)) == math.inf
    assert repr(space) == "RigidMotions()"
    assert repr(WEIGHTED) == "RigidMotions(rotation_weight=2, translation_weight=0.3)"


def test_half_turns_are_the_cut_locus_in_units_of_distance() -> None:
    x = poses(4)
    half = WEIGHTED.expmap(x, (math.pi - 1e-3) * WEIGHTED.frame(x)[0][:, 2])
    gap = 1e-3 * math.sqrt(2.0)
    assert WEIGHTED.cut_locus(x, half, atol=1.01 * gap).all()
    assert not WEIGHTED.cut_locus(x, half, atol=0.99 * gap).any()


@pytest.mark.unchecked
def test_kernels_compile_and_vmap() -> None:
    x, y = poses(4), poses(4, seed=1)

    def kernel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        u = WEIGHTED.logmap(x, y)
        half = 0.5 * x.new_ones(x.shape[:-2])
        return WEIGHTED.geodesic(WEIGHTED.projx(x), u, half)[0], WEIGHTED.log_det_exp(x, u)

    expected = kernel(x, y)
    for run in (vmap(kernel), torch.compile(kernel, backend="aot_eager", fullgraph=True)):
        for found, value in zip(run(x, y), expected, strict=True):
            assert torch.allclose(found, value, atol=1e-12)
