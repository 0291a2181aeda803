"""Recipes on tori and spheres: densities of mass one, no seam, saved whole, both orientations."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cflow import Flow, load, nll, recipes
from cflow.errors import DomainError
from cflow.manifold import Sphere
from cflow.recipes.torus import _split

TURN = 2 * math.pi
SMALL = dict(transforms=2, hidden_features=(8, 8))
TORI: dict[str, Callable[..., Flow]] = {
    "torus_nsf": lambda c=0, n=2, **k: recipes.torus_nsf(n, c, bins=4, **SMALL, **k),
    "torus_nsf, coupling": lambda c=0, n=2, **k: recipes.torus_nsf(
        n, c, bins=4, kind="coupling", residual=True, **SMALL, **k
    ),
    "torus_moebius": lambda c=0, n=2, **k: recipes.torus_moebius(n, c, units=3, **SMALL, **k),
    "torus_moebius, coupling": lambda c=0, n=2, **k: recipes.torus_moebius(
        n, c, units=3, kind="coupling", **SMALL, **k
    ),
}
SPHERES: dict[str, Callable[..., Flow]] = {
    "cylindrical": lambda c=0, **k: recipes.sphere_flow(3, c, bins=4, **SMALL, **k),
    "exponential": lambda c=0, **k: recipes.sphere_flow(
        3, c, kind="exponential", units=4, **SMALL, **k
    ),
    "exponential in R^4": lambda c=0, **k: recipes.sphere_flow(4, c, units=4, **SMALL, **k),
}
BUILDS = TORI | SPHERES
every = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
torus = pytest.mark.parametrize("build", TORI.values(), ids=TORI.keys())


def away(flow: Flow, spread: float = 0.2) -> Flow:
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=spread)
    return flow.eval()


def draw(flow: Flow, rows: int) -> Tensor:
    return flow.base.sample((rows,))


@every
@pytest.mark.parametrize("fast", ["density", "sample"])
@pytest.mark.parametrize("context", [0, 2])
def test_samples_come_with_their_density_in_either_orientation(
    build: Callable[..., Flow], fast: str, context: int
) -> None:
    flow = away(build(context, fast=fast))
    c = torch.randn(6, context) if context else None
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(() if context else (6,), c)
        assert torch.allclose(flow.log_prob(x, c), log_prob, rtol=0, atol=1e-7)
        assert torch.allclose(flow.push(flow.pull(x, c), c), x, rtol=0, atol=1e-7)
        assert flow.base.manifold.check_point(x, atol=1e-9)[0]
    if c is not None:
        assert bool((flow.log_prob(x, c + 1) != log_prob).all())


@every
def test_a_fresh_flow_is_nearly_uniform(build: Callable[..., Flow]) -> None:
    flow = build().eval()
    x = draw(flow, 50)
    bound = 0.3 if build in (SPHERES["exponential"], SPHERES["exponential in R^4"]) else 1e-9
    with torch.no_grad():
        assert (flow.log_prob(x) - flow.base.log_prob(x)).abs().max() < bound


@torus
def test_densities_on_the_torus_have_no_seam_and_mass_one(build: Callable[..., Flow]) -> None:
    flow = away(build())
    other = TURN * torch.rand(64)
    near, far = torch.full((64,), 1e-9), torch.full((64,), TURN - 1e-9)
    n = 150
    line = TURN * (torch.arange(n) + 0.5) / n
    with torch.no_grad():
        for place in (0, -1):
            low, high = (torch.stack([end, other], -1).roll(place, -1) for end in (near, far))
            assert (flow.log_prob(low) - flow.log_prob(high)).abs().max() < 1e-6
        log_prob = flow.log_prob(torch.cartesian_prod(line, line))
    assert log_prob.std() > 0.1, "a flat density would hide everything"
    assert float(log_prob.exp().mean()) * TURN**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["cylindrical", "exponential"])
def test_densities_on_the_sphere_have_mass_one(kind: str) -> None:
    flow = away(SPHERES[kind]())
    rings, around = (200, 200) if kind == "cylindrical" else (60, 60)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(rings))
    h, a = torch.cartesian_prod(nodes, TURN * torch.arange(around) / around).unbind(-1)
    away_from_axis = (1 - h * h).sqrt()
    grid = torch.stack([away_from_axis * a.cos(), away_from_axis * a.sin(), h], -1)
    with torch.no_grad():
        log_prob = flow.log_prob(grid)
    assert log_prob.std() > 0.1
    mass = float(log_prob.exp().reshape(rings, around).mean(1) @ weights) * TURN
    assert mass == pytest.approx(1, abs=1e-4)


@every
def test_gradients_reach_every_parameter(build: Callable[..., Flow]) -> None:
    flow = away(build(2)).train()
    nll(flow, draw(flow, 8), torch.randn(8, 2)).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


@every
def test_a_saved_flow_comes_back_the_same(build: Callable[..., Flow], tmp_path: Path) -> None:
    flow = away(build(2, fast="sample"))
    flow.save(tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    x, context = draw(flow, 5), torch.randn(5, 2)
    assert torch.equal(again.push(x, context), flow.push(x, context))
    assert again.recipe.describe() == flow.recipe.describe()


def test_training_on_two_peaks_lowers_the_loss() -> None:
    """Angles near two corners, one of them at the seam: log (2 pi)^2 = 3.68 falls below 0.9.

    The entropy of the peaks is 2 (log 0.2 + 1.419) + log 2 = 0.31.
    """
    corner = torch.tensor([[0.0, 0.0], [3.0, 2.0]])[torch.arange(200) % 2]
    x = torch.remainder(corner + 0.2 * torch.randn(200, 2), TURN)
    flow = recipes.torus_nsf(2, transforms=2, hidden_features=(32,))
    optimiser = torch.optim.Adam(flow.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        loss = nll(flow, x).mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.9


def test_every_two_features_stand_on_both_sides_of_a_split() -> None:
    for features in (2, 3, 5, 8):
        seen = torch.zeros(features, features, dtype=torch.bool)
        for k in range(2 * features):
            moved = _split(features, k)
            assert bool(moved.any())
            assert not bool(moved.all())
            seen |= moved[:, None] & ~moved
        assert torch.equal(seen, ~torch.eye(features, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["autoregressive", "coupling"])
@pytest.mark.parametrize("fast", ["density", "sample"])
def test_numbers_on_a_line_stand_behind_the_angles(kind: str, fast: str, tmp_path: Path) -> None:
    """Torus x line: mass one, no seam, and a file."""
    flow = away(recipes.torus_nsf(1, linear=1, kind=kind, fast=fast, bins=4, **SMALL))
    lengths = torch.linspace(-6, 6, 20)
    low, high = (torch.stack([torch.full((20,), end), lengths], -1) for end in (1e-9, TURN - 1e-9))
    n, m, reach = 150, 400, 8.0
    angles = TURN * (torch.arange(n) + 0.5) / n
    line = -reach + 2 * reach * (torch.arange(m) + 0.5) / m
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(low), flow.log_prob(high), rtol=0, atol=1e-6)
        density = flow.log_prob(torch.cartesian_prod(angles, line)).exp()
        x, log_prob = flow.sample_and_log_prob((20,))
        assert torch.allclose(flow.log_prob(x), log_prob)
    assert float(density.mean()) * TURN * 2 * reach == pytest.approx(1, abs=1e-4)
    flow.save(tmp_path / "flow.safetensors")
    assert torch.equal(load(tmp_path / "flow.safetensors").log_prob(x), flow.log_prob(x))
    wide = away(recipes.torus_nsf(3, 2, linear=2, kind=kind, fast=fast, bins=4, **SMALL))
    x = wide.sample((), torch.randn(30, 2))
    assert float(x[:, :3].min()) >= 0
    assert float(x[:, :3].max()) < TURN
    assert float(x[:, 3:].min()) < 0


def test_a_single_angle_and_a_circle_of_vectors() -> None:
    flow = away(recipes.torus_nsf(1, 2, transforms=2, hidden_features=(8,)))
    assert flow.sample((), torch.randn(5, 2)).shape == (5, 1)
    circle = recipes.sphere_flow(2, transforms=2)
    assert Sphere().check_point(circle.sample(5))[0]


def test_bad_sizes_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="torus_nsf: needs 2 features"):
        recipes.torus_nsf(1, kind="coupling")
    with pytest.raises(DomainError, match="one of them an angle"):
        recipes.torus_nsf(0, linear=3)
    with pytest.raises(DomainError, match="torus_moebius: needs 1 features"):
        recipes.torus_moebius(2, transforms=0)
    with pytest.raises(DomainError, match="exactly 3"):
        recipes.sphere_flow(4, kind="cylindrical")


@pytest.mark.unchecked
def test_an_unknown_kind_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="kind must be among"):
        recipes.torus_nsf(2, kind="spiral")
    with pytest.raises(DomainError, match="kind must be among"):
        recipes.sphere_flow(3, kind="spiral")
