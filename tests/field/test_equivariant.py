"""Fields of clouds follow the symmetries of clouds, and so do the densities that they make."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap

from cflow import Flow
from cflow.base import MeanFreeGaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import CrystalField, EquivariantField, Exact, Field
from cflow.manifold import MeanFree, Torus
from cflow.ode import RK4
from cflow.state import tracked
from cflow.transport import ODE

N = 5


def grown(field: Field, seed: int = 0, *, std: float = 0.4) -> Field:
    """Give weights a size at which velocities are not near zero."""
    torch.manual_seed(seed)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=std)
    return field.eval()


def in_space() -> Field:
    return grown(EquivariantField((N, 3), 2, hidden_features=8, layers=2))


def in_cell(*, drift: bool = True, period: float = 1.0) -> Field:
    return grown(CrystalField((N, 3), 2, hidden_features=8, layers=2, drift=drift, period=period))


def drawn(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(7), torch.randn(7, N, 3), torch.randn(7, 2)


@pytest.mark.parametrize("reflect", [False, True])
def test_velocities_turn_with_the_cloud(reflect: bool) -> None:
    field, (t, x, context) = in_space(), drawn()
    q = torch.linalg.qr(torch.randn(7, 3, 3)).Q
    q = q * torch.linalg.det(q)[:, None, None].sign() * (-1 if reflect else 1)
    v = field(t, x, context)
    assert v.abs().max() > 0.1
    assert torch.allclose(field(t, x @ q.mT, context), v @ q.mT, atol=1e-10)


def test_velocities_do_not_see_shifts_and_have_no_mean() -> None:
    field, (t, x, context) = in_space(), drawn()
    v = field(t, x, context)
    assert torch.allclose(field(t, x + torch.randn(7, 1, 3), context), v, atol=1e-10)
    assert v.mean(-2).abs().max() < 1e-12
    far = x.float() + 100.0
    near = far - far.mean(-2, keepdim=True)
    assert torch.allclose(field(t.float(), far, context), field(t.float(), near, context))


@pytest.mark.parametrize("build", [in_space, in_cell])
def test_velocities_follow_permutations(build) -> None:
    field, (t, x, context) = build(), drawn()
    order = torch.randperm(N)
    v = field(t, x, context)
    assert torch.allclose(field(t, x[:, order], context), v[:, order], atol=1e-10)


@pytest.mark.parametrize("kind", [EquivariantField, CrystalField])
def test_only_particles_of_one_type_can_be_exchanged(kind) -> None:
    t, x, _ = drawn()
    field = grown(kind((N, 3), types=(0, 0, 1, 1, 2), hidden_features=8, layers=2))
    v = field(t, x)
    like, unlike = torch.tensor([1, 0, 3, 2, 4]), torch.tensor([2, 1, 0, 3, 4])
    assert torch.allclose(field(t, x[:, like]), v[:, like], atol=1e-10)
    assert not torch.allclose(field(t, x[:, unlike]), v[:, unlike], atol=1e-3)


@pytest.mark.parametrize("kind", [EquivariantField, CrystalField])
def test_what_is_told_of_particles_moves_with_them(kind) -> None:
    t, x, _ = drawn()
    field = grown(kind((N, 3), particle_context=4, hidden_features=8, layers=2))
    told, order = torch.randn(7, N, 4), torch.randperm(N)
    v = field(t, x, told)
    assert torch.allclose(field(t, x[:, order], told[:, order]), v[:, order], atol=1e-10)
    assert not torch.allclose(field(t, x, told[:, order]), v, atol=1e-3)


@pytest.mark.parametrize("period", [1.0, 7.5])
def test_in_a_cell_shifts_and_turns_round_are_not_seen(period: float) -> None:
    field, (t, x, context) = in_cell(period=period), drawn()
    v = field(t, x, context)
    assert v.abs().max() > 0.1
    shifted = (x + torch.randn(7, 1, 3)) % period
    assert torch.allclose(field(t, shifted, context), v, atol=1e-10)
    turns = torch.randint(-3, 4, x.shape)
    assert torch.allclose(field(t, x + period * turns, context), v, atol=1e-10)
    assert v.mean(-2).abs().max() > 1e-3
    still = in_cell(drift=False, period=period)
    assert still(t, x, context).mean(-2).abs().max() < 1e-12


@pytest.mark.parametrize("build", [in_space, in_cell])
def test_coincident_particles_have_finite_derivatives(build) -> None:
    field, (t, x, context) = build(), drawn()
    x[:, 1] = x[:, 0]
    x[0] = 0.0
    x.requires_grad_()
    v = field(t, x, context)
    assert torch.isfinite(v).all()
    assert torch.equal(v[0], torch.zeros_like(v[0]))  # no direction is told from another
    rates = Exact()(field, t, x, context, None)
    rates.div.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    for name, parameter in field.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("build", [in_space, in_cell])
def test_transforms_and_batch_axes(build) -> None:
    field, (t, x, context) = build(), drawn()
    v = field(t, x, context)
    assert torch.allclose(vmap(field)(t, x, context), v, atol=1e-12)
    assert torch.allclose(field(t[0], x[0], context[0]), v[0], atol=1e-12)
    wide = field(t[None], x[None], context[None])
    assert torch.allclose(wide, v[None], atol=1e-12)
    u = torch.randn_like(x)
    along = jvp(lambda x: field(t, x, context), (x,), (u,))[1]
    h = 1e-5
    differences = (field(t, x + h * u, context) - field(t, x - h * u, context)) / (2 * h)
    assert torch.allclose(along, differences, atol=1e-6)
    div = Exact()(field, t, x, context, None).div[0]
    jacobian = jacrev(lambda x: field(t[0], x, context[0]).flatten())(x[0]).flatten(1)
    assert torch.allclose(div, jacobian.trace(), atol=1e-10)


@pytest.mark.unchecked
@pytest.mark.parametrize("build", [in_space, in_cell])
def test_fields_compile_as_one_graph(build) -> None:
    field, (t, x, context) = build(), drawn()
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(t, x, context), field(t, x, context), atol=1e-12)


@pytest.mark.unchecked
@pytest.mark.parametrize("build", [in_space, in_cell])
def test_fields_export(build) -> None:
    field, (t, x, context) = build(), drawn()
    exported = torch.export.export(field, (t, x, context)).module()
    assert torch.allclose(exported(t, x, context), field(t, x, context), atol=1e-12)


def test_weights_of_low_precision_answer_in_the_dtype_of_points() -> None:
    t, x, context = drawn()
    assert in_space().bfloat16()(t.float(), x.float(), context.float()).dtype == torch.float32
    assert in_cell().float()(t, x, context).dtype == torch.float64


def test_densities_have_the_symmetries_of_field_and_base() -> None:
    field, (_, x, context) = in_space(), drawn()
    flow = Flow(
        MeanFreeGaussian((N, 3)),
        ODE(field, RK4(6), manifold=MeanFree()),
        context_shape=(2,),
    )
    x = MeanFree().projx(x)
    q = torch.linalg.qr(torch.randn(3, 3)).Q
    log_p = flow.log_prob(x, context)
    turned = flow.log_prob(x[:, torch.randperm(N)] @ q.mT, context)
    assert torch.allclose(turned, log_p, atol=1e-6)
    assert (log_p - flow.base.log_prob(x)).abs().max() > 0.1


def test_two_particles_on_a_line_have_mass_one() -> None:
    """In one dimension of distance, after a flow that is far from the identity."""
    field = grown(EquivariantField((2, 1), hidden_features=8, layers=2), seed=3, std=0.25)
    flow = Flow(MeanFreeGaussian((2, 1)), ODE(field, RK4(12), manifold=MeanFree()))
    s = torch.linspace(-12, 12, 401)
    x = s[:, None, None] * torch.tensor([[1.0], [-1.0]]) / 2**0.5
    with torch.no_grad():
        log_p = flow.log_prob(x)
    assert (torch.trapezoid(log_p.exp(), s) - 1).abs() < 1e-5
    assert (log_p - flow.base.log_prob(x)).abs().max() > 0.5


def test_a_flow_of_crystals_comes_back_and_does_not_see_shifts() -> None:
    _, x, context = drawn()
    field = grown(in_cell(), std=0.15)
    space = Torus(1.0, ndim=2)
    ode = ODE(field, RK4(12), manifold=space)
    x = space.projx(x)
    state = ode.pull(tracked(x, event_dim=2), context)
    back = ode.push(state, context)
    assert space.dist(back.x, x).max() < 1e-6
    shifted = ode.pull(tracked(space.projx(x + 0.37), event_dim=2), context)
    assert state.ladj is not None
    assert shifted.ladj is not None
    assert torch.allclose(shifted.ladj, state.ladj, atol=1e-8)
    assert state.ladj.abs().max() > 0.1


@pytest.mark.parametrize("kind", [EquivariantField, CrystalField])
def test_bad_input_is_refused_in_words(kind) -> None:
    t, x, context = drawn()
    with pytest.raises(ShapeError, match=r"a cloud has shape \(particles, dims\), got \(15,\)"):
        kind((15,))
    with pytest.raises(ShapeError, match="a kind for each of 5 particles, got 2"):
        kind((N, 3), types=(0, 1))
    with pytest.raises(DomainError, match="counted from 0, got -1"):
        kind((N, 3), types=(0, 1, 2, 3, -1))
    with pytest.raises(DomainError, match="of the cloud or of each particle"):
        kind((N, 3), 2, particle_context=3)
    with pytest.raises(DomainError, match="layers must be positive"):
        kind((N, 3), layers=0)
    with pytest.raises(DomainError, match="hidden_features must be positive"):
        kind((N, 3), hidden_features=0)
    field = kind((N, 3), 2, hidden_features=8)
    with pytest.raises(ShapeError, match=r"x must end in shape \(5, 3\)"):
        field(t, x.flatten(1), context)
    with pytest.raises(DomainError, match="expected a context of length 2, got none"):
        field(t, x)
    with pytest.raises(ShapeError, match=r"context must end in shape \(7, 2\)"):
        field(t, x, context[:, :1])
    with pytest.raises(DomainError, match=r"expected none, got one of shape \(7, 2\)"):
        kind((N, 3), hidden_features=8)(t, x, context)
