"""Bases against torch.distributions, and their samples against their densities."""

import math

import pytest
import torch
from scipy.stats import kstest

from cflow.base import Gaussian, ManifoldUniform
from cflow.errors import ShapeError
from cflow.manifold import Sphere


@pytest.mark.parametrize("event", [(), (3,), (2, 4)], ids=str)
def test_the_gaussian_is_torchs(event: tuple[int, ...]) -> None:
    base = Gaussian(event)
    x = torch.randn(5, *event)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    expected = normal.flatten(1).sum(1) if event else normal
    assert torch.allclose(base.log_prob(x), expected)
    assert base.sample((7, 2)).shape == (7, 2, *event)


def test_samples_are_normal_and_follow_the_dtype_of_the_module() -> None:
    """Kolmogorov-Smirnov on 20,000 draws; false alarm 1e-6."""
    x = Gaussian(2).sample((10_000,), generator=torch.Generator().manual_seed(0))
    assert kstest(x.flatten().numpy(), "norm").pvalue > 1e-6
    assert Gaussian(2).to(torch.bfloat16).sample((1,)).dtype == torch.bfloat16
    low = Gaussian(2).log_prob(torch.zeros(1, 2, dtype=torch.bfloat16))
    assert low.dtype == torch.float32


def test_the_sphere_keeps_its_density_in_float32_and_checks_shapes() -> None:
    base = ManifoldUniform(Sphere(), 3).to(torch.bfloat16)
    log_prob = base.log_prob(base.sample((4,)))
    assert log_prob.dtype == torch.float32
    assert log_prob.tolist() == pytest.approx([-math.log(4 * math.pi)] * 4)
    with pytest.raises(ShapeError, match=r"ManifoldUniform\.log_prob: x must end in shape \(3,\)"):
        base.log_prob(torch.zeros(4, 2))
