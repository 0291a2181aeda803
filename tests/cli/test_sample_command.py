"""`cflow sample`, `cflow log-prob` and `cflow info` of flows that are saved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.transport import Affine

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def spline() -> Flow:
    torch.manual_seed(1)
    flow = recipes.standardized(recipes.nsf(2, transforms=2, hidden_features=(8,))).eval()
    flow.initialize(3 + 2 * torch.randn(100, 2))
    flow.save("spline.safetensors")
    return flow


@pytest.fixture
def velocity() -> Flow:
    torch.manual_seed(1)
    flow = recipes.cnf(2, 3, hidden_features=(8,)).eval()
    flow.save("velocity.safetensors")
    return flow


def test_samples_are_those_of_the_flow_at_that_seed(cflow, spline: Flow) -> None:
    cflow("sample", "spline.safetensors", "-n", 50, "--seed", 4).expect_success("50 samples")
    wanted = spline.sample(50, generator=torch.Generator().manual_seed(4))
    assert np.array_equal(np.load("samples.npy"), wanted.numpy())


def test_the_batch_size_changes_no_sample(cflow, spline: Flow) -> None:
    for batch, name in ((7, "a.npy"), (1000, "b.npy")):
        cflow("sample", "spline.safetensors", "-n", 50, "--batch", batch, "-o", name)
    assert np.load("a.npy") == pytest.approx(np.load("b.npy"), rel=1e-5)


def test_noise_may_come_from_a_file(cflow, spline: Flow) -> None:
    noise = torch.randn(5, 2)
    np.save("noise.npy", noise.numpy())
    cflow("sample", "spline.safetensors", "--noise", "noise.npy").expect_success("5 samples")
    with torch.no_grad():
        assert np.load("samples.npy") == pytest.approx(spline.push(noise).numpy(), rel=1e-6)
    refused = cflow("sample", "spline.safetensors", "--noise", "noise.npy", "-n", 4)
    refused.expect_refusal("-n 4 does not go with 5 rows")


def test_steps_and_solver_are_those_asked_for(cflow, velocity: Flow) -> None:
    from cflow.ode import Heun

    context = ("--context", "(1, 0, 0.5)")
    words = ("--steps", 3, "--solver", "heun", "-n", 6)
    cflow("sample", "velocity.safetensors", *context, *words).expect_success()
    given = torch.tensor([1.0, 0.0, 0.5])
    wanted = velocity.with_solver(Heun(3)).sample(
        6, given, generator=torch.Generator().manual_seed(0)
    )
    assert np.load("samples.npy") == pytest.approx(wanted.numpy(), abs=1e-6)


def test_guidance_scale_one_is_the_flow_itself(cflow, velocity: Flow) -> None:
    words = ("sample", "velocity.safetensors", "--context", "(1, 0, 0.5)", "--steps", 2, "-n", 6)
    for scale, name in ((None, "plain"), (1.0, "one"), (3.0, "three")):
        guidance = () if scale is None else ("--guidance", scale)
        cflow(*words, *guidance, "-o", f"{name}.npy").expect_success()
    plain, one, three = (np.load(f"{name}.npy") for name in ("plain", "one", "three"))
    assert one == pytest.approx(plain, abs=1e-6)
    assert np.abs(three - plain).max() > 1e-3


def test_conditions_are_taken_in_turn(cflow, velocity: Flow) -> None:
    given = torch.eye(3)
    np.save("c.npy", given.numpy())
    words = ("sample", "velocity.safetensors", "--context", "c.npy", "--steps", 2)
    cflow(*words).expect_success("3 samples")
    cflow(*words, "-n", 5).expect_success("5 samples")
    rows = given[[0, 1, 2, 0, 1]]
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    from cflow.ode import Euler

    wanted = velocity.with_solver(Euler(2)).push(noise, rows).detach().numpy()
    assert np.load("samples.npy") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("shape", [(2,), (1,), (4, 4), (1, 4, 4), (3, 4, 4)])
def test_pictures(cflow, shape: tuple[int, ...]) -> None:
    from matplotlib.image import imread

    if len(shape) == 1:
        flow = recipes.maf(shape[0], transforms=1, hidden_features=(4,))
    else:
        flow = recipes.unet(shape, width=4, multipliers=(1,), blocks=1, attention=(), heads=2)
    flow.save("flow.safetensors")
    steps = ("--steps", 1) if len(shape) > 1 else ()
    cflow("sample", "flow.safetensors", "-n", 20, *steps, "-o", "x/y.png").expect_success("y.png")
    assert imread("x/y.png").std() > 0.01  # it is not blank


def test_log_prob_is_that_of_the_flow(cflow, spline: Flow) -> None:
    x = 3 + 2 * torch.randn(300, 2)
    np.save("x.npy", x.numpy())
    done = cflow("log-prob", "spline.safetensors", "x.npy", "--batch", 70, "-o", "values.npy")
    with torch.no_grad():
        wanted = spline.log_prob(x)
    assert np.load("values.npy") == pytest.approx(wanted.numpy(), abs=1e-4)
    error = wanted.std() / 300**0.5
    nats, bits = wanted.mean(), -wanted.mean() / (2 * np.log(2))
    done.expect_success(
        f"{nats:.4f} +- {error:.4f} nats, {bits:.4f} +- {error / (2 * np.log(2)):.4f} bits/dim",
        "over 300 points (exact)",
    )


def test_an_estimate_says_so(cflow) -> None:
    flow = recipes.ffjord(2, hidden_features=(8,))
    flow.save("flow.safetensors")
    np.save("x.npy", np.zeros((1, 2)))
    cflow("log-prob", "flow.safetensors", "x.npy").expect_success("an unbiased estimate", "1 point")


def test_info_names_what_built_a_flow(cflow, spline: Flow, velocity: Flow) -> None:
    done = cflow("info", "spline.safetensors")
    done.expect_success("standardized(nsf(2, transforms=2, hidden_features=(8,)))", "zero solver")
    assert f"{sum(p.numel() for p in spline.parameters()):,}" in done.out
    cflow("info", "velocity.safetensors").expect_success("cnf(2, context=3", "Dopri5", "shape (3,)")


def test_a_flow_of_no_recipe_cannot_be_rebuilt(cflow) -> None:
    Flow(Gaussian(2), Affine(2.0)).save("flow.safetensors")
    cflow("info", "flow.safetensors").expect_refusal("no recipe built this flow")


def test_a_flow_in_double_precision_stays_so(cflow) -> None:
    flow = recipes.maf(2, transforms=1, hidden_features=(4,)).double()
    flow.save("flow.safetensors")
    x = torch.randn(5, 2, dtype=torch.float64)
    np.save("x.npy", x.numpy())
    cflow("log-prob", "flow.safetensors", "x.npy", "-o", "values.npy").expect_success()
    assert np.load("values.npy") == pytest.approx(flow.log_prob(x).detach().numpy(), abs=1e-14)
    cflow("sample", "flow.safetensors", "-n", 3).expect_success()
    assert np.load("samples.npy").dtype == np.float64


def test_the_old_result_stands_until_the_new_one_is_whole(cflow, spline: Flow, monkeypatch) -> None:
    Path("samples.npy").write_bytes(b"old")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    cflow("sample", "spline.safetensors").expect_refusal("cannot write samples.npy", "No space")
    assert Path("samples.npy").read_bytes() == b"old"
    assert [path.name for path in Path().glob("*samples*")] == ["samples.npy"]
