"""Packages compiled ahead of time: one is compiled here, where a compiler is."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from cflow import Flow
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
    """Guided, with conditions, beside a null context that is held as a number."""
    field = ClassifierFree(MLPField(2, 1, hidden_features=(8,)), 2.0, null=0.0)
    return Sampler(Flow(Gaussian(2), ODE(field), context_shape=(1,)).float(), steps=2)


@pytest.fixture
def compiled_once(tmp_path: Path, monkeypatch) -> None:
    """Compile in earnest the first time, which takes seconds, and hand that package out again."""
    compile_package, kept = torch._inductor.aoti_compile_and_package, tmp_path / "kept.pt2"

    def once(program: torch.export.ExportedProgram, *, package_path: str) -> None:
        if not kept.exists():
            compile_package(program, package_path=str(kept))
        shutil.copyfile(kept, package_path)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", once)


@pytest.mark.skipif(not compiler(), reason="there is no C++ compiler")
@pytest.mark.usefixtures("compiled_once")
def test_a_guided_package_runs_without_cflow_at_any_batch(tmp_path: Path) -> None:
    module, path = sampler(), tmp_path / "s.pt2"
    path.write_text("what was here before")
    with pytest.raises(ExportError, match="no file was kept"):
        export_aoti(module, path, tolerance=-1.0)
    assert path.read_text() == "what was here before"
    assert export_aoti(module, path) <= 1e-5
    noise, context = torch.randn(33, 2, dtype=torch.float32), torch.randn(33, 1).float()
    np.save(tmp_path / "noise.npy", noise.numpy())
    np.save(tmp_path / "context.npy", context.numpy())
    words = [sys.executable, "-I", RUN, path, "noise.npy", "x.npy", "context.npy"]
    subprocess.run(words, check=True, cwd=tmp_path)
    with torch.no_grad():
        eager = module(noise, context)
    found = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert (found - eager).abs().max() <= 1e-5 * eager.abs().max().clamp(min=1.0)
    assert describe(path)["format"] == "aoti"
    file = load_exported(path)
    assert torch.allclose(file(noise[:1], context[:1]), eager[:1], rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match=r"noise must have shape \(n, 2\)"):
        file(torch.randn(5, 3), context[:5])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_exported(path)


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ends in \.pt2"):
        export_aoti(sampler(), tmp_path / "s.so")
    from torch._inductor import config

    absent = config.patch({"cpp.cxx": ("no-such-compiler",)})  # monkeypatch would not undo it
    with absent, pytest.raises(MissingExtraError, match=r"no C\+\+ compiler is found"):
        export_aoti(sampler(), tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())
