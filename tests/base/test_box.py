"""The uniform law on a box: its ends, its outside, and its draws."""

import math

import pytest
import torch
from scipy.stats import kstest

from cflow.base import Uniform
from cflow.errors import DomainError


@pytest.mark.parametrize("event", [(), (2,), (3, 2)], ids=str)
def test_the_density_is_one_over_the_volume(event: tuple[int, ...]) -> None:
    base = Uniform(event, low=-1.0, high=2.0)
    entries = torch.Size(event).numel()
    expected = torch.full((5,), -entries * math.log(3.0))
    assert torch.allclose(base.log_prob(base.sample((5,))), expected)


def test_outside_it_is_minus_infinity_and_never_nan() -> None:
    base = Uniform(2, low=torch.tensor([0.0, -5.0]), high=torch.tensor([1.0, 5.0]))
    x = torch.tensor([[0.0, -5.0], [1.0, 5.0], [1.1, 0.0], [0.5, -torch.inf], [torch.inf, 0.0]])
    x.requires_grad_()
    values = base.log_prob(x)
    assert torch.equal(values.isfinite(), torch.tensor([True, True, False, False, False]))
    assert (values[2:] == -torch.inf).all()
    assert not values.requires_grad  # constant on either side


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_draws_are_uniform(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov on 20,000 draws; false alarm 1e-6."""
    x = Uniform(1, low=-1.0, high=3.0).to(dtype).sample((20_000,))
    assert kstest(x.flatten().numpy(), "uniform", args=(-1.0, 4.0)).pvalue > 1e-6


def test_draws_of_low_precision_stay_in_the_box() -> None:
    base = Uniform(1, low=0.1, high=0.7).to(torch.bfloat16)
    x = base.sample((10_000,))
    assert base.log_prob(x).isfinite().all()
    assert len(x.unique()) > 100  # the noise itself is not of low precision


@pytest.mark.parametrize("ends", [(0.0, 0.0), (1.0, 0.0), (0.0, torch.inf)], ids=str)
def test_ends_that_make_no_box_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(DomainError, match="ends must be finite, and high above low"):
        Uniform(2, low=ends[0], high=ends[1])
