"""The few-step study runs from raw data to table and picture, and does not do things twice."""

import json
from pathlib import Path

import pytest
import torch

from experiments.fewstep.__main__ import main
from experiments.fewstep.jobs import Settings
from experiments.fewstep.problems import PAIRS, pair
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


def test_images_take_the_same_road(tmp_path: Path) -> None:
    from cflow.data import find
    from cflow.data.mnist import SUBSET

    names = ("digits", "mnist") if find(SUBSET) else ("digits",)  # MNIST is not on every disk
    report = main(Settings(tmp_path, names, (0,), workers=1, smoke=True))
    assert [found["problem"] for found in report["studies"]] == [*names]
    for found in report["studies"]:
        assert found["unit"] == "sliced W2"
        assert 0 < found["floor"] < 0.3
        for name, row in found["rows"].items():
            assert all(0 < distance < 1 for distance in row["distances"].values()), name


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
    assert "Floor 2.000 +- 1.414." in table
    assert "| OT |  | 2.000 +- 1.414 |  |  | 4.000 +- 2.828 |" in table
