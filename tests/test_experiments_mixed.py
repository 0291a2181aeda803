"""The experiment on molecules in space runs from start to end in its smoke mode."""

from pathlib import Path

import pytest
import torch

from cflow.jump import Mixed

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_mixed(tmp_path: Path) -> None:
    pytest.importorskip("rdkit", reason="rdkit is not installed")
    from cflow.data import find, smiles
    from experiments.mixed import Settings, main

    if any(find(smiles.PACKED[part]) is None for part in ("train", "test")):
        pytest.skip("the SMILES of QM9 are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    rows = report["results"]
    assert rows["test"]["whole"] == 1.0
    assert rows["test"]["neighbours"] < rows["drawn"]["neighbours"]
    assert rows["given elements"]["elements"] == 0.0
    assert 0 <= report["given places"]["right"] <= 1
    assert 0.5 < report["nats"]["elements"] < 1.6  # log 4 without training
    assert (tmp_path / "report.json").is_file()
    assert (tmp_path / "molecules.png").stat().st_size > 5000
    assert (tmp_path / "flow.safetensors").stat().st_size > 1000
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_molecules_are_judged_by_their_distances() -> None:
    from experiments.mixed_molecules import compared

    row = torch.zeros(9, 3)
    row[:, 0] = 1.4 * torch.arange(9)
    broken, crowded = row.clone(), row.clone()
    broken[5:] += 3.0
    crowded[8] = row[7] + torch.tensor([0.0, 0.5, 0.0])
    x = torch.stack([row, broken, crowded, row])
    tokens = torch.zeros(4, 9, dtype=torch.long)
    tokens[3, 4] = 3  # fluorine between two others
    z = Mixed(tokens, x)
    found = compared(z, Mixed(tokens[:1], x[:1]))
    assert found["whole"] == 0.5
    assert found["sound"] == 0.25
    assert abs(found["elements"] - 1 / 36) < 1e-6
    assert compared(z, z)["pairs"] == 0


def test_noise_is_brought_near_without_a_change_of_its_law_given_elements() -> None:
    from experiments.mixed import near

    torch.manual_seed(0)
    x0, x1 = (x - x.mean(1, keepdim=True) for x in torch.randn(2, 400, 9, 3))
    tokens = torch.randint(4, (400, 9))
    moved = near(x0, tokens, x1)
    assert torch.allclose(torch.cdist(x0, x0).sum((1, 2)), torch.cdist(moved, moved).sum((1, 2)))
    assert (moved - x1).square().sum() < 0.7 * (x0 - x1).square().sum()
    for kind in range(4):  # atoms of one element keep their distances to the centre
        a, b = (x.norm(dim=-1).where(tokens == kind, 0.0).sort(1)[0] for x in (x0, moved))
        assert torch.allclose(a, b, atol=1e-4)
