"""The commands on manifolds: points off them are refused, or projected where that is asked."""

from pathlib import Path

import numpy as np
import pytest
import torch

import cflow as library
from cflow.manifold import Rotations, Sphere

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

SMALL = ("-n", 10, "-a", "hidden_features=(8,)", "-o", "run")


def cap(n: int = 100) -> np.ndarray:
    e = np.random.default_rng(0).normal(size=(n, 3)) + np.array([0, 0, 3])
    return e / np.linalg.norm(e, axis=1, keepdims=True)


@pytest.mark.unchecked  # traces for the export
def test_a_sphere_from_data_to_samples(cflow) -> None:
    np.save("points.npy", cap())
    cflow("train", "sphere_cnf", "points.npy", *SMALL).expect_success("sphere_cnf: 10 steps")
    flow = library.load("run/flow.safetensors")
    assert flow.recipe is not None
    assert flow.recipe.describe()["name"] == "sphere_cnf"  # not standardised
    cflow("log-prob", "run", "points.npy").expect_success("nats")
    cflow("sample", "run", "-n", 20, "-o", "drawn.npy").expect_success()
    drawn = torch.from_numpy(np.load("drawn.npy"))
    assert Sphere().check_point(drawn, atol=1e-5)[0]
    cflow("export", "run", "--steps", 2, "-o", "sampler.pt2").expect_success()


def test_points_off_the_sphere_are_refused_or_projected(cflow) -> None:
    np.save("off.npy", 1.5 * cap())
    refused = cflow("train", "sphere_cnf", "off.npy", *SMALL)
    refused.expect_refusal(
        "must lie on Sphere(), but lengths differ from 1 by up to 0.5", "--project"
    )
    cflow("train", "sphere_cnf", "off.npy", *SMALL, "--project").expect_success()
    cflow("log-prob", "run", "off.npy").expect_refusal("lengths differ from 1 by up to 0.5")
    cflow("log-prob", "run", "off.npy", "--project").expect_success("nats")


def test_angles_come_round(cflow) -> None:
    np.save("angles.npy", np.random.default_rng(0).uniform(0, 360, size=(100, 2)))
    refused = cflow("train", "torus_cnf", "angles.npy", *SMALL)
    refused.expect_refusal("must lie on Torus(), but coordinates from")
    np.save("angles.npy", np.deg2rad(np.load("angles.npy")))
    cflow("train", "torus_cnf", "angles.npy", *SMALL).expect_success()


def test_rotations_and_leaps(cflow) -> None:
    matrices = Rotations().uniform((60,), (3, 3), like=torch.zeros(()))
    np.save("rotations.npy", matrices.numpy())
    cflow("train", "rotation_cnf", "rotations.npy", *SMALL).expect_success()
    np.save("points.npy", cap())
    leaping = cflow("train", "sphere_cnf", "points.npy", *SMALL[:-1], "leaps", "-a", "average=True")
    leaping.expect_success("sphere_cnf: 10 steps")


def test_there_is_no_manifold_to_project_to(cflow, ring: Path) -> None:
    cflow("train", "cnf", ring, *SMALL, "--project").expect_refusal(
        "this flow has none; leave it out"
    )
