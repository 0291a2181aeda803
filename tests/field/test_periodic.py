"""Fields of angles come round exactly, whatever the shape of a point, and their flows integrate."""

import math

import pytest
import torch

from cflow.errors import DomainError, ShapeError
from cflow.field import PeriodicField, TangentField
from cflow.manifold import Torus
from cflow.ode import RK4
from cflow.state import tracked
from cflow.transport import ODE


@pytest.mark.parametrize(("shape", "period"), [((3,), 2 * math.pi), ((2, 3), 1.0), ((), 360.0)])
def test_going_round_changes_nothing(shape: tuple[int, ...], period: float) -> None:
    torch.manual_seed(0)
    field = PeriodicField(shape, 2, period=period, frequencies=4, hidden_features=(16,))
    x, t, context = period * torch.rand(6, *shape), torch.rand(6), torch.randn(6, 2)
    turns = torch.randint(-3, 4, x.shape)
    v = field(t, x, context)
    assert v.shape == x.shape
    assert v.abs().max() > 1e-2
    assert torch.allclose(field(t, x + period * turns, context), v, atol=1e-10)


def test_derivatives_come_round_as_well() -> None:
    field = PeriodicField(2, hidden_features=(16,))
    jacobian = torch.func.jacrev(lambda x: field(torch.tensor(0.3), x))
    low = jacobian(torch.tensor([0.0, 1.0]))
    high = jacobian(torch.tensor([2 * math.pi, 1.0]))
    assert torch.allclose(low, high, atol=1e-10)


def test_only_angles_come_round() -> None:
    field = PeriodicField(3, circular=(False, True, False), hidden_features=(16,))
    x, t = torch.randn(6, 3), torch.rand(6)
    v = field(t, x)
    assert torch.allclose(field(t, x + torch.tensor([0.0, 2 * math.pi, 0.0])), v, atol=1e-10)
    assert not torch.allclose(field(t, x + torch.tensor([2 * math.pi, 0.0, 0.0])), v, atol=1e-3)


def test_a_uniform_law_flows_to_one_of_mass_one() -> None:
    torch.manual_seed(0)
    field = PeriodicField(2, period=1.0, hidden_features=(16,))
    space = Torus(1.0)
    ode = ODE(TangentField(field, space), RK4(24), manifold=space)
    grid = torch.linspace(0, 1, 49)[:-1]  # exact but for waves of 48 and more
    x = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    with torch.no_grad():
        state = ode.pull(tracked(x))
    assert state.ladj is not None
    assert (state.ladj.exp().mean() - 1).abs() < 1e-5
    assert state.ladj.std() > 1e-2


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(ShapeError, match="one flag for each of the 3 entries of a point, got 2"):
        PeriodicField(3, circular=(True, False))
    with pytest.raises(DomainError, match="period must be positive"):
        PeriodicField(3, period=0.0)
    with pytest.raises(DomainError, match="frequencies must be positive"):
        PeriodicField(3, frequencies=0)
    with pytest.raises(ShapeError, match=r"must end in shape \(3,\)"):
        PeriodicField(3)(torch.rand(2), torch.rand(2, 4))
