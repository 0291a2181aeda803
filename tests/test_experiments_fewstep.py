"""The few-step study runs from raw data to table and picture, and does not do things twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cflow import recipes
from cflow.data import find
from cflow.data.mnist import SUBSET
from experiments.fewstep.__main__ import main
from experiments.fewstep.jobs import Settings, problem_of
from experiments.fewstep.problems import PAIR_SIZES, PAIRS, pair
from experiments.fewstep.study import Fit
from experiments.fewstep.table import written

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_a_pair_is_studied_once_and_shown(tmp_path: Path, capsys) -> None:
    settings = Settings(tmp_path, ("gaussian to moons",), (3,), workers=1, smoke=True)
    report = main(settings)
    (found,) = report["studies"]
    assert found["seed"] == 3
    rows = found["rows"]
    assert {"flow matching", "OT", "2-rectified", "3-rectified", "distilled", "mean flow"} <= set(
        rows
    )
    assert set(rows["OT"]["distances"]) == {"1", "2", "4", "8", "100"}
    assert set(rows["mean flow"]["distances"]) == {"1", "2", "4", "8"}
    assert set(rows["layers"]["distances"]) == {"0"}
    for row in rows.values():
        assert all(0 < distance < 10 for distance in row["distances"].values())
    paths = rows["flow matching"]["paths"]
    gap = paths["energy"] - paths["transport cost"]
    assert gap == pytest.approx(paths["straightness"], rel=1e-3)
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    assert "### gaussian to moons, W2, 1 seeds" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    main(settings)
    assert "seed 3" not in capsys.readouterr().out, "what is there is not done again"


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_images_go_in_and_come_out_grey(name: str) -> None:
    if name == "mnist" and find(SUBSET) is None:
        pytest.skip("MNIST is not on disk; name a folder with it in CFLOW_DATA")
    problem = problem_of(name, Settings(smoke=True))
    generator = torch.Generator().manual_seed(0)
    x1 = problem.fresh(20, generator=generator)
    assert x1.shape == (20, *problem.event)
    grey = problem.finish(x1)
    assert 0 <= grey.min() < 0.1 < 0.9 < grey.max() <= 1
    assert problem.distance(grey, 0) < 2 * problem.floor(0)
    assert problem.distance(grey.flip(-1), 0) > problem.distance(grey, 0)  # mirrored
    assert problem.distance(torch.zeros_like(grey), 0) > 1.5 * problem.distance(grey, 0)
    r, t = torch.zeros(20), torch.ones(20)
    assert problem.field()(r, x1).shape == problem.flow_map()(r, t, x1).shape == x1.shape
    assert problem.layers is not None
    assert problem.layers(x1).log_prob(x1).isfinite().all()


def test_what_was_trained_for_a_time_is_not_trained_on(tmp_path: Path) -> None:
    problem = pair("gaussian to moons", replace(PAIR_SIZES, seconds=0.05))
    fit = Fit(problem, 0, tmp_path)
    loss = lambda flow, row, *, generator: -flow.log_prob(row.expand(-1, 2))
    flows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        flows.append(fit("layers", recipes.realnvp(2, transforms=1), loss, 10**9, 1e-3))
    first, second = (flow.state_dict() for flow in flows)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_pair_has_starts_and_ends_of_its_name() -> None:
    for name in PAIRS:
        problem = pair(name)
        generator = torch.Generator().manual_seed(0)
        x0 = problem.base.sample((500,), generator=generator)
        x1 = problem.fresh(500, generator=generator)
        wide = {"gaussian": 1.0, "8 gaussians": 5.0, "moons": 2.5, "scurve": 2.0}
        for x, law in zip((x0, x1), name.split(" to "), strict=True):
            assert (x.norm(dim=1).median() / wide[law]).log().abs() < 0.5, (name, law)
        assert problem.layers is None or problem.base.log_prob(x0).isfinite().all()


def test_the_table_averages_over_seeds() -> None:
    row = lambda d: {"rows": {"OT": {"distances": {"1": d, "8": 2 * d}}}}
    one, two = (
        {"problem": "digits", "unit": "sliced W2", "floor": f, "seed": f, **row(f)}
        for f in (1.0, 3.0)
    )
    table = written(json.loads(json.dumps([one, two])))
    assert "Floor 2.0000 +- 1.4142." in table
    assert "| OT |  | 2.0000 +- 1.4142 |  |  | 4.0000 +- 2.8284 |" in table
