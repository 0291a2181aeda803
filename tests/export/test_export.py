"""Exported files: the same numbers, any batch size, no cflow, and no file that is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cflow import Flow, recipes
from cflow.errors import CheckpointError, DomainError, ShapeError
from cflow.export import ExportError, Sampler, export_onnx, export_pt2
from cflow.ode import Euler, Heun

RUN = Path(__file__).parents[2] / "experiments" / "run_exported.py"
FORMATS = {"pt2": export_pt2, "onnx": export_onnx}

pytestmark = pytest.mark.unchecked
each_format = pytest.mark.parametrize("ending", FORMATS)


def image_sampler() -> Sampler:
    flow = recipes.images(recipes.cnf(16, hidden_features=(32, 32)), (4, 4), levels=17).float()
    flow.initialize(torch.randint(0, 17, (50, 4, 4)))
    return Sampler(Flow(flow.base, flow.transport[:-1]), solver=Euler(2)).eval()


@each_format
def test_a_file_gives_the_same_samples_in_a_process_without_cflow(
    ending: str, tmp_path: Path
) -> None:
    sampler, path = image_sampler(), tmp_path / f"sampler.{ending}"
    assert FORMATS[ending](sampler, path) <= 1e-5
    noise = torch.randn(33, 16, dtype=torch.float32)
    np.save(tmp_path / "noise.npy", noise.numpy())
    subprocess.run(
        [sys.executable, "-I", RUN, path, tmp_path / "noise.npy", tmp_path / "x.npy"],
        check=True,
        cwd=tmp_path,
    )
    with torch.no_grad():
        eager = sampler(noise)
    found = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert found.shape == (33, 4, 4)
    assert (found - eager).abs().max() <= 1e-5 * eager.abs().max().clamp(min=1.0)


@each_format
def test_exporting_leaves_the_mode_of_every_module_as_it_was(ending: str, tmp_path: Path) -> None:
    sampler = Sampler(recipes.cnf(2, hidden_features=(8,), dropout=0.5).float(), solver=Euler(2))
    sampler.train()
    sampler.flow.transport.field.time.eval()
    before = [module.training for module in sampler.modules()]
    assert FORMATS[ending](sampler, tmp_path / f"s.{ending}") <= 1e-5
    assert [module.training for module in sampler.modules()] == before


@each_format
def test_layers_and_contexts_export_too(ending: str, tmp_path: Path) -> None:
    for sampler in (
        Sampler(recipes.realnvp(4, 3, transforms=2, hidden_features=(8,)).float()),
        Sampler(recipes.cnf(2, 3, hidden_features=(8,)).float(), solver=Heun(2)),
    ):
        for parameter in sampler.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        assert FORMATS[ending](sampler, tmp_path / f"s.{ending}") <= 1e-5


def test_files_describe_themselves(tmp_path: Path) -> None:
    import onnx

    sampler = image_sampler()
    export_pt2(sampler, tmp_path / "s.pt2")
    export_onnx(sampler, tmp_path / "s.onnx")
    extra = {"cflow.json": ""}
    torch.export.load(tmp_path / "s.pt2", extra_files=extra)
    (entry,) = onnx.load(tmp_path / "s.onnx").metadata_props
    for text in (extra["cflow.json"], entry.value):
        fields = json.loads(text)
        assert fields["event_shape"] == [16]
        assert fields["base"] == "Gaussian"
        assert fields["solvers"] == ["Euler(steps=2)"]


@each_format
def test_a_file_that_differs_is_not_kept(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"s.{ending}"
    path.write_text("what was here before")
    with pytest.raises(ExportError, match="no file was kept"):
        FORMATS[ending](image_sampler(), path, tolerance=-1.0)
    assert path.read_text() == "what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="chooses its steps as it goes"):
        Sampler(recipes.cnf(2))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        export_pt2(image_sampler(), tmp_path / "file" / "s.pt2")


def test_class_labels_are_traced_and_checked_as_integers(tmp_path: Path) -> None:
    flow = recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=1, layers=1, heads=2, fast="sample")
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sampler, labels = Sampler(flow.float()), torch.tensor([0, 2, 1])
    assert export_pt2(sampler, tmp_path / "a.pt2", context=labels) < 1e-4
    assert export_onnx(sampler, tmp_path / "a.onnx", context=labels) < 1e-4
    program = torch.export.load(tmp_path / "a.pt2").module()
    noise = torch.randn(2, 4, 4, dtype=torch.float32)
    first, other = (program(noise=noise, context=torch.tensor([k, k])) for k in range(2))
    assert not torch.equal(first, other)
    with pytest.raises(ShapeError, match="context"):
        export_pt2(sampler, tmp_path / "b.pt2", context=torch.zeros(3, 2))
