"""`cflow train`: what it infers from the data, what it keeps, and how it goes on."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import cflow as library
from cflow import recipes
from cflow.cli import main, objective
from cflow.cli.build import build
from cflow.cli.objective import chosen_loss, loss_of
from cflow.errors import DomainError, ShapeError

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

SMALL = ("-n", 10, "-a", "transforms=2", "-a", "hidden_features=(8,)", "-o", "run")
FIELD = ("-n", 10, "-a", "hidden_features=(8,)", "-o", "run")


def settings() -> dict:
    return json.loads(Path("run/settings.json").read_text())


def test_a_table_is_standardised_and_the_flow_is_in_its_units(cflow, ring: Path) -> None:
    cflow("train", "nsf", ring, *SMALL).expect_success("nsf: 10 steps", "nats", "run/flow.safe")
    flow = library.load("run/flow.safetensors")
    assert flow.recipe is not None
    described = flow.recipe.describe()
    assert described["name"] == "standardized"
    assert described["arguments"]["flow"]["recipe"]["arguments"]["features"] == 2
    data = torch.from_numpy(np.load(ring)).float()
    scale = flow.transport[-1].scale  # type: ignore[index]
    assert scale.tolist() == pytest.approx(data.std(0).tolist(), rel=0.1)
    samples = flow.sample(2000)
    assert samples.mean(0).tolist() == pytest.approx([200, 200], abs=15)
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoint.pt", "flow.safetensors", "history.json", "settings.json",
    ]  # fmt: skip
    history = json.loads(Path("run/history.json").read_text())
    assert {"loss", "validation"} <= {key for entry in history for key in entry}


def test_a_table_as_it_is(cflow, ring: Path) -> None:
    cflow("train", "maf", ring, *SMALL, "--no-standardize").expect_success()
    flow = library.load("run/flow.safetensors")
    assert flow.recipe is not None
    assert flow.recipe.describe()["name"] == "maf"


def test_images_of_integers_are_dequantised(cflow, pixels: Path) -> None:
    cflow("train", "realnvp", pixels, *SMALL).expect_success()
    flow = library.load("run/flow.safetensors")
    assert flow.event_shape == (2, 2)
    assert flow.likelihood == "bound"
    assert settings()["flow"]["arguments"]["levels"] == 17
    cflow("sample", "run", "-n", 20).expect_success("20 samples of shape (2, 2)")
    drawn = np.load("samples.npy")
    assert set(np.unique(drawn)) <= set(range(17))
    cflow("log-prob", "run", pixels).expect_success("a lower bound", "bits/dim, over 200 points")


def test_a_field_is_trained_by_matching_through_its_preprocessing(cflow, pixels: Path) -> None:
    done = cflow("train", "cnf", pixels, *FIELD)
    done.expect_success("squared error of the velocity")
    assert settings()["loss"] == "matching"
    cflow("sample", "run", "--steps", 2, "-n", 4).expect_success("4 samples")


def test_labels_become_unit_vectors_or_stay_labels(cflow, ring: Path, pixels: Path) -> None:
    np.save("labels.npy", np.arange(600) % 3)
    cflow("train", "realnvp", ring, *SMALL, "--context", "labels.npy").expect_success()
    assert library.load("run/flow.safetensors").context_shape == (3,)
    cflow("sample", "run", "--context", 2, "-n", 5).expect_success("5 samples")
    cflow("sample", "run", "--context", "labels.npy").expect_success("600 samples")
    cflow("log-prob", "run", ring, "--context", "labels.npy").expect_success("(exact)")
    cflow("sample", "run", "--context", 3).expect_refusal("labels must lie in 0 .. 2, got 3")
    cflow("sample", "run").expect_refusal("needs conditions of shape (3,)", "--context")
    np.save("labels.npy", np.arange(200) % 3)
    words = ("-n", 5, "-a", "scales=1", "-a", "steps=1", "-a", "hidden_channels=4", "-o", "grey")
    cflow("train", "glow", pixels, "--context", "labels.npy", *words).expect_success()
    cflow("info", "grey").expect_success("labels 0 .. 2", "likelihood", "bound")
    cflow("sample", "grey", "--context", 1, "-n", 3, "-o", "a.npy").expect_success()
    cflow("sample", "grey", "--context", 3).expect_refusal("labels must lie in 0 .. 2, got 3")
    cflow("sample", "grey").expect_refusal("needs labels 0 .. 2")


def test_csv_and_npz_hold_data_too(cflow, ring: Path) -> None:
    data = np.load(ring)
    np.savetxt("ring.csv", data, delimiter=",", header="x,y", comments="")
    np.savez("ring.npz", data=data, other=np.zeros(3))
    for name in ("ring.csv", "ring.npz"):
        Path("run/flow.safetensors").unlink(missing_ok=True)
        Path("run/checkpoint.pt").unlink(missing_ok=True)
        cflow("train", "nsf", name, *SMALL).expect_success()
    by_csv, by_npz = (cflow("log-prob", "run", name).out for name in ("ring.csv", "ring.npz"))
    assert by_csv == by_npz


def test_options_of_a_recipe_are_looked_up_and_nothing_else(cflow, ring: Path) -> None:
    cflow("train", "cnf", ring, *FIELD, "-a", "solver=RK4(3)").expect_success()
    cflow("info", "run").expect_success("solver=RK4(steps=3)")
    refused = cflow("train", "cnf", ring, *FIELD, "-a", "solver=Path('x')")
    refused.expect_refusal("unknown option 'Path'")


def test_the_loss_follows_the_flow_and_may_be_set(cflow, ring: Path) -> None:
    cflow("train", "cnf", ring, *FIELD, "--loss", "nll", "-a", "solver=RK4(2)").expect_success(
        "nats"
    )
    cflow("train", "nsf", ring, "--loss", "matching", "-o", "other").expect_refusal(
        "one ODE at its base end"
    )
    leaps = ("-a", "average=True", "-o", "leaps", "-n", 10, "-a", "hidden_features=(8,)")
    cflow("train", "cnf", ring, *leaps).expect_success("squared error of the velocity")
    cflow("info", "leaps").expect_success("mean-flow", "Euler(steps=1)")
    cflow("sample", "leaps", "--steps", 2, "-n", 3).expect_success("3 samples")
    table = torch.randn(20, 2)
    losses = {
        name: chosen_loss(build(name, {}, table, None).flow)
        for name in ("cnf", "exact_cnf", "ffjord", "maf", "residual")
    }
    assert losses == {
        "cnf": "matching", "exact_cnf": "nll", "ffjord": "nll", "maf": "nll", "residual": "nll",
    }  # fmt: skip


def test_matching_ends_where_the_ode_begins() -> None:
    """A field that is exact for the standardised data has the loss of the paths' own spread."""
    flow = recipes.standardized(recipes.cnf(2, hidden_features=(8,)))
    data = 7 + 3 * torch.randn(20_000, 2)
    flow.initialize(data)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()  # v = 0
    loss = loss_of(flow, "matching", coupling="independent")
    found = loss(flow, data, generator=torch.Generator().manual_seed(0)).mean().item()
    # E |x1 - x0|^2 / 2 = 2 for two independent standard normal ends; its standard error here is
    # 2 / sqrt(20000) = 0.014, so a right loss fails once in 10^6.
    assert found == pytest.approx(2.0, abs=5 * 0.014)


def test_sizes_that_are_given_are_not_inferred() -> None:
    x = torch.randn(10, 3)
    assert build("nsf", {"transforms": 1}, x, None).flow.event_shape == (3,)
    whole = torch.arange(30).reshape(10, 3)
    assert build("nsf", {"transforms": 1}, whole, None).flow.likelihood == "exact"
    assert build("nsf", {"transforms": 1}, whole, None, levels=30).flow.likelihood == "bound"
    images = torch.full((10, 2, 2), 200, dtype=torch.uint8)
    arguments = build("realnvp", {"transforms": 1}, images, None).flow.recipe.describe()  # type: ignore[union-attr]
    assert arguments["arguments"]["levels"] == 256
    with pytest.raises(DomainError, match=r"must lie in 0 \.\. 99, got 200"):
        build("realnvp", {}, images, None, levels=100)
    with pytest.raises(ShapeError, match="images as integers"):
        build("realnvp", {}, images.float(), None)
    with pytest.raises(DomainError, match="images of integers"):
        build("glow", {}, images.float(), None)


def train_slowly(folder: Path, words: list[str]) -> None:
    """Run a command in a folder; a step of its training takes 50 ms longer."""
    os.chdir(folder)
    plain = objective.nll

    def slow(*args, **options):
        time.sleep(0.05)
        return plain(*args, **options)

    objective.nll = slow
    main(words)


def test_a_killed_training_goes_on_with_the_same_command(cflow, ring: Path, forked) -> None:
    """Killed between its first and its last checkpoint, it ends as if nothing had happened."""
    words = [
        "train", "nsf", "ring.npy", "-n", "60", "-a", "transforms=2", "-a", "hidden_features=(8,)",
    ]  # fmt: skip
    process = forked.Process(target=train_slowly, args=(Path.cwd(), [*words, "-o", "killed"]))
    process.start()
    checkpoint = Path("killed/checkpoint.pt")
    while not (checkpoint.is_file() and torch.load(checkpoint, weights_only=True)["step"] > 0):
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.05)
    process.kill()
    process.join()
    assert not Path("killed/flow.safetensors").exists()
    cflow("sample", "killed").expect_refusal("has not ended", "again to go on")
    cflow("info", "killed").expect_refusal("has not ended")
    cflow(*words, "-o", "killed").expect_success("60 steps")
    cflow(*words, "-o", "whole").expect_success("60 steps")
    killed, whole = (library.load(f"{name}/flow.safetensors") for name in ("killed", "whole"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, killed.state_dict()[name]), name


def test_a_folder_belongs_to_one_training(cflow, ring: Path) -> None:
    cflow("train", "nsf", ring, *SMALL).expect_success()
    before = Path("run/flow.safetensors").read_bytes()
    cflow("train", "nsf", ring, *SMALL).expect_success("10 steps")  # once more: nothing to do
    assert Path("run/flow.safetensors").read_bytes() == before
    refused = cflow("train", "nsf", ring, *SMALL, "--lr", 0.5)
    refused.expect_refusal("run holds a training with lr 0.001, not 0.5", "--out")
    np.save(ring, np.load(ring) + 1)
    cflow("train", "nsf", ring, *SMALL).expect_refusal("holds a training with digest")
    assert Path("run/flow.safetensors").read_bytes() == before


def test_a_refused_command_leaves_the_folder_free(cflow, ring: Path) -> None:
    cflow("train", "nsf", ring, *SMALL, "--batch", 0).expect_refusal("batch must be positive")
    cflow("train", "nsf", ring, *SMALL).expect_success()


def test_wandb_on_request(cflow, ring: Path) -> None:
    cflow("train", "nsf", ring, *SMALL, "--wandb").expect_success()
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))


def test_a_script_runs_with_its_own_arguments_and_status(cflow) -> None:
    Path("folder").mkdir()
    Path("folder/beside.py").write_text("WORD = 'beside'\n")
    Path("folder/script.py").write_text(
        "import sys\nfrom beside import WORD\n"
        "if __name__ == '__main__':\n    print(WORD, sys.argv[1:])\n"
        "    sys.exit(int(sys.argv[1]))\n"
    )
    before = list(sys.path), list(sys.argv)
    done = cflow("train", "folder/script.py", 7, "--help")
    assert (done.status, done.out) == (7, "beside ['7', '--help']\n")
    assert (sys.path, sys.argv) == before
    cflow("train", "nosuch.py").expect_refusal("cannot run nosuch.py", "no such script")


def test_a_script_that_fails_shows_where(cflow) -> None:
    Path("bad.py").write_text("from cflow.errors import DomainError\nraise DomainError('mine')\n")
    with pytest.raises(DomainError, match="mine"):
        cflow("train", "bad.py")
