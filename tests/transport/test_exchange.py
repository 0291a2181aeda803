"""Exchanging parts: any container is reached, weights are shared, nothing of the original moves."""

import torch
from torch import nn

from cflow import Flow, State
from cflow.base import Gaussian
from cflow.field import MLPField
from cflow.ode import Dopri5, Euler
from cflow.transport import (
    ODE,
    Affine,
    Chain,
    Channelwise,
    Inverse,
    Reshape,
    Split,
    Transport,
    with_solver,
)
from cflow.transport.exchange import exchanged


def nested() -> tuple[Transport, list[ODE]]:
    odes = [ODE(MLPField(2, hidden_features=(4,)), Dopri5()) for _ in range(2)]
    deep = Chain(Inverse(odes[0]), Reshape((2,), (1, 1, 2)))
    return Chain(Split((2, 1, 2), deep), Channelwise(odes[1])), odes


def test_odes_in_any_container_are_solved_in_another_way() -> None:
    transport, odes = nested()
    transport.eval()
    coarse = with_solver(transport, Euler(3))
    found = [part for part in coarse.modules() if isinstance(part, ODE)]
    assert [part.solver for part in found] == [Euler(3)] * 2
    assert [part.solver for part in odes] == [Dopri5()] * 2
    assert not any(part.training for part in found)
    x = torch.randn(5, 4)
    assert not torch.equal(coarse.push(State(x)).x, transport.push(State(x)).x)
    assert {id(p) for p in coarse.parameters()} == {id(p) for p in transport.parameters()}


def test_sharing_is_by_reference_and_what_is_not_changed_is_the_same_object() -> None:
    transport, _ = nested()
    assert exchanged(transport, lambda part: None) is transport
    coarse = with_solver(transport, Euler(3))
    with torch.no_grad():
        for parameter in transport.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    fine = with_solver(coarse, Dopri5())
    assert torch.equal(fine.push(State(x)).x, transport.push(State(x)).x)
    flow = Flow(Gaussian(4), transport).with_solver(Euler(2))
    assert flow.sample(3).shape == (3, 2, 1, 2)


def test_modes_follow_the_part_that_is_replaced() -> None:
    chain = Chain(Affine(2.0).eval(), Affine(3.0))
    new = exchanged(chain, lambda part: Affine(1.0) if isinstance(part, Affine) else None)
    assert isinstance(new, Chain)
    assert [part.training for part in new] == [False, True]
