"""Flow maps: the networks of fields with two times, and the velocity that a map holds."""

import pytest
import torch

from cflow.errors import DomainError, ShapeError
from cflow.field import (
    DiTField,
    Field,
    FourierTime,
    InstantField,
    MLPField,
    NetworkFlowMap,
    SinusoidalTime,
    SpanTime,
    UNetField,
)


def span() -> SpanTime:
    return SpanTime(FourierTime(3), SinusoidalTime(2, scale=5.0))


NETWORKS = {
    "mlp": (lambda: MLPField(2, 3, hidden_features=(8,), time=span()), (2,), (3,)),
    "unet, labels": (
        lambda: UNetField((1, 4, 4), 5, width=8, multipliers=(1, 2), blocks=1, time=span()),
        (1, 4, 4),
        (),
    ),
    "unet, tokens": (
        lambda: UNetField((1, 4, 4), tokens=3, width=8, multipliers=(1, 2), blocks=1, time=span()),
        (1, 4, 4),
        (7, 3),
    ),
    "dit, vectors": (
        lambda: DiTField((1, 4, 4), context=3, width=8, layers=1, heads=2, time=span()),
        (1, 4, 4),
        (3,),
    ),
    "dit, tokens": (
        lambda: DiTField((1, 4, 4), tokens=3, width=8, layers=1, heads=2, time=span()),
        (1, 4, 4),
        (7, 3),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_sees_both_times(name: str) -> None:
    make, event, given = NETWORKS[name]
    flow_map = NetworkFlowMap(make())
    for parameter in flow_map.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, *event)
    context = torch.randn(4, *given) if given else torch.arange(4)
    times = torch.tensor([0.1, 0.1, 0.4, 0.4]), torch.tensor([0.3, 0.3, 0.3, 0.9])
    u = flow_map(*times, x, context)
    assert u.shape == x.shape
    again = flow_map(times[0], torch.tensor([0.3, 0.31, 0.3, 0.9]), x, context)
    moved = (u != again).flatten(1).any(1)
    assert moved.tolist() == [False, True, False, False]  # the end counts, and row by row
    again = flow_map(times[0] + 0.01, times[1] + 0.01, x, context)  # the same span, started later
    assert (u != again).flatten(1).any(1).all()


def test_a_map_holds_the_velocity_of_equal_times() -> None:
    flow_map = NetworkFlowMap(MLPField(2, hidden_features=(8,), time=span()))
    t, x = torch.rand(5), torch.randn(5, 2)
    assert torch.equal(InstantField(flow_map)(t, x), flow_map(t, t, x))


def test_one_time_too_few_is_refused_in_words() -> None:
    single: Field = MLPField(2)
    with pytest.raises(DomainError, match="sees one time"):
        NetworkFlowMap(single)
    with pytest.raises(ShapeError, match="starts and spans"):
        MLPField(2, time=span())(torch.rand(5), torch.randn(5, 2))
    make, event, _ = NETWORKS["unet, labels"]
    with pytest.raises(ShapeError, match="one label for each"):
        NetworkFlowMap(make())(*torch.rand(2, 4), torch.randn(4, *event), torch.arange(3))
