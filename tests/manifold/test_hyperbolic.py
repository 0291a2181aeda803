"""Hyperbolic space in two models: isometries, volumes, and digits far from the centre."""

import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField
from cflow.manifold import Lorentz, PoincareBall
from cflow.manifold.radial import (
    asinhc_root,
    bend_root,
    cosh_root,
    log_sinhc_root,
    sinhc_root,
    tanhc_root,
)
from cflow.ode import RK4
from cflow.state import State, tracked
from cflow.transport import ODE

models = pytest.mark.parametrize("space", [PoincareBall(-1.5), Lorentz(-1.5)], ids=repr)


def ball_points(n: int, dim: int = 3, spread: float = 0.6, curvature: float = -1.0) -> Tensor:
    space = PoincareBall(curvature)
    return space.expmap(torch.zeros(n, dim), spread * torch.randn(n, dim))


def points(space: PoincareBall | Lorentz, n: int, spread: float = 0.6) -> Tensor:
    p = ball_points(n, 3, spread, space.curvature)
    return p if isinstance(space, PoincareBall) else space.from_poincare(p)


EXACT = {
    cosh_root: lambda z: mpmath.cosh(z),
    sinhc_root: lambda z: mpmath.sinh(z) / z,
    tanhc_root: lambda z: mpmath.tanh(z) / z,
    asinhc_root: lambda z: mpmath.asinh(z) / z,
    log_sinhc_root: lambda z: mpmath.log(mpmath.sinh(z) / z),
    bend_root: lambda z: -2 * (mpmath.cosh(z) - mpmath.sinh(z) / z) / mpmath.sinh(z) ** 2,
}


@pytest.mark.parametrize("f", EXACT, ids=lambda f: f.__name__)
def test_radial_functions_and_two_derivatives_are_those_of_mpmath(f) -> None:
    places = [1e-8, 1e-3, 0.49, 0.51, 0.999, 1.001, 4.0, 80.0]
    if f in (cosh_root, sinhc_root, asinhc_root, bend_root):
        places += [-1e-6, -0.3, -0.5] + ([-0.99, -1.01, -2.4] if f is not asinhc_root else [])
    slope = vmap(jacrev(f))
    for order, g in enumerate((f, slope, vmap(jacrev(jacrev(f))))):
        with mpmath.workdps(60):
            at = lambda q: EXACT[f](mpmath.sqrt(q)).real
            step = mpmath.mpf(10) ** -15
            exact = [mpmath.diff(at, q, order, h=step) for q in places]
        found = g(torch.tensor(places))
        assert torch.allclose(found, torch.tensor([float(v) for v in exact]), rtol=1e-10), order
    assert torch.isfinite(slope(torch.zeros(1))).all()


@pytest.mark.parametrize("curvature", [-1.0, -0.3, -4.0])
def test_the_two_models_are_isometric(curvature: float) -> None:
    ball, sheet = PoincareBall(curvature), Lorentz(curvature)
    p, q = (ball_points(20, curvature=curvature) for _ in range(2))
    x, y = sheet.from_poincare(p), sheet.from_poincare(q)
    assert sheet.check_point(x, atol=1e-12)[0]
    assert torch.allclose(sheet.to_poincare(x), p, atol=1e-12)
    assert torch.allclose(ball.dist(p, q), sheet.dist(x, y), atol=1e-11)
    u = ball.logmap(p, q)
    w = jvp(sheet.from_poincare, (p,), (u,))[1]
    assert torch.allclose(sheet.logmap(x, y), w, atol=1e-9)
    assert torch.allclose(sheet.inner(x, w, w), ball.inner(p, u, u), atol=1e-9)
    assert torch.allclose(sheet.to_poincare(sheet.expmap(x, w)), q, atol=1e-10)
    assert torch.allclose(sheet.log_det_exp(x, w), ball.log_det_exp(p, u), atol=1e-10)


def test_the_volume_of_the_ball_is_that_of_the_sheet() -> None:
    ball, sheet = PoincareBall(-2.0), Lorentz(-2.0)
    p = ball_points(10, curvature=-2.0)
    x = sheet.from_poincare(p)
    covectors = sheet.frame(x)[1]
    jacobian = covectors @ vmap(jacrev(sheet.from_poincare))(p)
    assert torch.allclose(
        torch.linalg.slogdet(jacobian).logabsdet, ball.log_volume_element(p), atol=1e-10
    )


def test_one_flow_has_one_log_det_in_both_models() -> None:
    """A field on the sheet, and the same field carried to the ball, by any steps."""
    curvature = -0.7
    sheet = Lorentz(curvature)
    mix = 0.4 * torch.randn(4, 4)
    on_sheet = lambda t, x, context: sheet.proju(x, 0.15 * (x @ mix).sin() * (1 + t[..., None]))

    def in_ball(t: Tensor, p: Tensor, context: Tensor | None) -> Tensor:
        x = sheet.from_poincare(p)
        return jvp(sheet.to_poincare, (x,), (on_sheet(t, x, context),))[1]

    p = ball_points(3, spread=0.2, curvature=curvature)
    x = sheet.from_poincare(p)
    ladjs = []
    for steps in ("projected", "exponential"):
        for start, field, model in ((p, in_ball, PoincareBall), (x, on_sheet, Lorentz)):
            ode = ODE(FunctionField(field), RK4(12), manifold=model(curvature, steps=steps))
            end = ode.push(tracked(start))
            where = end.x if model is PoincareBall else sheet.to_poincare(end.x)
            assert end.ladj is not None
            ladjs.append(torch.cat([where, end.ladj[:, None]], -1))
    assert ladjs[0][:, -1].abs().min() > 0.05
    for other in ladjs[1:]:
        assert torch.allclose(ladjs[0], other, atol=2e-5)


def moebius(a: Tensor, x: Tensor) -> Tensor:
    """Translate the unit ball by a, an isometry."""
    dot, aa, xx = ((u * w).sum(-1, keepdim=True) for u, w in ((a, x), (a, a), (x, x)))
    return ((1 + 2 * dot + xx) * a + (1 - aa) * x) / (1 + 2 * dot + aa * xx)


def test_moebius_translations_are_isometries_of_the_ball() -> None:
    ball, a = PoincareBall(), ball_points(1)[0]
    x, y = ball_points(12), ball_points(12)
    move = lambda x: moebius(a, x)
    assert torch.allclose(ball.dist(move(x), move(y)), ball.dist(x, y), atol=1e-10)
    u = ball.logmap(x, y)
    assert torch.allclose(ball.logmap(move(x), move(y)), jvp(move, (x,), (u,))[1], atol=1e-9)
    log_det = torch.linalg.slogdet(vmap(jacrev(move))(x)).logabsdet
    gained = ball.log_volume_element(move(x)) - ball.log_volume_element(x)
    assert torch.allclose(gained, -log_det, atol=1e-10)


def test_boosts_are_isometries_of_the_sheet() -> None:
    sheet = Lorentz(-1.5)
    x, y = points(sheet, 12), points(sheet, 12)
    generator = torch.zeros(4, 4)
    generator[0, 1:] = generator[1:, 0] = torch.tensor([0.7, -0.4, 0.2])
    generator[1, 2], generator[2, 1] = 0.5, -0.5
    boost = torch.linalg.matrix_exp(generator)
    move = lambda x: x @ boost.mT
    assert sheet.check_point(move(x), atol=1e-12)[0]
    assert torch.allclose(sheet.dist(move(x), move(y)), sheet.dist(x, y), atol=1e-10)
    assert torch.allclose(sheet.logmap(move(x), move(y)), move(sheet.logmap(x, y)), atol=1e-9)
    w = torch.randn(12, 4)
    assert torch.allclose(sheet.proju(move(x), move(w)), move(sheet.proju(x, w)), atol=1e-9)
    turned = sheet.frame(move(x))[1] @ (sheet.frame(x)[0] @ boost.mT).mT
    assert torch.allclose(turned @ turned.mT, torch.eye(3).expand(12, 3, 3), atol=1e-10)


def test_areas_of_discs_grow_like_sinh() -> None:
    """A grid over radii; 4 pi sinh(R/2)^2 within R, for curvature -1."""
    ball, reach = PoincareBall(), 3.0
    edge = math.tanh(reach / 2)
    r = (torch.arange(20_000) + 0.5) / 20_000 * edge
    element = ball.log_volume_element(torch.stack([r, torch.zeros_like(r)], -1)).exp()
    area = (element * 2 * math.pi * r).sum() * edge / 20_000
    assert area.item() == pytest.approx(4 * math.pi * math.sinh(reach / 2) ** 2, rel=1e-6)


def test_distances_are_right_to_the_last_digits_near_and_far() -> None:
    """Against 50 digits: points 1e-9 apart, and points near opposite ends of the ball."""
    x = torch.tensor([[0.3, 0.4], [0.999, 0.0], [0.6, -0.7], [0.0, 0.0]])
    y = x.clone()
    y[0, 0] += 1e-9
    y[1] = torch.tensor([-0.9999, 0.001])
    y[2] = torch.tensor([0.61, -0.7])
    y[3, 0] = 1e-12
    with mpmath.workdps(50):
        for a, b, dist in zip(x, y, PoincareBall().dist(x, y), strict=True):
            p, q = ([mpmath.mpf(float(e)) for e in z] for z in (a, b))
            gap = lambda z: 1 - sum(e * e for e in z)
            square = sum((e - f) ** 2 for e, f in zip(p, q, strict=True))
            exact = mpmath.acosh(1 + 2 * square / (gap(p) * gap(q)))
            assert dist.item() == pytest.approx(float(exact), rel=1e-12)


@models
@pytest.mark.parametrize("length", [1e-3, 1.0, 5.0])
def test_float32_round_trips(space: PoincareBall | Lorentz, length: float) -> None:
    x = points(space, 50, spread=0.3)
    u = space.proju(x, torch.randn_like(x))
    u = length * u / space.inner(x, u, u).sqrt()[:, None]
    y = space.expmap(x.float(), u.float())
    back = space.logmap(x.float(), y).double() - u
    rtol = {1e-3: 1e-3, 1.0: 1e-5, 5.0: 5e-5}[length]  # the last end at distance 7, near the edge
    assert (space.inner(x, back, back).sqrt() / length).max() < 2 * rtol
    found = space.dist(x.float(), y).double()
    assert torch.allclose(found, torch.full((50,), length), rtol=rtol)


def test_geodesics_through_the_centre_keep_their_digits_in_float32() -> None:
    """From distance 8 inwards and 2 beyond the centre, where the plain Moebius sum cancels."""
    ball = PoincareBall()
    way = torch.nn.functional.normalize(torch.randn(40, 3), dim=-1)
    x = (math.tanh(4.0) * way).float()
    u = (-5.0 / math.cosh(4.0) ** 2 * way).float()
    exact = ball.expmap(x.double(), u.double())
    root = ball.inner(x, u, u).sqrt()[:, None]
    plain = moebius(x, (root / 2).tanh() * torch.nn.functional.normalize(u, dim=-1))
    missed = lambda y: ((y.double() - exact) * way).sum(-1).abs().max()
    assert missed(ball.expmap(x, u)) < 1e-3
    assert missed(plain) > 2e-2
    distant = math.tanh(1.0)  # the end is at distance 2
    assert torch.allclose(-(exact * way).sum(-1), torch.tensor(distant), atol=1e-3)


def test_what_leaves_the_ball_is_kept_inside_with_finite_gradients() -> None:
    ball = PoincareBall()
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[1.5, 0.0], [1.0, 0.0], [0.2, 0.1]], dtype=dtype)
        inside = ball.projx(x)
        assert ball.check_point(inside)[0]
        assert torch.equal(inside[2], x[2])
        far = inside.clone().requires_grad_()
        u = torch.full_like(far, 30.0)
        end = ball.expmap(far, u)
        assert ball.check_point(end)[0]
        total = ball.dist(far, -far).sum() + end.sum() + ball.log_volume_element(far).sum()
        total = total + ball.logmap(far, torch.zeros_like(far)).sum()
        (gradient,) = torch.autograd.grad(total, far)
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(ball.logmap(inside, -inside)).all()


@models
def test_second_derivatives_are_finite_at_zero_length(space: PoincareBall | Lorentz) -> None:
    x = points(space, 1)[0]
    frame = space.frame(x)
    basis = torch.eye(3) if frame is None else frame[0]
    to = lambda c: space.logmap(x, space.expmap(x, c @ basis))
    assert torch.allclose(jacrev(to)(torch.zeros(3)), basis.mT, atol=1e-9)
    assert torch.allclose(jacrev(jacrev(to))(torch.zeros(3)), torch.zeros(()), atol=1e-8)


def test_a_field_of_translations_keeps_volumes() -> None:
    """The field of a boost is Killing, so its flow has log-determinant zero."""
    generator = torch.zeros(4, 4)
    generator[0, 1:] = generator[1:, 0] = torch.tensor([0.7, -0.4, 0.2])
    field = FunctionField(lambda t, x, context: x @ generator.mT)
    sheet = Lorentz()
    x = points(sheet, 5)
    state = ODE(field, RK4(20), manifold=sheet).push(tracked(x))
    assert torch.allclose(state.x, x @ torch.linalg.matrix_exp(generator).mT, atol=1e-5)
    assert state.ladj is not None
    assert state.ladj.abs().max() < 1e-10


def test_bad_input_is_told() -> None:
    for model in (PoincareBall, Lorentz):
        for curvature in (1.0, 0.0, math.nan, -math.inf):
            with pytest.raises(DomainError, match="curvature must be negative and finite"):
                model(curvature)
    ok, reason = PoincareBall(-4.0).check_point(torch.tensor([[0.5, 0.0]]))
    assert (ok, reason) == (False, "lengths reach 0.5 and must stay below 0.5")
    ok, reason = Lorentz().check_point(torch.tensor([[1.1, 0.0]]))
    assert not ok
    assert "0.1 of themselves" in reason
    with pytest.raises(ShapeError, match=r"a point is a vector \(n \+ 1,\)"):
        Lorentz().dim((1,))
    assert repr(Lorentz(-0.5, steps="exponential")) == "Lorentz(-0.5, steps='exponential')"
    assert repr(PoincareBall()) == "PoincareBall()"


@pytest.mark.unchecked
def test_unknown_steps_are_told() -> None:
    with pytest.raises(DomainError, match="steps must be one of"):
        PoincareBall(steps="big")  # type: ignore[arg-type]


@models
@pytest.mark.unchecked
def test_kernels_compile_and_vmap(space: PoincareBall | Lorentz) -> None:
    x, y = points(space, 5), points(space, 5)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        end = space.expmap(x, 0.5 * space.logmap(x, y))
        return space.dist(x, end)

    expected = kernel(x, y)
    assert torch.allclose(vmap(kernel)(x, y), expected)
    assert torch.allclose(
        torch.compile(kernel, backend="aot_eager", fullgraph=True)(x, y), expected
    )


@models
@pytest.mark.unchecked
def test_solves_export(space: PoincareBall | Lorentz) -> None:
    field = FunctionField(lambda t, x, context: 0.1 * x.sin())
    moved = type(space)(space.curvature, steps="exponential")
    x = points(space, 3, spread=0.2)

    class Push(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ode = ODE(field, RK4(1), manifold=moved)

        def forward(self, x: Tensor) -> Tensor:
            return self.ode.push(State(x)).x

    exported = torch.export.export(Push(), (x,), strict=False)
    assert torch.allclose(exported.module()(x), Push()(x))
