"""Several optimisers as one step as they would alone, and are kept and restored together."""

import copy

import pytest
import torch
from torch import nn

from cflow.errors import DomainError
from cflow.nets import TokenTransformer
from cflow.train import CosineDecay, JoinedOptimizer, Trainer, muon


def quadratic(model: nn.Module, x: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    return model(x).square().sum(-1)


def parts(model: nn.Linear) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return torch.optim.SGD([model.weight], lr=0.1), torch.optim.AdamW([model.bias], lr=0.01)


def test_it_steps_as_its_parts_do_alone() -> None:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(one.state_dict())
    joined, alone = JoinedOptimizer(*parts(one)), parts(other)
    x = torch.randn(8, 3)
    for _ in range(3):
        for model, optimizers in ((one, (joined,)), (other, alone)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model(x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    data = torch.randn(32, 4)
    start = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def run(model: nn.Module, steps: int, folder) -> None:
        trainer = Trainer(
            model, quadratic, steps=steps, batch=8, optimizer=muon(model), folder=folder,
            schedule=CosineDecay(), progress=False, checkpoint_every=2,
        )  # fmt: skip
        trainer.fit(data)

    whole, halves = copy.deepcopy(start), copy.deepcopy(start)
    run(whole, 4, tmp_path / "whole")
    stopped = Trainer(
        halves, quadratic, steps=4, batch=8, optimizer=muon(halves), folder=tmp_path / "halves",
        schedule=CosineDecay(), progress=False, checkpoint_every=1, time_limit=1e-9,
    )  # fmt: skip
    assert stopped.fit(data).step == 1
    run(halves, 4, tmp_path / "halves")
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_takes_the_matrices_inside_and_refuses_what_has_none() -> None:
    net = TokenTransformer(4, 3, 3, width=8, layers=1, heads=2)
    matrices, rest = (
        {id(p) for group in part.param_groups for p in group["params"]} for part in muon(net).parts
    )
    block = net.blocks[0]
    assert matrices == {id(p.weight) for p in (block.mix, block.merge, block.up, block.down)}
    assert {id(net.table.weight), id(net.last.weight), id(block.up.bias)} <= rest
    with pytest.raises(DomainError, match="no matrix inside"):
        muon(nn.Embedding(3, 3))


def test_a_shared_parameter_is_refused() -> None:
    layer = nn.Linear(2, 2)
    twice = [torch.optim.SGD(layer.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(DomainError, match="in one of them only"):
        JoinedOptimizer(*twice)
