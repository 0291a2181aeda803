"""Averaged weights: the formula, low precision, buffers, and networks of images."""

import pytest
import torch
from torch import nn

from cflow.field import DiTField, UNetField
from cflow.train.average import averaged


def test_the_average_is_that_of_the_formula_and_warms_up() -> None:
    model = nn.Linear(1, 1, bias=False)
    copy, expected = averaged(model, 0.8), None
    for n in range(40):
        model.weight.data.fill_(float(n))
        copy.update_parameters(model)
        d = min(0.8, (1 + n) / (10 + n))
        expected = float(n) if expected is None else d * expected + (1 - d) * n
        assert copy.module.weight.item() == pytest.approx(expected, rel=1e-12)


def test_averages_of_low_precision_do_not_stand_still() -> None:
    """In bfloat16 a thousandth of the way from 1 to 2 would be rounded away, for ever."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    model.weight.data.fill_(1.0)
    copy = averaged(model, 0.999)
    for _ in range(10_000):
        copy.n_averaged.fill_(10**6)
        copy.update_parameters(model)
        model.weight.data.fill_(2.0)
    assert copy.module.weight.dtype == torch.float32
    assert copy.module.weight.item() == pytest.approx(2.0, abs=1e-3)
    assert model.weight.dtype == torch.bfloat16
    model.load_state_dict(copy.module.state_dict())
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_networks_of_images_are_averaged_whole(kind: str) -> None:
    field = (
        UNetField((1, 4, 4), 3, width=4, multipliers=(1,), blocks=1, attention=(), heads=1)
        if kind == "unet"
        else DiTField((1, 4, 4), 3, width=8, layers=1, heads=2)
    )
    copy = averaged(field, 0.5)
    for value in (0.1, 0.3):
        for weight in field.parameters():
            nn.init.constant_(weight, value)
        copy.update_parameters(field)
    d = 2 / 11
    for weight in copy.module.parameters():
        assert torch.allclose(weight, torch.tensor(d * 0.1 + (1 - d) * 0.3))
    t, x = torch.rand(2), torch.randn(2, 1, 4, 4)
    assert not torch.allclose(copy(t, x), field(t, x))
    field.load_state_dict(copy.module.state_dict())
    assert torch.equal(copy(t, x), field(t, x))


def test_buffers_are_those_of_the_last_step() -> None:
    model = nn.BatchNorm1d(2)
    copy = averaged(model, 0.9)
    for k in range(3):
        model(torch.randn(8, 2) + k)
        copy.update_parameters(model)
    assert torch.equal(copy.module.running_mean, model.running_mean)
    assert copy.module.num_batches_tracked == 3
