"""Bounds of norms are bounds: above the true norm, and close to it, for any weights."""

import math

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.nets import SpectralConv2d, SpectralLinear, induced_bound, spectral_bound

SHAPES = [(1, 1), (3, 3), (2, 7), (40, 5), (64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tolerance", [0.2, 0.01, 1e-4])
def test_the_bound_lies_above_the_norm_by_no_more_than_the_tolerance(
    shape: tuple[int, int], tolerance: float
) -> None:
    worst = torch.eye(*shape)  # all singular values equal: the bound is at its loosest
    for matrix in (worst, torch.randn(shape), torch.randn(shape[0], 1) @ torch.randn(1, shape[1])):
        norm = torch.linalg.matrix_norm(matrix, 2)
        bound = spectral_bound(matrix, tolerance=tolerance)
        assert norm * (1 - 1e-12) <= bound <= norm * (1 + tolerance) * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e15])
def test_the_bound_survives_weights_of_any_size_in_float32(scale: float) -> None:
    matrix = torch.randn(16, 16).float()
    norm = float(torch.linalg.matrix_norm(matrix.double(), 2))
    bound = float(spectral_bound(matrix * scale)) / scale
    if scale > 1e-18:  # below, squares vanish, and with them the bound: nothing needs shrinking
        assert norm * (1 - 1e-5) <= bound <= norm * 1.0101
    assert math.isfinite(bound)


def test_a_weight_of_zeros_has_gradients() -> None:
    layer = SpectralLinear(4, 4, coefficient=0.5)
    with torch.no_grad():
        layer.weight.zero_()
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert bool(torch.isfinite(layer.weight.grad).all())
    assert layer.certificate() == 0


def test_the_gradient_of_the_bound_is_right() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: spectral_bound(w, tolerance=0.05), (weight,))
    third = torch.tensor(0.7, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, s: induced_bound(w, s), (weight, third))


@pytest.mark.parametrize("order", [1.0, 1.3, 2.0, 5.0, math.inf])
def test_the_induced_bound_is_above_what_any_vector_is_stretched_by(order: float) -> None:
    matrix = torch.randn(5, 7)
    bound = induced_bound(matrix, 1 / order)
    x = torch.randn(20_000, 7) * torch.randn(20_000, 7).abs() ** 3  # near the axes, too
    x = torch.cat([x, x.sign(), torch.eye(7), torch.linalg.svd(matrix).Vh])
    stretch = (x @ matrix.T).norm(order, dim=-1) / x.norm(order, dim=-1)
    assert stretch.max() <= bound * (1 + 1e-12)
    if order in (1.0, math.inf):
        exact = matrix.abs().sum(0 if order == 1.0 else 1).amax()
        assert torch.allclose(bound, exact)
    assert stretch.max() > 0.5 * bound, "the bound says little"


def dense_matrix(layer: SpectralConv2d, channels: int, side: int) -> Tensor:
    units = torch.eye(channels * side * side).reshape(-1, channels, side, side)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros_like(units))).flatten(1).T


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels", [(2, 6), (6, 2), (3, 3)], ids=str)
def test_a_convolution_keeps_its_bound_on_images_of_any_size(
    kernel: int, channels: tuple[int, int]
) -> None:
    layer = SpectralConv2d(*channels, kernel=kernel, coefficient=0.7)
    for weight in (torch.randn_like(layer.weight), torch.ones_like(layer.weight)):
        with torch.no_grad():
            layer.weight.copy_(weight)
        norms = [
            float(torch.linalg.matrix_norm(dense_matrix(layer, channels[0], side), 2))
            for side in (1, 4, 12)
        ]
        assert max(norms) <= layer.certificate() * (1 + 1e-12)
        assert layer.certificate() <= 0.7 * (1 + 1e-12)
        assert layer.certificate() > 0.7 / 1.06
    assert norms[-1] > 0.6  # of the kernel of ones, whose low frequency fits the image


def test_the_bound_holds_with_weights_of_low_precision() -> None:
    layer = SpectralLinear(64, 64, coefficient=0.9).bfloat16()
    with torch.no_grad():
        layer.weight.mul_(50)
    assert layer.bounded_weight().dtype == torch.float32
    assert layer.certificate() <= 0.9 * (1 + 1e-5)
    assert layer(torch.zeros(2, 64, dtype=torch.bfloat16)).dtype == torch.float32


def test_small_weights_stay_as_they_are() -> None:
    layer = SpectralLinear(3, 3, coefficient=0.9)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.eye(3))
    assert torch.equal(layer.bounded_weight(), layer.weight)


def test_bad_settings_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="kernel must be odd and positive, got 2"):
        SpectralConv2d(1, 1, kernel=2, coefficient=0.9)
    with pytest.raises(DomainError, match="SpectralLinear: sizes must be positive, got 0 and 3"):
        SpectralLinear(0, 3, coefficient=0.9)
    with pytest.raises(DomainError, match="coefficient must be positive"):
        SpectralLinear(3, 3, coefficient=0.0)
    with pytest.raises(ShapeError, match=r"images must end in \(channels=2, height, width\)"):
        SpectralConv2d(2, 1, kernel=3, coefficient=0.9)(torch.zeros(4, 3, 4, 4))
