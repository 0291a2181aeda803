"""What every manifold owes: maps that undo each other, distances, frames and volumes that agree."""

import math

import pytest
import torch
from manifolds import CASES, ManifoldCase
from torch import Tensor
from torch.func import jacrev, jvp

from cflow.errors import DomainError, ShapeError
from cflow.manifold import Compact, Euclidean, Manifold, expect_on

every = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
LOGARITHMS = [case for case in CASES if case.logarithm]
with_log = pytest.mark.parametrize("case", LOGARITHMS, ids=[case.name for case in LOGARITHMS])
N = 6


def flat(x: Tensor, space: Manifold) -> Tensor:
    return x.flatten(-space.ndim)


@every
def test_projections_are_idempotent_and_their_points_check(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    assert torch.allclose(space.projx(x), x, atol=1e-12)
    assert torch.allclose(space.proju(x, u), u, atol=1e-12)
    assert space.check_point(x, atol=1e-9) == (True, "")
    expect_on("test", "x", space, x)


@every
def test_projx_lands_on_the_manifold_and_proju_is_linear(case: ManifoldCase) -> None:
    space, x, _ = case.draw()
    away = space.projx(x + 0.1 * torch.randn_like(x))
    assert space.check_point(away, atol=1e-9)[0]
    a, b = torch.randn_like(x), torch.randn_like(x)
    together = space.proju(x, a + 2 * b)
    assert torch.allclose(together, space.proju(x, a) + 2 * space.proju(x, b), atol=1e-10)


@with_log
def test_log_undoes_exp_and_measures_distance(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    y = space.expmap(x, u)
    assert space.check_point(y, atol=1e-9)[0]
    assert torch.allclose(space.logmap(x, y), u, atol=1e-9)
    assert torch.allclose(space.expmap(x, space.logmap(x, y)), y, atol=1e-9)
    assert torch.allclose(space.dist(x, y), space.inner(x, u, u).sqrt(), atol=1e-10)
    assert torch.allclose(space.proju(x, space.logmap(x, y)), space.logmap(x, y), atol=1e-10)


@every
def test_distance_is_a_metric(case: ManifoldCase) -> None:
    space, x, _ = case.draw(30)
    _, y, _ = case.draw(30, seed=1)
    _, z, _ = case.draw(30, seed=2)
    assert (space.dist(x, y) > 0).all()
    assert torch.allclose(space.dist(x, y), space.dist(y, x), atol=1e-10)
    assert (space.dist(x, z) <= space.dist(x, y) + space.dist(y, z) + 1e-10).all()


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_distance_is_exact_with_finite_gradients(
    case: ManifoldCase, dtype: torch.dtype
) -> None:
    space, x, _ = case.draw(50)
    x = x.to(dtype)
    y = x.clone().requires_grad_()
    assert torch.equal(space.dist(x, x), torch.zeros(50, dtype=dtype))
    if case.logarithm:
        assert torch.equal(space.logmap(x, x), torch.zeros_like(x))
    space.dist(x, y).sum().backward()
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()
    u = torch.zeros_like(x).requires_grad_()
    space.expmap(x, u).sum().backward()
    assert u.grad is not None
    assert torch.isfinite(u.grad).all()
    w = torch.randn_like(x)
    assert torch.isfinite(space.log_rate(x, torch.zeros_like(x), x, space.proju(x, w))).all()


@with_log
def test_float32_keeps_its_digits(case: ManifoldCase) -> None:
    space, x, u = case.draw(50)
    y = space.expmap(x, u)
    x32, y32 = x.float(), y.float()
    scale = 1 + max(float(x.abs().max()), float(y.abs().max()))
    assert (space.logmap(x32, y32).double() - u).abs().max() < 2e-5 * scale**2
    assert (space.dist(x32, y32).double() - space.dist(x, y)).abs().max() < 2e-5 * scale
    near = space.expmap(x, 1e-3 * u).float()
    assert torch.allclose(
        space.dist(x32, near).double(), torch.full((50,), 1e-3 * case.reach), rtol=0.02
    )


@every
def test_any_batch_axes(case: ManifoldCase) -> None:
    space, x, u = case.draw(6)
    split = lambda z: z.reshape(2, 3, *case.event)
    y = space.expmap(x, u)
    assert torch.allclose(space.expmap(split(x), split(u)), split(y), atol=1e-12)
    assert space.dist(split(x), split(y)).shape == (2, 3)
    assert space.dist(x[0], y[0]).shape == ()
    assert space.dist(x[:, None], y[None]).shape == (6, 6)
    if case.logarithm:
        assert torch.allclose(space.logmap(x[0], y[0]), u[0], atol=1e-9)


@every
def test_geodesics_have_constant_speed(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    s = torch.linspace(0.1, 1.0, N)
    point, velocity = space.geodesic(x, u, s)
    wide = s.reshape(N, *(1,) * len(case.event))
    assert torch.allclose(point, space.expmap(x, wide * u), atol=1e-10)
    step = lambda h: space.expmap(x, (wide + h) * u)
    along = jvp(lambda h: step(h), (torch.tensor(0.0),), (torch.tensor(1.0),))[1]
    assert torch.allclose(velocity, along, atol=1e-8)
    assert torch.allclose(space.inner(point, velocity, velocity), space.inner(x, u, u), atol=1e-8)


@every
def test_log_rate_is_the_derivative_of_the_logarithm(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    w = space.proju(x, torch.randn_like(x))
    y, v = jvp(lambda u: space.expmap(x, u), (0.5 * u,), (w,))
    assert torch.allclose(space.log_rate(x, 0.5 * u, y, v), w, atol=1e-7)


@every
def test_frames_are_bases_with_their_duals(case: ManifoldCase) -> None:
    space, x, _ = case.draw()
    frame = space.frame(x)
    entries = math.prod(case.event)
    if frame is None:
        assert space.dim(case.event) == entries
        w = torch.randn_like(x)
        assert torch.equal(space.proju(x, w), w)
        return
    vectors, covectors = (side.flatten(2) for side in frame)
    assert vectors.shape == (N, space.dim(case.event), entries)
    one = torch.eye(vectors.shape[1])
    assert torch.allclose(covectors @ vectors.mT, one.expand(N, -1, -1), atol=1e-10)
    for k in range(vectors.shape[1]):
        v = vectors[:, k].reshape(x.shape)
        assert torch.allclose(space.proju(x, v), v, atol=1e-10)
    # the dual annihilates what proju takes away
    w = torch.randn_like(x)
    normal = (w - space.proju(x, w)).flatten(1)
    assert torch.allclose((covectors @ normal[..., None]).squeeze(-1), torch.zeros(()), atol=1e-9)


def metric(space: Manifold, x: Tensor) -> Tensor:
    """Return the matrix of the metric in the frame, `(n, dim, dim)`."""
    frame = space.frame(x)
    if frame is None:
        size = math.prod(x.shape[1:])
        basis = torch.eye(size).reshape(size, *x.shape[1:])
        vectors = basis.expand(len(x), *basis.shape)
    else:
        vectors = frame[0]
    dim = vectors.shape[1]
    point = x[:, None, None].expand(len(x), dim, dim, *x.shape[1:])
    one, other = vectors[:, :, None].expand_as(point), vectors[:, None].expand_as(point)
    return space.inner(point, one, other)


@every
def test_frames_that_are_said_to_be_orthonormal_are(case: ManifoldCase) -> None:
    space, x, _ = case.draw()
    g = metric(space, x)
    assert not space.orthonormal_frame or torch.allclose(g, torch.eye(g.shape[-1]), atol=1e-12)


@every
def test_volume_elements_are_those_of_the_metric(case: ManifoldCase) -> None:
    """Up to one constant, log sqrt(det g) in frames that are orthonormal in the space around."""
    space, x, _ = case.draw(12)
    frame = space.frame(x)
    log_det = 0.5 * torch.linalg.slogdet(metric(space, x)).logabsdet
    if frame is not None:  # the frame's own volume in the space around, which may be Minkowski's
        for side, sign in zip(frame, (1, -1), strict=True):
            gram = side.flatten(2) @ side.flatten(2).mT
            log_det = log_det - 0.25 * sign * torch.linalg.slogdet(gram).logabsdet
    element = space.log_volume_element(x)
    assert element is None or element.shape == (12,)
    gap = log_det - (0.0 if element is None else element)
    assert torch.allclose(gap, gap[:1].expand_as(gap), atol=1e-8)


@every
def test_log_det_exp_is_that_of_its_jacobian(case: ManifoldCase) -> None:
    space, x, u = case.draw(4)
    for k in range(4):
        a, w = x[k], u[k]
        y = space.expmap(a, w)
        volume = []
        for point in (a, y):
            g = metric(space, point[None])[0]
            frame = space.frame(point)
            size = a.numel()
            basis = torch.eye(size) if frame is None else frame[0].flatten(1)
            dual = torch.eye(size) if frame is None else frame[1].flatten(1)
            volume.append((0.5 * torch.linalg.slogdet(g).logabsdet, basis, dual))
        (here, basis, _), (there, _, dual) = volume

        def move(c: Tensor, a: Tensor = a, w: Tensor = w, basis: Tensor = basis) -> Tensor:
            return space.expmap(a, w + (c @ basis).reshape(a.shape)).flatten()

        jacobian = dual @ jacrev(move)(torch.zeros(len(basis)))
        log_det = torch.linalg.slogdet(jacobian).logabsdet + there - here
        assert torch.allclose(space.log_det_exp(a[None], w[None])[0], log_det, atol=1e-7)


@every
def test_uniform_points_lie_on_it_and_look_alike_from_anywhere(case: ManifoldCase) -> None:
    space = case.build()
    like = torch.zeros(())
    if not isinstance(space, Compact):
        return
    if space.log_volume(case.event) == math.inf:  # a product, of which one part is not compact
        with pytest.raises(DomainError, match="no uniform law"):
            space.uniform((2,), case.event, like=like)
        return
    draw = lambda seed, dtype=torch.float64: space.uniform(
        (500, 2), case.event, like=like.to(dtype), generator=torch.Generator().manual_seed(seed)
    )
    x = draw(0)
    assert x.shape == (500, 2, *case.event)
    assert space.check_point(x, atol=1e-9)[0]
    assert torch.equal(x, draw(0))
    assert not torch.equal(x, draw(1))
    assert draw(0, torch.float32).dtype == torch.float32
    assert space.log_volume(case.event) < math.inf


@every
def test_points_off_the_manifold_are_refused_with_how_far(case: ManifoldCase) -> None:
    space, x, _ = case.draw()
    if isinstance(space, Euclidean):
        assert not space.check_point(x + math.inf)[0]
        return
    off = -40.0 - 3 * x  # not positive definite, in no unit interval, of no fixed length
    on, reason = space.check_point(off)
    assert not on
    assert any(letter.isdigit() for letter in reason)
    with pytest.raises(ValueError, match=r"page: x must lie on .*; bring the points there by"):
        expect_on("page", "x", space, off)
    on, reason = space.check_point(torch.full_like(x, math.nan))
    assert not on


@every
def test_no_point_has_a_shape_of_its_own_making(case: ManifoldCase) -> None:
    space = case.build()
    if isinstance(space, Euclidean):
        return
    with pytest.raises(ShapeError):
        space.dim((7, 5, 3, 2))


@with_log
def test_the_cut_locus_is_told(case: ManifoldCase) -> None:
    space, x, u = case.draw()
    assert not space.cut_locus(x, space.expmap(x, 0.5 * u)).any()
    assert space.cut_locus(x, x).shape == (N,)


@every
def test_repr_is_how_it_is_written(case: ManifoldCase) -> None:
    space = case.build()
    assert repr(space).startswith(type(space).__name__ + "(")
