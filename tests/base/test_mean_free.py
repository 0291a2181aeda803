"""The normal law of centred clouds: its density, its volume, its samples, and what it refuses."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from cflow.base import MeanFreeGaussian
from cflow.errors import DomainError, ShapeError
from cflow.manifold import MeanFree


def test_the_density_is_that_of_coordinates_in_an_orthonormal_basis() -> None:
    base = MeanFreeGaussian((4, 3), scale=1.7)
    x = base.sample((5, 2), generator=torch.Generator().manual_seed(0))
    basis, dual = MeanFree().frame(x)
    assert torch.equal(basis, dual)
    coordinates = torch.einsum("...kpd,...pd->...k", basis, x)
    law = MultivariateNormal(torch.zeros(9), 1.7**2 * torch.eye(9))
    assert torch.allclose(base.log_prob(x), law.log_prob(coordinates), atol=1e-6)
    closed = -0.5 * x.square().sum((-2, -1)) / 1.7**2 - 4.5 * math.log(2 * math.pi * 1.7**2)
    assert torch.allclose(base.log_prob(x), closed, atol=1e-6)
    assert base.log_prob(x[0, 0]).shape == ()


def test_two_particles_on_a_line_have_mass_one_along_the_subspace() -> None:
    s = torch.linspace(-9, 9, 4001)  # length along the unit vector (1, -1) / sqrt(2)
    x = s[:, None, None] * torch.tensor([[1.0], [-1.0]]) / 2**0.5
    density = MeanFreeGaussian((2, 1), scale=0.8).log_prob(x).exp()
    assert abs(torch.trapezoid(density, s) - 1) < 1e-6


def test_samples_are_centred_with_the_covariance_of_the_projection() -> None:
    """Each of 64 entries lies within 5 standard errors: false alarm below 4e-5."""
    base = MeanFreeGaussian((4, 2), scale=0.5)
    n = 20_000
    x = base.sample((n,), generator=torch.Generator().manual_seed(1))
    assert x.mean(1).abs().max() < 1e-12
    flat = x.flatten(1)
    found = flat.T @ flat / n
    centring = torch.eye(4) - 0.25
    wanted = 0.25 * torch.kron(centring, torch.eye(2))
    variance = wanted.diagonal()[:, None] * wanted.diagonal() + wanted.square()
    assert ((found - wanted).abs() < 5 * (variance / n).sqrt()).all()
    again = base.sample((n,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


def test_rotations_and_permutations_leave_the_density() -> None:
    base = MeanFreeGaussian((5, 3))
    x = base.sample((7,))
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    assert torch.allclose(base.log_prob(x[:, torch.randperm(5)] @ turn.mT), base.log_prob(x))


def test_dtypes_follow_and_arithmetic_is_never_below_float32() -> None:
    base = MeanFreeGaussian((4, 2)).float()
    x = base.sample((3,))
    assert x.dtype == torch.float32
    assert base.log_prob(x).dtype == torch.float32
    assert base.log_prob(x.bfloat16()).dtype == torch.float32


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"x must lie on MeanFree\(\), but the mean .* 0\.5 away"):
        MeanFreeGaussian((4, 2)).log_prob(torch.full((3, 4, 2), 0.5))
    with pytest.raises(ShapeError, match="two particles or more"):
        MeanFreeGaussian((1, 3))
    with pytest.raises(ShapeError, match="2 axes"):
        MeanFree().dim((4,))
    with pytest.raises(ShapeError, match=r"x must end in shape \(4, 2\)"):
        MeanFreeGaussian((4, 2)).log_prob(torch.zeros(3, 8))
    with pytest.raises(DomainError, match="scale must be positive"):
        MeanFreeGaussian((4, 2), scale=0.0)
    with pytest.raises(DomainError, match="one axis at least"):
        MeanFree(0)


def test_large_clouds_in_float32_count_as_centred() -> None:
    x = MeanFree().projx(1e4 * torch.randn(50, 6, 3, dtype=torch.float32))
    assert MeanFree().check_point(x)[0]
    assert not MeanFree().check_point(x + 10.0)[0]
