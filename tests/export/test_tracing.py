"""What stands in for functions that fix the batch size, and gradients that are traced."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.export import LogProb, Sampler, export_onnx, export_pt2, load_exported
from cflow.export.tracing import _expect_any_batch, _linear, _nearest, _sliced, _slices
from cflow.field import ClassifierFree, MLPField
from cflow.transport import ODE


def test_stand_ins_do_what_the_functions_do() -> None:
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)
    for given in (x, x[0], x[0, 0][None]):
        for last in (bias, None):
            found, wanted = _linear(given, weight, last), functional.linear(given, weight, last)
            assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(_nearest(image, 3), functional.interpolate(image, scale_factor=3.0))
    a = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for index in (
        slice(1, None),
        (..., slice(None, 2)),
        (slice(None), slice(-2, None)),
        (slice(None, None, 2), ..., slice(1, 4, 2), slice(None, -1)),
        ...,
    ):
        assert _slices(index)
        assert torch.equal(_sliced(a, index), a[index])
    assert not any(map(_slices, (0, None, (slice(None), 1), torch.tensor([0]))))


def test_a_graph_of_one_batch_size_is_seen() -> None:
    x = {"input": torch.randn(4, 2)}
    for shapes, fixed in (({"input": {0: Dim.DYNAMIC}}, False), (None, True)):
        program = torch.export.export(nn.Tanh(), (), x, dynamic_shapes=shapes)
        with pytest.raises(AssertionError) if fixed else contextlib.nullcontext():
            _expect_any_batch(program, x)


@pytest.mark.unchecked
def test_guided_samplers_and_their_likelihoods_are_traced(tmp_path: Path) -> None:
    field = ClassifierFree(MLPField(2, 1, hidden_features=(8,)), 2.0, null=0.0)
    flow = Flow(Gaussian(2), ODE(field), context_shape=(1,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    flow, x, context = flow.float(), torch.randn(9, 2).float(), torch.randn(9, 1).float()
    for module, name in ((Sampler(flow, 2), "s.onnx"), (LogProb(flow, 1), "l.pt2")):
        write = export_onnx if name.endswith("onnx") else export_pt2
        assert write(module, tmp_path / name) <= 1e-5
        found = load_exported(tmp_path / name)(x, context)
        with torch.no_grad():
            assert torch.allclose(found, module(x, context), rtol=0, atol=1e-5)


@pytest.mark.unchecked
def test_networks_that_ask_for_their_parameters_are_traced(tmp_path: Path) -> None:
    flow = recipes.residual(2, 1, transforms=1, hidden_features=(4,), fast="density").float()
    assert export_pt2(LogProb(flow), tmp_path / "l.pt2") <= 1e-5


@pytest.mark.unchecked
def test_solves_count_no_evaluations_while_they_are_traced(tmp_path: Path) -> None:
    flow = recipes.cnf(2, hidden_features=(4,)).float()
    module = LogProb(flow, 1)
    export_pt2(module, tmp_path / "l.pt2")
    assert isinstance(module.flow.transport.evaluations, int)
