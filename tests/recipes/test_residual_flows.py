"""Residual recipes: saved as data, initialised from data, trained, and certified afterwards."""

import math
from pathlib import Path

import pytest
import torch

import cflow
from cflow import Flow, recipes
from cflow.errors import DomainError
from cflow.nets import Contraction
from cflow.transport import (
    ActNorm,
    ExactLogDet,
    FixedPoint,
    Poisson,
    ResidualLayer,
    RussianRoulette,
    with_logdet,
)

ROULETTE = RussianRoulette(Poisson(2.0), exact_terms=3, probes=2)


def build(name: str, **options: object) -> Flow:
    if name == "residual":
        return recipes.residual(2, transforms=4, hidden_features=(16, 16), **options)  # type: ignore[arg-type]
    return recipes.invertible_densenet(2, transforms=3, depth=2, growth=8, **options)  # type: ignore[arg-type]


both = pytest.mark.parametrize("name", ["residual", "invertible_densenet"])


@both
@pytest.mark.parametrize("fast", ["density", "sample"])
def test_a_saved_flow_reloads_exactly_with_its_options(
    name: str, fast: str, tmp_path: Path
) -> None:
    flow = build(name, logdet=ROULETTE, inverse=FixedPoint(1e-9, max_steps=77), fast=fast)
    flow.initialize(3 + 2 * torch.randn(100, 2))
    flow.save(tmp_path / "flow")
    again = cflow.load(tmp_path / "flow")
    x, generators = torch.randn(5, 2), [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(
        again.log_prob(x, generator=generators[0]), flow.log_prob(x, generator=generators[1])
    )
    layers = [m for m in again.modules() if isinstance(m, ResidualLayer)]
    assert {layer.logdet for layer in layers} == {ROULETTE}
    assert {layer.inverse for layer in layers} == {FixedPoint(1e-9, max_steps=77)}
    assert all(bool(m.fitted) for m in again.modules() if isinstance(m, ActNorm))


@both
@pytest.mark.parametrize("logdet", [ExactLogDet(), ROULETTE], ids=["exact", "roulette"])
def test_training_gains_likelihood_and_keeps_the_certificates(
    name: str, logdet: ExactLogDet | RussianRoulette
) -> None:
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(512)
    ring = torch.stack([angle.cos(), angle.sin()], -1) + 0.2 * torch.randn(512, 2)
    flow = build(name, logdet=logdet)
    flow.initialize(ring)
    exact = Flow(flow.base, with_logdet(flow.transport, ExactLogDet()))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    before = exact.log_prob(ring).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        (-flow.log_prob(ring).mean()).backward()
        optimizer.step()
    assert exact.log_prob(ring).mean().item() > before + 0.05
    nets = [m for m in flow.modules() if isinstance(m, Contraction)]
    assert all(net.certificate() <= 0.9 * (1 + 1e-12) for net in nets)
    with torch.no_grad():
        x = flow.sample(50)
        assert torch.allclose(flow.push(flow.pull(x)), x, rtol=0, atol=1e-4)


def test_the_log_determinant_follows_the_number_of_features() -> None:
    assert recipes.residual(8, transforms=1, hidden_features=(4,)).likelihood == "exact"
    assert recipes.residual(9, transforms=1, hidden_features=(4,)).likelihood == "estimate"


def test_bad_settings_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="residual: needs 1 feature and 1 transform at least"):
        recipes.residual(2, transforms=0)
    with pytest.raises(DomainError, match="invertible_densenet: needs 1 feature"):
        recipes.invertible_densenet(0)
    with pytest.raises(DomainError, match=r"coefficient must lie in \(0, 1\)"):
        recipes.residual(2, transforms=1, coefficient=1.2)
