"""Exported files: the same numbers, any batch size, no cflow, and no file that is wrong."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.errors import CheckpointError, DomainError, MissingExtraError, ShapeError
from cflow.export import (
    Encoder,
    Exportable,
    ExportError,
    LogProb,
    Sampler,
    export_onnx,
    export_pt2,
    load_exported,
)
from cflow.field import DiTField
from cflow.manifold import Euclidean
from cflow.ode import Euler, Heun
from cflow.transport import ODE

RUN = Path(__file__).parents[2] / "experiments" / "run_exported.py"
FORMATS = {"pt2": export_pt2, "onnx": export_onnx}

pytestmark = pytest.mark.unchecked
each_format = pytest.mark.parametrize("ending", FORMATS)


def spread(flow: Flow, std: float = 0.3) -> Flow:
    """Move a flow away from its start, where many layers are the identity, in float32."""
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return flow.float()


def image_sampler() -> Sampler:
    flow = recipes.images(recipes.cnf(16, hidden_features=(32, 32)), (4, 4), levels=17).float()
    flow.initialize(torch.randint(0, 17, (50, 4, 4)))
    return Sampler(Flow(flow.base, flow.transport[:-1]), solver=Euler(2)).eval()


def apart(found: Tensor, eager: Tensor) -> float:
    assert found.shape == eager.shape
    return float((found - eager).abs().max() / eager.abs().max().clamp(min=1.0))


def without_cflow(path: Path, *inputs: Tensor) -> Tensor:
    """Run a file in a process of its own, elsewhere, that cannot import cflow."""
    for k, each in enumerate(inputs):
        np.save(path.parent / f"{k}.npy", each.numpy())
    first, *rest = (f"{k}.npy" for k in range(len(inputs)))
    subprocess.run(
        [sys.executable, "-I", RUN, path, first, "out.npy", *rest], check=True, cwd=path.parent
    )
    return torch.from_numpy(np.load(path.parent / "out.npy"))


@each_format
def test_a_file_gives_the_same_samples_in_a_process_without_cflow(
    ending: str, tmp_path: Path
) -> None:
    sampler, path = image_sampler(), tmp_path / f"sampler.{ending}"
    assert FORMATS[ending](sampler, path) <= 1e-5
    noise = torch.randn(33, 16, dtype=torch.float32)
    with torch.no_grad():
        eager = sampler(noise)
    found = without_cflow(path, noise)
    assert found.shape == (33, 4, 4)
    assert apart(found, eager) <= 1e-5


@each_format
def test_a_likelihood_is_that_of_the_flow(ending: str, tmp_path: Path) -> None:
    layers = spread(recipes.realnvp(4, 3, transforms=2, hidden_features=(8,)))
    steps = spread(recipes.cnf(4, 3, hidden_features=(8,)))
    for flow, module in (
        (layers, LogProb(layers)),
        (steps.with_solver(Euler(2)), LogProb(steps, steps=2)),
    ):
        path = tmp_path / f"{type(flow.transport).__name__}.{ending}"
        assert FORMATS[ending](module, path) <= 1e-5
        x, context = (torch.randn(300, n, dtype=torch.float32) for n in (4, 3))
        with torch.no_grad():
            eager = flow.log_prob(x, context)
        assert apart(load_exported(path)(x, context), eager) <= 1e-5


@each_format
def test_an_encoder_takes_samples_back_to_their_noise(ending: str, tmp_path: Path) -> None:
    flow = spread(recipes.realnvp(3, transforms=2, hidden_features=(8,)))
    FORMATS[ending](Sampler(flow), tmp_path / f"s.{ending}")
    FORMATS[ending](Encoder(flow), tmp_path / f"e.{ending}")
    noise = torch.randn(50, 3, dtype=torch.float32)
    samples = load_exported(tmp_path / f"s.{ending}")(noise)
    assert (samples - noise).abs().max() > 0.1
    again = load_exported(tmp_path / f"e.{ending}")(samples)
    assert (again - noise).abs().max() < 1e-4


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
        Sampler(spread(recipes.realnvp(4, 3, transforms=2, hidden_features=(8,)))),
        Sampler(spread(recipes.cnf(2, 3, hidden_features=(8,))), solver=Heun(2)),
    ):
        assert FORMATS[ending](sampler, tmp_path / f"s.{ending}") <= 1e-5


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
    flow = recipes.residual(2, transforms=1, hidden_features=(8,), fast="density").float()
    with pytest.raises(ExportError, match="cannot be traced at any batch size") as found:
        export_pt2(Sampler(flow), tmp_path / "s.pt2")
    assert "\n" not in str(found.value)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'cflow\[export\]'"):
            export_onnx(image_sampler(), tmp_path / "s.onnx")
        monkeypatch.undo()


def test_class_labels_are_traced_and_checked_as_integers(tmp_path: Path) -> None:
    flow = recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=1, layers=1, heads=2, fast="sample")
    sampler, labels = Sampler(spread(flow)), torch.tensor([0, 2, 1])
    assert export_pt2(sampler, tmp_path / "a.pt2", context=labels) <= 1e-5
    assert export_onnx(sampler, tmp_path / "a.onnx", context=labels) <= 1e-5
    noise = torch.randn(2, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        eager = sampler(noise, labels[:2])
    for name in ("a.pt2", "a.onnx"):
        assert apart(without_cflow(tmp_path / name, noise, labels[:2]), eager) <= 1e-5
        assert apart(load_exported(tmp_path / name)(noise, labels[1:]), eager) > 1e-3
    with pytest.raises(ShapeError, match="context"):
        export_pt2(sampler, tmp_path / "b.pt2", context=torch.zeros(3, 2))


def test_waves_of_a_thousand_radians_are_the_same_in_a_file(tmp_path: Path) -> None:
    field = DiTField((1, 4, 4), width=8, layers=1, heads=2)
    flow = Flow(Gaussian((1, 4, 4)), ODE(field, manifold=Euclidean(3)))
    sampler: Exportable = Sampler(spread(flow), steps=3)  # times that float32 has to round
    assert export_onnx(sampler, tmp_path / "s.onnx") <= 5e-7


@each_format
def test_a_file_tells_nothing_of_the_folders_it_was_made_in(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"s.{ending}"
    FORMATS[ending](image_sampler(), path)
    whole = path.read_bytes()
    if ending == "pt2":
        with zipfile.ZipFile(path) as stream:
            whole = b"".join(map(stream.read, stream.namelist()))
    assert b"samples" in whole or b"noise" in whole  # these are the bytes themselves
    assert str(RUN.parents[1]).encode() not in whole
    assert b"sampler.py" not in whole
