"""Files read back: what they say of themselves, shapes looked at first, bad files in one line."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from cflow import recipes
from cflow.errors import CheckpointError, DomainError, MissingExtraError, ShapeError
from cflow.export import Sampler, describe, export_onnx, export_pt2, load_exported
from cflow.ode import Heun

pytestmark = pytest.mark.unchecked
WRITERS = {"pt2": export_pt2, "onnx": export_onnx}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one sampler, with a context, in both formats."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    sampler = Sampler(recipes.cnf(2, 3, hidden_features=(8,)).float(), solver=Heun(2))
    for ending, write in WRITERS.items():
        write(sampler, folder / f"s.{ending}")
    return folder


@pytest.mark.parametrize("ending", WRITERS)
def test_files_describe_themselves(folder: Path, ending: str) -> None:
    from cflow import __version__

    found = describe(folder / f"s.{ending}")
    parity, versions = found.pop("parity"), found.pop("versions")
    assert found == {
        "cflow": 1,
        "kind": "sampler",
        "format": ending,
        "inputs": ["noise", "context"],
        "output": "samples",
        "event_shape": [2],
        "data_shape": [2],
        "base": "Gaussian",
        "base_shape": [2],
        "context_shape": [3],
        "context_dtype": "float32",
        "dtype": "float32",
        "steps": [2],
        "solvers": ["Heun(steps=2)"],
        "guidance": None,
        "likelihood": None,
    }
    assert parity["found"] <= parity["tolerance"] == 1e-5
    assert parity["seed"] == 0
    assert parity["batches"] == [4, 7, 1]
    assert versions == {"cflow": __version__, "torch": torch.__version__}


def test_descriptions_are_read_without_cflow(folder: Path) -> None:
    import onnx

    extra = {"cflow.json": ""}
    torch.export.load(folder / "s.pt2", extra_files=extra)
    (entry,) = onnx.load(folder / "s.onnx").metadata_props
    for text in (extra["cflow.json"], entry.value):
        assert json.loads(text)["event_shape"] == [2]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_any_batch_runs(folder: Path, ending: str, batch: int) -> None:
    file = load_exported(folder / f"s.{ending}")
    noise, context = torch.randn(batch, 2), torch.randn(batch, 3)  # float64: the file's own is used
    found = file(noise, context)
    assert found.shape == (batch, 2)
    assert found.dtype == torch.float32
    if batch > 1:  # no row knows of another
        assert torch.allclose(file(noise[:1], context[:1]), found[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ending", WRITERS)
def test_wrong_inputs_are_refused_in_one_line(folder: Path, ending: str) -> None:
    file = load_exported(folder / f"s.{ending}")
    noise, context = torch.randn(5, 2), torch.randn(5, 3)
    for inputs, error, words in (
        ((torch.randn(5, 3), context), ShapeError, r"noise must have shape \(n, 2\), got \(5, 3\)"),
        ((torch.randn(2), context), ShapeError, r"noise must have shape \(n, 2\), got \(2,\)"),
        ((noise, context[:4]), ShapeError, r"context must have shape \(5, 3\), got \(4, 3\)"),
        ((noise,), DomainError, "needs a context"),
    ):
        with pytest.raises(error, match=words) as found:
            file(*inputs)
        assert "\n" not in str(found.value)


def test_torch_and_onnxruntime_refuse_wrong_shapes_by_themselves(folder: Path) -> None:
    import onnxruntime

    noise, context = (torch.randn(5, 3, dtype=torch.float32) for _ in range(2))
    program = torch.export.load(folder / "s.pt2").module()
    with pytest.raises(AssertionError, match=r"Guard failed: noise.size\(\)\[1\] == 2"):
        program(noise=noise, context=context)
    session = onnxruntime.InferenceSession(str(folder / "s.onnx"))
    with pytest.raises(Exception, match="invalid dimensions for input: noise"):
        session.run(None, {"noise": noise.numpy(), "context": context.numpy()})


@pytest.mark.parametrize("ending", WRITERS)
def test_bad_files_are_refused_in_one_line(folder: Path, tmp_path: Path, ending: str) -> None:
    whole = (folder / f"s.{ending}").read_bytes()
    cut, text = tmp_path / f"cut.{ending}", tmp_path / f"text.{ending}"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("hello")
    for path in (cut, text, tmp_path / f"missing.{ending}"):
        for read in (describe, load_exported):
            with pytest.raises(CheckpointError, match=f"cannot read .*{path.stem}") as found:
                read(path)
            assert "\n" not in str(found.value)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    import onnx

    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "theirs.pt2")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "theirs.onnx")
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as stream:
        stream.writestr("weights/data.pkl", b"")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=r"not a file that cflow exported|no ONNX model"):
            describe(path)


def test_newer_and_damaged_descriptions_are_refused(folder: Path, tmp_path: Path) -> None:
    about = describe(folder / "s.pt2")
    for text, words in (
        (json.dumps(about | {"cflow": 2}), "newer cflow"),
        ("{", "its description is damaged"),
        ("[]", "its description is damaged"),
    ):
        path = tmp_path / "s.pt2"
        with zipfile.ZipFile(path, "w") as stream:
            stream.writestr("s/extra/cflow.json", text)
        with pytest.raises(CheckpointError, match=words):
            describe(path)


def test_a_description_on_a_damaged_program_does_not_help(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.pt2", "w") as stream:
        stream.writestr("s/extra/cflow.json", json.dumps(describe(folder / "s.pt2")))
    with pytest.raises(CheckpointError, match="it is damaged, or made for another") as found:
        load_exported(tmp_path / "s.pt2")
    assert "\n" not in str(found.value)


def test_a_missing_onnxruntime_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for read in (describe, load_exported):
        with pytest.raises(MissingExtraError, match="pip install onnxruntime"):
            read(folder / "s.onnx")


def test_reading_an_onnx_file_needs_onnxruntime_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    file = load_exported(folder / "s.onnx")
    assert file(torch.randn(2, 2), torch.randn(2, 3)).shape == (2, 2)
