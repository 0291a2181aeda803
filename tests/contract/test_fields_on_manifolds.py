"""What fields made of networks owe on every manifold: tangent, of unit size in frames, no jumps."""

import pytest
import torch
from manifolds import CASES, ManifoldCase
from torch import Tensor

from cflow.field import FlattenedField, FrameField, MLPField, TangentField, TimedMLP
from cflow.manifold import Manifold, Sphere
from cflow.transport import ODE

every = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def expect_smooth_frame(case: ManifoldCase) -> None:
    space = case.build()
    if not space.smooth_frame:
        pytest.skip(f"{space} has no smooth frame")


def frame_field(case: ManifoldCase, space: Manifold) -> FrameField:
    torch.manual_seed(1)
    dim = space.dim(case.event)
    return FrameField(TimedMLP(case.event, dim, hidden_features=(8,)), space)


@every
def test_a_network_of_vectors_becomes_a_tangent_field_of_any_manifold(case: ManifoldCase) -> None:
    space, x, _ = case.draw()
    size = torch.Size(case.event).numel()
    vectors = MLPField(size, 2, hidden_features=(8,))
    field = TangentField(FlattenedField(vectors, case.event), space)
    t, context = torch.rand(len(x)), torch.randn(len(x), 2)
    v = field(t, x, context)
    assert torch.allclose(space.proju(x, v), v, atol=1e-12)
    u = vectors(t, x.flatten(1), context).reshape(x.shape)
    assert torch.allclose(v, space.proju(x, u), atol=1e-12)
    if case.logarithm:  # a corner of a mesh belongs to any of its faces
        assert torch.allclose(field(t[0], x[0], context[0]), v[0], atol=1e-12)
    # what an ODE would do to the bare field, it leaves of this one
    bare = ODE(FlattenedField(vectors, case.event), manifold=space)
    assert torch.allclose(ODE(field, manifold=space).velocity(t, x, context), v, atol=1e-9)
    assert torch.allclose(bare.velocity(t, x, context), v, atol=1e-9)


@every
def test_coefficients_are_coordinates_in_an_orthonormal_frame(case: ManifoldCase) -> None:
    expect_smooth_frame(case)
    space, x, _ = case.draw()
    field = frame_field(case, space)
    t = torch.rand(len(x))
    v, a = field(t, x), field.coefficients(t, x, None)
    assert torch.allclose(space.proju(x, v), v, atol=1e-10)
    assert torch.allclose(space.inner(x, v, v), a.square().sum(-1), rtol=1e-8)
    other = FrameField(lambda t, x, context: a.flip(-1), space)(t, x)
    assert torch.allclose(space.inner(x, v, other), (a * a.flip(-1)).sum(-1), rtol=1e-8, atol=1e-9)


def largest_change(space: Manifold, x: Tensor, u: Tensor, points: int) -> float:
    """Return that of the frame between neighbours on geodesics from x - 3 u to x + 3 u."""
    s = torch.linspace(-3, 3, points)[:, None].expand(points, len(x))
    wide = s.reshape(*s.shape, *(1,) * space.ndim)
    frame = space.frame(space.expmap(x.expand(points, *x.shape), wide * u))
    return 0.0 if frame is None else frame[0].diff(dim=0).abs().max().item()


@every
def test_frames_that_are_said_to_be_smooth_do_not_jump(case: ManifoldCase) -> None:
    """Right through the manifold: half the step, about half the largest change."""
    expect_smooth_frame(case)
    space, x, u = case.draw(20)
    coarse, fine = (largest_change(space, x, u, points) for points in (401, 801))
    assert fine < 0.6 * coarse or fine < 1e-6


def test_a_jump_would_be_seen() -> None:
    space = Sphere()
    x = space.projx(torch.randn(20, 3))
    u = space.proju(x, torch.randn(20, 3))
    assert largest_change(space, x, u, 801) > 0.9 * largest_change(space, x, u, 401) > 0.5
