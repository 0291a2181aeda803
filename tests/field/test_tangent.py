"""Fields of manifolds keep account of volume, take points of any shape, and refuse in words."""

import pytest
import torch
from torch.func import jvp, vmap

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import Exact, FlattenedField, FrameField, MLPField, TangentField, TimedMLP
from cflow.manifold import Euclidean, PoincareBall, Sphere, Torus
from cflow.ode import RK4
from cflow.state import tracked
from cflow.transport import ODE


def test_fields_of_frames_keep_account_of_volume_and_travel_through_transforms() -> None:
    space = PoincareBall()
    torch.manual_seed(0)
    field = FrameField(TimedMLP(2, 2, 3, hidden_features=(8,)), space)
    x, t, context = 0.5 * torch.rand(5, 2), torch.rand(5), torch.randn(5, 3)
    v = field(t, x, context)
    assert torch.allclose(vmap(field)(t, x, context), v, atol=1e-12)
    assert torch.allclose(jvp(lambda x: field(t, x, context), (x,), (x,))[0], v, atol=1e-12)
    ode = ODE(field, RK4(24), manifold=space)
    there = ode.push(tracked(x), context)
    back = ode.pull(there, context)
    assert back.ladj is not None
    assert back.ladj.abs().max() < 1e-6
    assert (back.x - x).abs().max() < 1e-6


@pytest.mark.unchecked
def test_fields_of_frames_compile_as_one_graph() -> None:
    field = FrameField(TimedMLP(2, 2, hidden_features=(8,)), PoincareBall())
    x, t = 0.5 * torch.rand(5, 2), torch.rand(5)
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(t, x), field(t, x), atol=1e-12)


def test_a_flow_of_matrices_takes_one_line() -> None:
    """In flat space, where its likelihood can be held against that of vectors."""
    torch.manual_seed(0)
    vectors = MLPField(6, hidden_features=(8,))
    matrices = FlattenedField(vectors, (2, 3))
    flow = Flow(Gaussian((2, 3)), ODE(matrices, RK4(8), manifold=Euclidean(2)))
    flat = Flow(Gaussian(6), ODE(vectors, RK4(8)))
    x = torch.randn(4, 2, 3)
    assert torch.allclose(flow.log_prob(x), flat.log_prob(x.flatten(1)), atol=1e-12)


def test_numbers_without_axes_flatten_to_vectors() -> None:
    field = FlattenedField(MLPField(1), ())
    assert field(torch.rand(3), torch.randn(3)).shape == (3,)


def test_geoopt_manifolds_are_taken() -> None:
    geoopt = pytest.importorskip("geoopt")
    field = TangentField(MLPField(3), geoopt.Sphere())
    x = Sphere().projx(torch.randn(5, 3))
    assert (field(torch.rand(5), x) * x).sum(-1).abs().max() < 1e-12


@pytest.mark.unchecked
def test_what_is_no_manifold_of_ours_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="ndim and proju"):
        TangentField(MLPField(3), 3)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"which says its frame.*TangentField takes any"):
        FrameField(TimedMLP(3, 2), 3)  # type: ignore[arg-type]


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"Sphere\(\) has no smooth frame.*use TangentField"):
        FrameField(TimedMLP(3, 2), Sphere())
    field = FrameField(TimedMLP(3, 2), Torus())
    with pytest.raises(ShapeError, match=r"each of 3 dimensions, \(5, 3\) in all, got \(5, 2\)"):
        field(torch.rand(5), torch.rand(5, 3))
    with pytest.raises(ShapeError, match=r"FlattenedField: x must end in shape \(3, 3\)"):
        FlattenedField(MLPField(9), (3, 3))(torch.rand(5), torch.rand(5, 9))
    with pytest.raises(ShapeError, match=r"TimedMLP: x must end in shape \(3,\)"):
        TimedMLP(3, 2)(torch.rand(5), torch.rand(5, 4))
    with pytest.raises(DomainError, match="no entries"):
        FlattenedField(MLPField(1), (0,))
    with pytest.raises(DomainError, match="no entries"):
        TimedMLP((3, 0), 2)


def test_the_divergence_of_a_left_invariant_field_on_a_torus_is_zero() -> None:
    """Constant coefficients turn the torus as a whole."""
    field = FrameField(lambda t, x, context: torch.ones_like(x), Torus())
    x = torch.rand(4, 3)
    assert Exact()(field, torch.rand(4), x, None, None).div.abs().max() == 0
