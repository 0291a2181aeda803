"""The experiments on uses of flows run from start to end in their smoke mode."""

import json
from pathlib import Path

import pytest
import torch

from cflow.data import find
from cflow.data.regression import _file
from cflow.data.tables import TABLES

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_anomaly(tmp_path: Path, capsys) -> None:
    if find(TABLES["ionosphere"].file) is None:
        pytest.skip("ionosphere is not on disk; name a folder that holds it in CFLOW_DATA")
    from experiments.anomaly import Settings, main

    main(Settings(out=tmp_path, smoke=True))
    report = json.loads((tmp_path / "report.json").read_text())
    areas = report["auc"]["ionosphere"]
    assert {"maf", "nsf", "isolation forest", "svm"} <= areas.keys()
    assert all(0 <= entry["mean"] <= 1 for entry in areas.values())
    assert areas["local outlier factor"]["mean"] > 0.85  # the baselines are whole in smoke mode
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "isolation forest" in capsys.readouterr().out


def test_regression(tmp_path: Path, capsys) -> None:
    if find(_file("uci_regression/yacht/data.txt")) is None:
        pytest.skip("yacht is not on disk; name a folder that holds it in CFLOW_DATA")
    from experiments.regression import Settings, main

    main(Settings(out=tmp_path, smoke=True))
    report = json.loads((tmp_path / "report.json").read_text())
    entry = report["results"]["yacht"]
    assert len(entry["splits"]) == 2
    assert -10 < entry["log_prob"] < 2
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "MC dropout" in capsys.readouterr().out


def test_variational(tmp_path: Path, capsys) -> None:
    from experiments.variational import Settings, main

    main(Settings(out=tmp_path, smoke=True))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["targets"]["banana"].keys() == {"path", "total"}
    assert report["targets"]["banana"]["path"]["kl"] > 0
    assert report["digits"].keys() == {"diagonal", "realnvp", "iaf"}
    for entry in report["digits"].values():
        assert entry["elbo"] < entry["iwae"] < 0
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "IWAE-3" in capsys.readouterr().out


def test_the_targets_in_the_plane_have_the_constant_they_state() -> None:
    from experiments.variational import LOG_Z, TARGETS

    side = torch.linspace(-12, 12, 1601, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    for name, target in TARGETS.items():
        log_z = target(points).logsumexp(0) + 2 * (side[1] - side[0]).log()
        # The funnel is wider than the grid: about 1e-3 of its mass lies outside.
        assert log_z.item() == pytest.approx(LOG_Z, abs=0.02 if name == "funnel" else 1e-3), name
