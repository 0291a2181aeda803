"""The checkerboard of tokens: its cells, its entropy, and draws that are even over them."""

import math

import pytest
import torch

from cflow.data.tokens import discrete_checkerboard, discrete_checkerboard_log_prob
from cflow.errors import DomainError, ShapeError


@pytest.mark.parametrize("size", [4, 8, 128])
def test_half_of_the_grid_has_all_of_the_mass(size: int) -> None:
    side = torch.arange(size)
    log_p = discrete_checkerboard_log_prob(torch.cartesian_prod(side, side), size=size)
    on = torch.isfinite(log_p)
    assert int(on.sum()) == size**2 // 2
    assert log_p.exp().sum().item() == pytest.approx(1.0)
    entropy = -log_p[on].mean().item()
    assert entropy == pytest.approx(math.log(size**2 / 2))
    if size == 128:
        assert int(on.sum()) == 8192
        assert (entropy, entropy / 2) == pytest.approx((9.011, 4.505), abs=6e-4)


def test_squares_alternate_as_on_the_board() -> None:
    dark = torch.isfinite(
        discrete_checkerboard_log_prob(torch.cartesian_prod(*[torch.arange(8)] * 2), size=8)
    )
    square = dark.view(4, 2, 4, 2)
    assert (square == square[:, :1, :, :1]).all()
    assert square[:, 0, :, 0].tolist() == [[True, False] * 2, [False, True] * 2] * 2


def test_draws_are_even_over_the_dark_cells() -> None:
    """Chi-squared over 8192 cells, false alarm 1e-6 on either side by the normal approximation."""
    n = 400_000
    x = discrete_checkerboard(n, generator=torch.Generator().manual_seed(0))
    assert x.shape == (n, 2)
    assert x.dtype == torch.int64
    assert torch.isfinite(discrete_checkerboard_log_prob(x)).all()
    count = torch.bincount(x[:, 0] * 128 + x[:, 1], minlength=128**2).double()
    side = torch.arange(128)
    p = discrete_checkerboard_log_prob(torch.cartesian_prod(side, side)).exp().double()
    on = p > 0
    chi = ((count - n * p)[on] ** 2 / (n * p[on])).sum().item()
    freedom = int(on.sum()) - 1
    assert abs(chi - freedom) < 4.9 * math.sqrt(2 * freedom)


def test_a_seed_decides_the_draws() -> None:
    draw = lambda seed: discrete_checkerboard(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert discrete_checkerboard(0).shape == (0, 2)
    assert int(discrete_checkerboard(200, size=4).max()) == 3


def test_batches_and_small_integers() -> None:
    x = discrete_checkerboard(6)
    value = discrete_checkerboard_log_prob(x.view(2, 3, 2))
    assert value.shape == (2, 3)
    assert value.dtype == torch.get_default_dtype()
    small = torch.tensor([[0, 127], [100, 127], [-1, -1]], dtype=torch.int8)
    on = torch.isfinite(discrete_checkerboard_log_prob(small, size=1024))
    assert on.tolist() == [True, True, False]
    on = torch.isfinite(discrete_checkerboard_log_prob(small, size=256))
    assert on.tolist() == [False, True, False]
    off = torch.tensor([[-1, -1], [128, 128], [160, 0], [0, 32]])
    assert (discrete_checkerboard_log_prob(off) == -torch.inf).all()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DomainError, match="multiple of 4, got 126"):
        discrete_checkerboard(3, size=126)
    with pytest.raises(DomainError, match="multiple of 4, got 0"):
        discrete_checkerboard_log_prob(torch.zeros(3, 2).long(), size=0)
    with pytest.raises(DomainError, match=r"must be integers, got torch\.float64"):
        discrete_checkerboard_log_prob(torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"must end in shape \(2,\), got \(3,\)"):
        discrete_checkerboard_log_prob(torch.zeros(3).long())
