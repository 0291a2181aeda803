"""Couplings on vectors: what depends on what, additive maps, and a map of the frozen part."""

import pytest
import torch

from cflow import State, tracked
from cflow.errors import DomainError
from cflow.nets import MLP
from cflow.transport import AdditiveMap, AffineMap, CouplingLayer, masks


def jacobian(layer: CouplingLayer, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda z: layer.push(State(z)).x, x)


@pytest.mark.parametrize(
    "mask", [masks.halves(5), masks.alternating(5), masks.halves(5, flip=True)]
)
def test_moved_features_see_themselves_and_the_frozen_ones(mask: torch.Tensor) -> None:
    moves = int(mask.sum())
    full = jacobian(CouplingLayer(mask, MLP(5 - moves, 2 * moves)), torch.randn(5))
    expected = torch.eye(5, dtype=torch.bool)
    expected[mask] |= ~mask
    assert torch.equal(full != 0, expected)


def test_an_additive_coupling_keeps_volumes() -> None:
    layer = CouplingLayer(masks.halves(4), MLP(2, 2), AdditiveMap())
    state = layer.push(tracked(torch.randn(3, 4)))
    assert torch.equal(state.ladj, torch.zeros(3))
    assert torch.equal(layer.push(State(state.x)).x[:, :2], state.x[:, :2])


def test_the_map_of_the_frozen_part_starts_as_the_identity_and_is_counted() -> None:
    net = MLP(3, 4)
    plain = CouplingLayer(masks.halves(5), net)
    layer = CouplingLayer(masks.halves(5), net, frozen_univariate=AffineMap(2.0))
    x = torch.randn(4, 5)
    assert torch.equal(layer.push(State(x)).x, plain.push(State(x)).x)
    torch.nn.init.normal_(layer.frozen_theta)
    before, after = plain.push(tracked(x)), layer.push(tracked(x))
    assert torch.equal(after.x[:, 3:], before.x[:, 3:])  # steered by the base side's frozen part
    assert not torch.equal(after.x[:, :3], before.x[:, :3])
    scales = 2 * torch.tanh(layer.frozen_theta[:, 0] / 2)
    assert torch.allclose(after.ladj - before.ladj, scales.sum().expand(4))
    with pytest.raises(DomainError, match="frozen_univariate needs a feature that does not move"):
        CouplingLayer([True, True], MLP(1, 4), frozen_univariate=AffineMap())
