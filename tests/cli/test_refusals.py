"""Bad input gives one clear line and status 2, never a traceback; a bug keeps its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cflow import recipes

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def flow() -> str:
    recipes.maf(2, transforms=1, hidden_features=(4,)).save("flow.safetensors")
    return "flow.safetensors"


def test_an_unknown_recipe_names_the_nearest_and_all(cflow, ring: Path) -> None:
    refused = cflow("train", "nfs", ring)
    refused.expect_refusal("unknown recipe 'nfs', did you mean 'nsf'?", "realnvp", "unet")
    assert "images" not in refused.err
    assert "standardized" not in refused.err
    cflow("train", "zzzzzz", ring).expect_refusal("unknown recipe 'zzzzzz'; known: ")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (
            "transform=3",
            ["unknown argument of nsf 'transform', did you mean 'transforms'?", "bins"],
        ),
        ("transforms", ["-a takes name=value"]),
        ("transforms=", ["-a takes name=value"]),
        ("transforms=2.5", ["transforms of nsf must be int, got 2.5"]),
        ("transforms=True", ["transforms of nsf must be int"]),
        ("hidden_features=8", ["must be Sequence[int]"]),
        ("hidden_features=(8,'a')", ["must be Sequence[int]"]),
        ("kind=couplings", ["kind of nsf must be Literal['autoregressive', 'coupling']"]),
        ("bound=abc", ["bound of nsf must be float"]),
        ("bound=1+", ["cannot read the value"]),
        ("bound=open('x').read()", ["cannot read the value"]),
        ("transforms=0", ["transform"]),
        ("features=3", ["shape (2,)", "nsf makes points of shape (3,)"]),
    ],
)
def test_bad_arguments_of_a_recipe(cflow, ring: Path, word: str, words: list[str]) -> None:
    cflow("train", "nsf", ring, "-a", word).expect_refusal(*words)


def test_an_argument_given_twice(cflow, ring: Path) -> None:
    twice = ("-a", "bins=4", "-a", "bins=5")
    cflow("train", "nsf", ring, *twice).expect_refusal("bins of nsf is given twice")


def _nan() -> np.ndarray:
    x = np.zeros((20, 2))
    x[7, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", None, ["no such file"]),
        ("a.txt", b"1 2", [".npy, .npz or .csv"]),
        ("a.npy", b"", ["cannot read a.npy"]),
        ("a.npy", b"garbage" * 9, ["cannot read a.npy"]),
        ("a.npz", b"garbage" * 9, ["cannot read a.npz"]),
        ("a.csv", b"x,y\n1,2\n3,abc\n", ["'abc'", "row 1"]),
        ("a.csv", b"1,2\n3\n", ["cannot read a.csv"]),
        ("a.npy", np.array([{"a": 1}], dtype=object), ["cannot read a.npy", "allow_pickle"]),
        ("a.npy", np.array(["a"]), ["not numbers"]),
        ("a.npy", np.zeros((3, 2), dtype=complex), ["not numbers"]),
        ("a.npy", np.float64(3), ["no rows"]),
        ("a.npy", np.zeros((0, 2)), ["no rows"]),
        ("a.npy", _nan(), ["nan at index (7, 1)", "1 of 20 rows", "repair"]),
        ("a.npy", np.full((20, 2), np.inf), ["inf at index (0, 0)"]),
        ("a.npy", np.zeros((2, 2)), ["--held 0.1 of 2 points"]),
        ("a.npy", np.zeros((20, 2, 2)), ["images as integers"]),
    ],
)
def test_bad_data(cflow, name: str, content, words: list[str]) -> None:
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        np.save(name, content)
    cflow("train", "nsf", name).expect_refusal(*words)
    assert not Path("runs/nsf/checkpoint.pt").exists()


def test_a_cut_npy_file(cflow, ring: Path, flow: str) -> None:
    ring.write_bytes(ring.read_bytes()[:-100])
    cflow("log-prob", flow, ring).expect_refusal("cannot read ring.npy")


def test_an_archive_of_several_arrays(cflow) -> None:
    np.savez("a.npz", x=np.zeros(3), y=np.zeros(3))
    cflow("train", "nsf", "a.npz").expect_refusal("['x', 'y']", "data")


@pytest.mark.parametrize("command", ["info", "sample", "export"])
def test_files_that_hold_no_flow(cflow, flow: str, command: str) -> None:
    whole = Path(flow).read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"",
        b"not a flow",
        whole.replace(b"recipe", b"rezept"),
    ):
        Path(flow).write_bytes(broken)
        cflow(command, flow).expect_refusal("cannot", flow)
        assert Path(flow).read_bytes() == broken
    cflow(command, "nosuch.safetensors").expect_refusal("no such file")
    Path("empty").mkdir()
    cflow(command, "empty").expect_refusal("cannot use empty", "holds no flow.safetensors")


def test_wrong_shapes(cflow, flow: str) -> None:
    np.save("three.npy", np.zeros((5, 3)))
    cflow("log-prob", flow, "three.npy").expect_refusal("(n, 2)", "got (5, 3)")
    cflow("sample", flow, "--noise", "three.npy").expect_refusal("(n, 2)", "got (5, 3)")
    cflow("sample", flow, "--context", 1).expect_refusal("unconditional")
    cflow("log-prob", flow, "three.npy", "--context", 1).expect_refusal("(n, 2)")
    cflow("train", "nsf", "three.npy", "--context", "three.npy", "--held", 0).expect_refusal("held")


def test_conditions_that_do_not_fit(cflow) -> None:
    recipes.maf(2, 3, transforms=1, hidden_features=(4,)).save("flow.safetensors")
    np.save("x.npy", np.zeros((5, 2)))
    np.save("c.npy", np.zeros((5, 4)))
    np.save("few.npy", np.zeros((2, 3)))
    cflow("log-prob", "flow.safetensors", "x.npy").expect_refusal("needs a context")
    for given in ("c.npy", "(1, 2)", "0.5", "nosuch.npy", "word", "[[1, 2], 3]"):
        cflow("log-prob", "flow.safetensors", "x.npy", "--context", given).expect_refusal("c")
    few = cflow("log-prob", "flow.safetensors", "x.npy", "--context", "few.npy")
    few.expect_refusal("one for each of 5 points, got 2")
    cflow("train", "residual", "x.npy", "--context", "few.npy").expect_refusal("each of 5 points")
    np.save("labels.npy", np.array([0, 1, 2, 1, 0]))
    two = cflow("train", "nsf", "x.npy", "--context", "labels.npy", "-a", "context=2")
    two.expect_refusal("labels must lie in 0 .. 1, got 2")
    np.save("maps.npy", np.zeros((5, 3, 2)))
    cflow("train", "nsf", "x.npy", "--context", "maps.npy").expect_refusal("takes no context")


def test_options_that_do_not_go_together(cflow, flow: str, ring: Path) -> None:
    cflow("sample", flow, "--steps", 4).expect_refusal("no ODE")
    cflow("sample", flow, "--solver", "heun").expect_refusal("add --steps")
    cflow("sample", flow, "--steps", 4, "--solver", "hein").expect_refusal("did you mean 'heun'?")
    cflow("sample", flow, "--guidance", 2).expect_refusal("no ODE")
    cflow("sample", flow, "-o", "x.txt").expect_refusal(".npy or a .png", "x.txt")
    cflow("sample", flow, "-n", 0).expect_refusal("number must be positive")
    cflow("sample", flow, "--device", "nosuch").expect_refusal("--device", "nosuch")
    cflow("log-prob", flow, ring, "-o", "x.png").expect_refusal("takes a .npy file")
    cflow("train", "nsf", ring, "--coupling", "ot").expect_refusal("belong to matching")
    dropout = ("--context-dropout", 0.1)
    cflow("train", "cnf", ring, *dropout).expect_refusal("hides contexts, but there is none")
    cflow("train", "nsf", ring, "--steps", 0).expect_refusal("steps must be positive")
    recipes.maf(5, transforms=1, hidden_features=(4,)).save("wide.safetensors")
    cflow("sample", "wide.safetensors", "-o", "x.png").expect_refusal("(5,)", ".npy")


def test_results_that_cannot_be_written_are_refused_before_the_work(
    cflow, flow: str, ring: Path, monkeypatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("cflow.flow.Flow.push", work)
    monkeypatch.setattr("cflow.train.Trainer.fit", work)
    Path("file").touch()
    Path("folder.npy").mkdir()
    cflow("sample", flow, "-o", "file/x.npy").expect_refusal("cannot write file/x.npy")
    cflow("sample", flow, "-o", "folder.npy").expect_refusal("it is a folder")
    cflow("log-prob", flow, ring, "-o", "file/x.npy").expect_refusal("cannot write file/x.npy")
    cflow("train", "nsf", ring, "-o", "file/run").expect_refusal("cannot write file/run")


def test_a_missing_extra_says_what_to_install(cflow, flow: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cflow("sample", flow, "-o", "x.png").expect_refusal("matplotlib", "pip install 'cflow[plots]'")


def test_a_training_that_diverges_ends_in_one_line(cflow, ring: Path) -> None:
    words = ("-n", 50, "--lr", 1e30, "--clip", 1e30, "-a", "transforms=1", "-o", "run")
    cflow("train", "nsf", ring, *words).expect_refusal("is nan at step", "Lower the learning rate")


def test_a_bug_keeps_its_traceback(cflow, flow: str, monkeypatch) -> None:
    def bug(*args: object, **options: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("cflow.flow.Flow.push", bug)
    with pytest.raises(TypeError, match="a bug"):
        cflow("sample", flow)


def test_an_interrupt_is_one_line(cflow, flow: str, monkeypatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cflow.flow.Flow.push", interrupt)
    done = cflow("sample", flow)
    assert (done.status, done.out, done.err) == (130, "", "cflow: interrupted\n")


def test_usage_errors_have_status_two(cflow) -> None:
    for words in (
        ["nosuch"],
        ["train"],
        ["train", "nsf"],
        ["info", "a", "b"],
        ["sample", "a", "-n", "x"],
    ):
        done = cflow(*words)
        assert done.status == 2
        assert "Traceback" not in done.err


def test_the_installed_command_from_another_folder(tmp_path: Path) -> None:
    """One good and one bad command as a shell runs them."""
    command = Path(sys.executable).with_name("cflow")
    environment = {**os.environ, "PYTHONPATH": ""}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *words], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    torch.set_default_dtype(torch.float32)
    recipes.maf(2, transforms=1, hidden_features=(4,)).save(tmp_path / "flow.safetensors")
    good = call("sample", "flow.safetensors", "-n", "3")
    assert (good.returncode, good.stdout) == (0, "3 samples of shape (2,); samples.npy\n")
    assert good.stderr == ""
    bad = call("sample", "nosuch.safetensors")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "cflow: cannot read nosuch.safetensors: there is no such file\n"
