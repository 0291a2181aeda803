"""Weights in half the bytes: the size of files, and what is lost."""

from pathlib import Path

import pytest
import torch

from cflow import recipes
from cflow.errors import DomainError
from cflow.export import LogProb, Sampler, export_onnx, export_pt2, load_exported, low_precision


def sampler(width: int = 300) -> Sampler:
    return Sampler(recipes.cnf(2, hidden_features=(width,) * 3).float(), steps=2)


@pytest.mark.unchecked
@pytest.mark.parametrize("write", [export_pt2, export_onnx], ids=["pt2", "onnx"])
def test_files_hold_half_the_bytes_of_the_weights(write, tmp_path: Path) -> None:
    full = sampler()
    small, _ = low_precision(full)
    parameters = sum(p.numel() for p in full.parameters())
    sizes = []
    for module, name in ((full, "full"), (small, "small")):
        path = tmp_path / f"{name}.{'onnx' if write is export_onnx else 'pt2'}"
        assert write(module, path) <= 1e-5
        sizes.append(path.stat().st_size)
    # Two bytes for each parameter are saved, but for what describes the casts.
    assert 1.8 < (sizes[0] - sizes[1]) / parameters <= 2
    noise = torch.randn(5, 2, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(load_exported(path)(noise), small(noise), rtol=0, atol=1e-5)


def test_weights_are_rounded_and_the_module_stays() -> None:
    full = sampler(16)
    before = {name: value.clone() for name, value in full.state_dict().items()}
    small, loss = low_precision(full)
    noise = torch.randn(1000, 2, dtype=torch.float32)
    with torch.no_grad():
        a, b = full(noise), small(noise)
    assert b.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in full.state_dict().items())
    kept = {p.dtype for p in small.parameters()}
    assert kept == {torch.bfloat16}
    # Eight bits of a weight: outputs move by about 2^-9 of what the field adds to them.
    assert 0 < (a - b).abs().max() < 0.05
    spread = (a - a.mean(0)).square().mean().sqrt()
    again = low_precision(full, inputs=noise)[1]
    assert again.relative == pytest.approx(float((a - b).square().mean().sqrt() / spread), rel=1e-5)
    assert 0 < loss.relative < 0.05


def test_distances_are_those_of_samples() -> None:
    full = sampler(16)
    _, loss = low_precision(full, n=1024)
    # Two sets of n points of spread s are about s sqrt(2 / n) apart in their means alone.
    assert 0.2 / 32 < loss.floor < 5 / 32
    assert loss.distance < 0.2 * loss.floor
    for weight in full.parameters():
        weight.data = weight.data * 3.0
    _, worse = low_precision(full, n=1024)
    assert worse.relative > loss.relative
    assert "of their spread" in str(loss)


def test_likelihoods_and_labels_have_a_copy_too() -> None:
    flow = recipes.realnvp(3, transforms=2, hidden_features=(8,)).float()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    _, loss = low_precision(LogProb(flow), torch.float16, n=64)
    assert 0 < loss.relative < 0.01  # three more bits than bfloat16
    flow = recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=1, layers=1, heads=2, fast="sample")
    _, loss = low_precision(Sampler(flow.float()), context=torch.arange(3), n=6)
    assert loss.relative < 0.05


def test_other_precisions_are_refused() -> None:
    with pytest.raises(DomainError, match="bfloat16 or float16"):
        low_precision(sampler(8), torch.float32)
    with pytest.raises(DomainError, match="two inputs or more"):
        low_precision(sampler(8), n=1)
