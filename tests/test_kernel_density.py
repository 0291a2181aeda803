"""Kernel densities on spheres and tori integrate to one, and their widths are the best ones."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch.distributions import VonMises

from experiments.densities.kernel_density import (
    GRID,
    SPHERE,
    TORUS,
    Kernel,
    Settings,
    all_widths,
    log_prob,
    main,
    mixed,
    width_for_each,
)


def sphere_grid(rows: int = 400) -> tuple[torch.Tensor, float]:
    """Return midpoints of equal areas, z against longitude, and the area of each."""
    z = (torch.arange(rows) + 0.5) / rows * 2 - 1
    angle = (torch.arange(rows) + 0.5) / rows * 2 * math.pi
    z, angle = torch.cartesian_prod(z, angle).unbind(1)
    across = (1 - z**2).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), z], 1), 4 * math.pi / rows**2


def sphere_points(n: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3), dim=1)


@pytest.mark.parametrize("kappa", [1e-3, 1.0, 30.0, 1000.0])
def test_a_density_on_the_sphere_integrates_to_one(kappa: float) -> None:
    x, area = sphere_grid()
    density = log_prob(SPHERE, x, sphere_points(4), torch.tensor(kappa)).exp()
    assert density.sum() * area == pytest.approx(1, abs=2e-4)


def test_a_density_on_the_torus_integrates_to_one_and_is_a_product() -> None:
    angle = (torch.arange(200) + 0.5) / 200 * 2 * math.pi
    x = torch.cartesian_prod(angle, angle)
    centres = 10 * torch.rand(5, 2)
    kappa = torch.tensor([2.0, 50.0])
    found = log_prob(TORUS, x, centres, kappa)
    assert found.exp().sum() * (2 * math.pi / 200) ** 2 == pytest.approx(1, abs=1e-10)
    each = VonMises(centres, kappa).log_prob(x[:, None])  # approximates I0 to 1e-6
    torch.testing.assert_close(found, each.sum(-1).logsumexp(1) - math.log(5), rtol=0, atol=1e-5)


def test_narrow_kernels_lose_no_digits() -> None:
    kappa = torch.tensor(1e12)
    x = torch.tensor([[1.0, 0.0, 0.0]])
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 1e-6, 0.0]]), dim=1)
    wanted = math.log(1e12 / (2 * math.pi)) - 0.5
    assert log_prob(SPHERE, x, near, kappa).item() == pytest.approx(wanted, abs=1e-3)
    angle = torch.tensor([[1.0]])
    wanted = 0.5 * math.log(1e12 / (2 * math.pi)) - 0.5
    assert log_prob(TORUS, angle, angle + 1e-6, kappa).item() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("kernel", [SPHERE, TORUS])
def test_the_grid_of_widths_is_the_density_at_each(kernel: Kernel) -> None:
    points = sphere_points if kernel is SPHERE else lambda n: 2 * torch.rand(n, 2)
    train, validation = points(300), points(300)
    each = [log_prob(kernel, validation, train, kappa) for kappa in GRID]
    torch.testing.assert_close(all_widths(kernel, validation, train), torch.stack(each, dim=1))


def test_mixed_weights_validate_best() -> None:
    """The weights meet the conditions of an optimum: no width has a mean ratio above one."""
    train = torch.cat([sphere_points(200), sphere_points(200) * 1e-4 + torch.eye(3)[0]])
    train = torch.nn.functional.normalize(train, dim=1)
    log_probs = all_widths(SPHERE, train[1::2], train[::2])
    log_weights = mixed(log_probs)
    assert log_weights.exp().sum() == pytest.approx(1, abs=1e-9)
    value = (log_probs + log_weights).logsumexp(1)
    assert value.mean() > log_probs.mean(0).max() + 0.5
    ratio = (log_probs - value[:, None]).exp().mean(0)
    assert ratio.max() < 1.02


def test_widths_of_single_angles_validate_no_worse() -> None:
    train, validation = torch.randn(2, 300, 3) * torch.tensor([1.0, 0.01, 0.1])
    one = GRID[all_widths(TORUS, validation, train).mean(0).argmax()]
    each = width_for_each(TORUS, train, validation, one)
    score = lambda kappa: log_prob(TORUS, validation, train, kappa).mean()
    assert score(each) > score(one) + 0.5
    assert each[1] > each[2] > each[0]
    for k in range(3):  # no single step is left that helps
        for factor in (2**0.5, 0.5**0.5):
            tried = each.clone()
            tried[k] *= factor
            assert score(tried) <= score(each) + 1e-12


def test_the_experiment_runs(tmp_path: Path, capsys, monkeypatch) -> None:
    from cflow.data import earth, find, torsion

    monkeypatch.setattr(torsion, "_table", functools.cache(torsion._table))  # read for every split

    if find(earth.FILES["volcano"]) is None or find(torsion.RNA) is None:
        pytest.skip("the files are not on disk; name a folder that holds them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, sets=("volcano", "rna"), smoke=True))
    assert len(report["results"]) == 10
    assert all(math.isfinite(row["mean"]) for row in report["results"])
    assert json.loads((tmp_path / "report.json").read_text())["results"] == report["results"]
    assert "rna" in capsys.readouterr().out
