"""Train, look, draw, evaluate, export, and draw from the exported file: one road, in seconds."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cflow import Flow
from cflow.base import Mixture, Uniform
from cflow.export import Sampler, export_pt2
from cflow.transport import Affine

pytestmark = [pytest.mark.unchecked, pytest.mark.usefixtures("in_an_empty_folder")]


@pytest.fixture
def trained(cflow, ring: Path) -> str:
    """A field on the ring, hardly trained, in the folder runs/cnf."""
    cflow("train", "cnf", ring, "-n", 10, "-a", "hidden_features=(8,)").expect_success()
    return "runs/cnf"


def radius(name: str) -> np.ndarray:
    return np.linalg.norm((np.load(name) - 200) / 50, axis=1)


def test_from_points_to_an_exported_sampler(cflow, ring: Path) -> None:
    words = ("-n", 400, "--lr", 1e-2, "-a", "hidden_features=(32, 32)", "--batch", 128)
    cflow("train", "cnf", ring, *words).expect_success("cnf: 400 steps", "runs/cnf")
    trained = "runs/cnf"
    cflow("info", trained).expect_success("standardized(cnf(2", "matching", "best validation")
    cflow("sample", trained, "-n", 400).expect_success("400 samples")
    # Of a ring of radius 1 +- 0.1; a normal law of the same moments has radius 0.89 +- 0.46.
    assert radius("samples.npy").std() < 0.3
    cflow("log-prob", trained, ring).expect_success("over 600 points (exact)")
    for form in ("onnx", "pt2"):
        done = cflow("export", trained, "--steps", 4, "--format", form)
        path = f"runs/cnf/sampler_4.{form}"
        done.expect_success("sampler: ", "bytes", path)
        cflow("info", path).expect_success("sampler", "Euler(steps=4)")
        cflow("sample", path, "-n", 50, "--seed", 3, "-o", f"{form}.npy").expect_success("50")
    cflow("sample", trained, "--steps", 4, "-n", 50, "--seed", 3).expect_success("50 samples")
    for form in ("onnx", "pt2"):
        assert np.load(f"{form}.npy") == pytest.approx(np.load("samples.npy"), rel=1e-4)
    cflow("sample", path, "-n", 5, "-o", "few.png").expect_success("few.png")


def test_an_exported_file_needs_onnxruntime_or_torch_alone(
    cflow, trained: str, monkeypatch
) -> None:
    for form in ("onnx", "pt2"):
        cflow("export", trained, "--steps", 1, "--format", form).expect_success()
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    cflow("sample", "runs/cnf/sampler_1.onnx", "-n", 3).expect_success("3 samples")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    cflow("sample", "runs/cnf/sampler_1.pt2", "-n", 3).expect_success("3 samples")
    missing = cflow("sample", "runs/cnf/sampler_1.onnx", "-n", 3)
    missing.expect_refusal("onnxruntime", "pip install onnxruntime")
    cflow("export", trained, "--steps", 1).expect_refusal("pip install 'cflow[export]'")


def test_likelihood_and_encoder_are_exported_too(cflow, ring: Path) -> None:
    words = ("-n", 20, "-a", "transforms=2", "-a", "hidden_features=(8,)")
    cflow("train", "maf", ring, *words).expect_success()
    for what in ("log-prob", "encoder"):
        cflow("export", "runs/maf", "--what", what, "--format", "pt2").expect_success(what)
    cflow("log-prob", "runs/maf", ring, "-o", "flow.npy").expect_success()
    done = cflow("log-prob", "runs/maf/log_prob.pt2", ring, "-o", "file.npy", "--batch", 100)
    done.expect_success("(exact)")
    assert np.load("file.npy") == pytest.approx(np.load("flow.npy"), abs=1e-4)
    wrong = cflow("sample", "runs/maf/log_prob.pt2")
    wrong.expect_refusal("holds a log-likelihood (cflow log-prob), not a sampler")
    cflow("log-prob", "runs/maf/encoder.pt2", ring).expect_refusal("an encoder")


def test_conditions_of_an_exported_file(cflow, ring: Path) -> None:
    np.save("labels.npy", np.arange(600) % 3)
    words = ("--context", "labels.npy", "--context-dropout", 0.2, "-n", 20)
    cflow("train", "cnf", ring, *words, "-a", "hidden_features=(8,)").expect_success()
    steps = ("--steps", 2, "--format", "pt2")
    cflow("export", "runs/cnf", *steps, "--guidance", 2.0).expect_success()
    cflow("export", "runs/cnf", *steps, "--context", 1, "-o", "one.pt2").expect_success("one.pt2")
    cflow("sample", "runs/cnf/sampler_2.pt2", "--context", 1, "-n", 4).expect_success("4 samples")
    guided = np.load("samples.npy")
    words = ("--steps", 2, "--guidance", 2.0, "--context", 1, "-n", 4)
    cflow("sample", "runs/cnf", *words).expect_success()
    assert guided == pytest.approx(np.load("samples.npy"), rel=1e-4)
    cflow("sample", "one.pt2", "-n", 4).expect_success("4 samples")
    cflow("sample", "runs/cnf", *words[:2], *words[4:]).expect_success()
    cflow("sample", "one.pt2", "-n", 4, "-o", "one.npy").expect_success()
    assert np.load("one.npy") == pytest.approx(np.load("samples.npy"), rel=1e-4)
    cflow("sample", "one.pt2", "--context", 1).expect_refusal("unconditional")
    cflow("sample", "runs/cnf/sampler_2.pt2").expect_refusal("needs conditions of shape (3,)")


def test_shades_of_images_are_exported(cflow, pixels: Path) -> None:
    words = ("-n", 10, "-a", "transforms=2", "-a", "hidden_features=(8,)")
    cflow("train", "realnvp", pixels, *words).expect_success()
    cflow("export", "runs/realnvp", "--format", "pt2").expect_success("sampler.pt2")
    cflow("sample", "runs/realnvp/sampler.pt2", "-n", 30).expect_success("30 samples")
    shades = np.load("samples.npy")
    assert shades.shape == (30, 2, 2)
    cflow("sample", "runs/realnvp", "-n", 30).expect_success()
    assert np.clip(np.floor(17 * shades + 1e-4), 0, 16) == pytest.approx(np.load("samples.npy"))


def test_labels_of_an_exported_file(cflow, pixels: Path) -> None:
    np.save("labels.npy", np.arange(200) % 3)
    words = ("-a", "scales=1", "-a", "steps=1", "-a", "hidden_channels=4", "-n", 5)
    cflow("train", "glow", pixels, "--context", "labels.npy", *words).expect_success()
    for form in ("pt2", "onnx"):
        cflow("export", "runs/glow", "--format", form).expect_success("sampler: ")
        path = f"runs/glow/sampler.{form}"
        cflow("sample", path, "--context", 2, "-n", 4).expect_success("4 samples")
        cflow("sample", path).expect_refusal("needs class labels")
        cflow("sample", path, "--context", 0.5).expect_refusal("class labels, whole numbers")
        cflow("sample", path, "--context", 3).expect_refusal("cannot run", path)


def test_noise_of_other_laws(cflow) -> None:
    """Uniform noise is drawn here as by the flow itself; what has no standard form is asked for."""
    flow = Flow(Uniform(2, low=-1.0), Affine(2.0)).eval()
    export_pt2(Sampler(flow), "uniform.pt2")
    cflow("sample", "uniform.pt2", "-n", 20, "--seed", 3).expect_success("20 samples")
    wanted = flow.sample(20, generator=torch.Generator().manual_seed(3)).numpy()
    assert np.load("samples.npy") == pytest.approx(wanted, abs=1e-6)
    export_pt2(Sampler(Flow(Mixture(3, 2), Affine(2.0))), "mixture.pt2")
    cflow("sample", "mixture.pt2").expect_refusal("the law Mixture", "--noise")
    np.save("noise.npy", np.ones((4, 2)))
    cflow("sample", "mixture.pt2", "--noise", "noise.npy").expect_success("4 samples")
    assert np.load("samples.npy") == pytest.approx(2.0)


def test_calibrated_and_half_as_large(cflow, trained: str) -> None:
    words = ("--steps", 4, "--format", "pt2")
    cflow("export", trained, *words, "--calibrate", "-o", "c.pt2").expect_success(
        "off the flow; ", "("
    )
    cflow("export", trained, *words, "--bfloat16", "-o", "b.pt2").expect_success("spread")
    cflow("export", trained, "--calibrate").expect_refusal("give --steps")


def test_bad_input_to_exported_files(cflow, trained: str) -> None:
    for form in ("onnx", "pt2"):
        cflow("export", trained, "--steps", 1, "--format", form).expect_success()
        path = Path(f"runs/cnf/sampler_1.{form}")
        np.save("noise.npy", np.zeros((4, 3)))
        wrong = cflow("sample", path, "--noise", "noise.npy")
        wrong.expect_refusal("(n, 2)", "got (4, 3)")
        np.save("noise.npy", np.zeros((4, 2)))
        cflow("sample", path, "--noise", "noise.npy").expect_success("4 samples")
        cflow("sample", path, "--steps", 4).expect_refusal("part of it")
        cflow("sample", path, "--context", 1).expect_refusal("unconditional")
        cflow("export", path).expect_refusal("is no flow")
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"garbage" * 100):
            path.write_bytes(broken)
            for command in ("info", "sample"):
                cflow(command, path).expect_refusal(str(path))
    Path("x.bin").write_bytes(b"1")
    cflow("info", "x.bin").expect_refusal("x.bin")
    cflow("export", trained).expect_refusal("steps")
    cflow("export", trained, "--steps", 2, "-o", "runs/cnf/flow.safetensors/x").expect_refusal(
        "cannot write"
    )
