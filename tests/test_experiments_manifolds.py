"""The experiments on manifolds run from start to end in their smoke mode."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def test_particles(tmp_path: Path) -> None:
    from cflow.data import find, particles
    from experiments.particles import SYSTEM, Settings, main

    if any(find(particles.FILES[SYSTEM, part]) is None for part in ("train", "test")):
        pytest.skip("the clouds are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert 5 < report["nll"]["value"] < 30
    assert report["nll"]["error"] > 0
    assert 0 < report["ess"]["value"] <= 1
    assert report["excess"]["value"] > -5 * report["excess"]["error"]
    assert report["changes"]["symmetries, largest"] < 1e-3
    assert report["changes"]["solver, largest"] < 1e-2
    assert (tmp_path / "energies.png").stat().st_size > 5000
    assert (tmp_path / "flow.safetensors").stat().st_size > 1000
    assert (tmp_path / "report.json").is_file()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_rotations(tmp_path: Path) -> None:
    from experiments.rotations import Settings, main

    report = main(Settings(out=tmp_path, smoke=True))
    rows = report["results"]
    assert abs(report["entropy"] - 1.0) < 0.5
    assert abs(rows["Haar's law"]["kl"] + report["entropy"] - 4.3689) < 1e-3  # log of 8 pi^2
    for name in ("matrices", "quaternions", "likelihood"):
        assert 0 < rows[name]["kl"] < 4
        assert rows[name]["off"] < 1e-5
        assert rows[name]["solver"] < 1e-2
        assert (tmp_path / f"{name}.safetensors").stat().st_size > 1000
    assert rows["quaternions"]["sign"] < 1e-4
    assert (tmp_path / "rotations.png").stat().st_size > 5000
    assert "quaternions" in (tmp_path / "table.md").read_text()


def test_crystals(tmp_path: Path) -> None:
    from cflow.data import crystals, find
    from experiments.crystals import Settings, main

    if any(find(crystals.PACKED[f"perov_5/{part}"]) is None for part in ("val", "test")):
        pytest.skip("the crystals are not on disk; name a folder with them in CFLOW_DATA")
    rows = main(Settings(out=tmp_path, smoke=True))["results"]
    assert rows["uniform law"]["nll"] == 0
    assert rows["floor"]["nll"] < rows["kernel"]["nll"] < rows["plain"]["nll"] < 5
    assert rows["equivariant"]["symmetry"] < 1e-3 < rows["plain"]["symmetry"]
    assert rows["floor"]["pairs"] < rows["equivariant"]["pairs"] < 0.3
    assert (tmp_path / "pairs.png").stat().st_size > 5000
    assert (tmp_path / "report.json").is_file()


def test_crystals_coupling() -> None:
    from experiments.crystals import CELL, aligned

    generator = torch.Generator().manual_seed(0)
    kind = torch.tensor([[1, 2, 3, 3, 3]]).expand(400, 5)
    x0 = torch.rand(400, 5, 3, generator=generator)
    exchanged = x0[:, [0, 1, 4, 2, 3]]
    x1 = CELL.projx(exchanged + torch.rand(400, 1, 3, generator=generator))
    one, other = aligned(x0, x1, kind)
    assert torch.allclose(one, exchanged)
    assert CELL.dist(one, other).max() < 1e-5
    x1 = torch.rand(400, 1, 3, generator=generator) + torch.zeros(400, 5, 3)
    one, other = aligned(x0, x1, kind)
    assert torch.equal(one.sort(1).values, x0.sort(1).values)
    assert CELL.dist(other[:, 0], other[:, 1]).max() < 1e-5
    # uniform afterwards: the mean of cos is normal of deviation 1 / sqrt(800) (four: 6e-5)
    assert (2 * torch.pi * other[:, 0]).cos().mean(0).abs().max() < 4 / 800**0.5


def test_lasa_sphere(tmp_path: Path) -> None:
    from cflow.data import find, lasa
    from experiments.lasa_sphere import Settings, main

    if find(lasa.ARCHIVE) is None:
        pytest.skip("the motions are not on disk; name a folder with them in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    assert report["floor"] < report["nll"]["wrapped normals"][0] < report["nll"]["flow"][0] < 4
    assert 0 < report["motions"]["mean"]["dtw"][0] < report["motions"]["mean"]["distance"][0] < 30
    assert report["off"] < 1e-6
    assert all(row["off"] < 1e-6 for row in report["few steps"].values())
    assert (tmp_path / "motions.png").stat().st_size > 5000
    assert (tmp_path / "report.json").is_file()


def test_lasa_sphere_wrapped_normals() -> None:
    from experiments.lasa_sphere_laws import SPACE, blurred, measured, wrapped_normals

    generator = torch.Generator().manual_seed(0)
    start = SPACE.uniform((1, 1, 3), (3,), like=torch.zeros(()), generator=generator)
    x = blurred(start.expand(1, 8, 3, 3), 0.3, generator)
    height, turn = (torch.arange(200) + 0.5) / 100 - 1, torch.arange(200) * torch.pi / 100
    z, turn = (part.flatten() for part in torch.meshgrid(height, turn, indexing="ij"))
    r = (1 - z.square()).sqrt()
    grid = torch.stack([r * turn.cos(), r * turn.sin(), z], -1)  # of equal areas
    density = wrapped_normals(x, grid[:, None, None].expand(-1, 1, 3, 3), 1, 0.1, blur=0.02).exp()
    assert torch.allclose(4 * torch.pi * density.mean(0), torch.ones(1, 3), atol=2e-3)
    same = measured(x[:, :1].transpose(0, 1), x[:, 0])
    assert same == {"distance": 0.0, "dtw": 0.0}


def test_mesh(tmp_path: Path) -> None:
    from cflow.data import find, meshes
    from experiments.mesh import SMOKE, Settings, main

    if find(meshes.FILES["spot"]) is None:
        pytest.skip("the mesh is not on disk; name a folder with it in CFLOW_DATA")
    report = main(Settings(out=tmp_path, smoke=True))
    (case,) = SMOKE["cases"]
    row = report["results"][case]
    assert row["uniform"] == pytest.approx(1.7421, abs=1e-3)
    assert row["entropy"] < 0.9
    assert 0 < row["kl"] < 1.2  # at the start it is the uniform law
    assert abs(row["mass"] - 1) < 5 * row["mass error"] + 0.02
    assert case.replace("-", ", ") in (tmp_path / "table.md").read_text()
    for name in ("report.json", f"{case}.png", f"{case}.safetensors"):
        assert (tmp_path / name).stat().st_size > 500


def test_densities_of_eigenfunctions() -> None:
    """Draws, mass and entropy against fine quadrature on a small mesh."""
    from cflow.data import meshes
    from cflow.manifold import Mesh
    from experiments.mesh import Eigendensity

    mesh = Mesh(*meshes.icosphere(1), eigenpairs=12)
    target = Eigendensity(mesh, 7)
    side = 60  # the centres of side^2 equal triangles in each face
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    up, down = i + j < side, i + j < side - 1
    a = torch.cat([i[up] + 1 / 3, i[down] + 2 / 3]).double() / side
    b = torch.cat([j[up] + 1 / 3, j[down] + 2 / 3]).double() / side
    weight = torch.stack([1 - a - b, a, b], -1)
    corners = mesh.vertices[mesh.faces]
    x = (weight @ corners).flatten(0, 1)
    p = target.log_prob(x).exp().reshape(len(corners), -1)
    side_a, side_b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = 0.5 * torch.linalg.vector_norm(torch.linalg.cross(side_a, side_b), dim=-1)
    assert float(area @ p.mean(1)) == pytest.approx(1, abs=1e-4)
    drawn = target.sample(40_000, generator=torch.Generator().manual_seed(0))
    assert mesh.check_point(drawn, atol=1e-10)[0]
    log_p = target.log_prob(drawn)
    assert abs(-log_p.mean() - target.entropy) < 5 * log_p.std() / 200
    # means of the hats about the vertices, and of products of two neighbours'
    hat = lambda x: mesh.interpolate(x, torch.eye(len(mesh.vertices), dtype=torch.float64))
    both = lambda h: torch.cat([h, h * h.roll(1, -1), h.square()], -1)
    found = both(hat(drawn))
    mass = (p * (area / p.shape[1])[:, None]).flatten()
    exact = mass @ both(hat(x))
    error = found.std(0) / len(drawn) ** 0.5
    assert (abs(found.mean(0) - exact) < 5 * error + 1e-5).all()
