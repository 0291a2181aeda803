"""Packages compiled ahead of time: one is compiled here, where a compiler is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.errors import CheckpointError, MissingExtraError, ShapeError
from cflow.export import ExportError, Sampler, describe, export_aoti, load_exported
from cflow.field import ClassifierFree, MLPField
from cflow.transport import ODE

RUN = Path(__file__).parents[2] / "experiments" / "run_exported.py"

pytestmark = pytest.mark.unchecked


def compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except (InvalidCxxCompiler, RuntimeError):
        return False


def sampler() -> Sampler:
    return Sampler(recipes.cnf(2, hidden_features=(8,)).float(), steps=2)


@pytest.mark.skipif(not compiler(), reason="there is no C++ compiler")
def test_a_package_runs_without_cflow_at_any_batch(tmp_path: Path) -> None:
    module, path = sampler(), tmp_path / "s.pt2"
    path.write_text("what was here before")
    with pytest.raises(ExportError, match="no file was kept"):
        export_aoti(module, path, tolerance=-1.0)
    assert path.read_text() == "what was here before"
    assert export_aoti(module, path) <= 1e-5  # the compiler's cache has it already
    noise = torch.randn(33, 2, dtype=torch.float32)
    np.save(tmp_path / "noise.npy", noise.numpy())
    subprocess.run(
        [sys.executable, "-I", RUN, path, "noise.npy", "x.npy"], check=True, cwd=tmp_path
    )
    with torch.no_grad():
        eager = module(noise)
    found = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert (found - eager).abs().max() <= 1e-5 * eager.abs().max().clamp(min=1.0)
    assert describe(path)["format"] == "aoti"
    file = load_exported(path)
    assert torch.allclose(file(noise[:1]), eager[:1], rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match=r"noise must have shape \(n, 2\)"):
        file(torch.randn(5, 3))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_exported(path)


@pytest.mark.skipif(not compiler(), reason="there is no C++ compiler")
def test_a_guided_sampler_is_compiled(tmp_path: Path) -> None:
    field = ClassifierFree(MLPField(2, 1, hidden_features=(8,)), 2.0, null=0.0)
    flow = Flow(Gaussian(2), ODE(field), context_shape=(1,)).float()
    assert export_aoti(Sampler(flow, 1), tmp_path / "s.pt2") <= 1e-5


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ends in \.pt2"):
        export_aoti(sampler(), tmp_path / "s.so")
    from torch._inductor import config

    absent = config.patch({"cpp.cxx": ("no-such-compiler",)})  # monkeypatch would not undo it
    with absent, pytest.raises(MissingExtraError, match=r"no C\+\+ compiler is found"):
        export_aoti(sampler(), tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())
