"""Triangular inverses by halves, against torch's solver."""

import pytest
import torch

from cflow.transport.triangular import inverse_of_lower, inverse_of_upper


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 21])
def test_inverse_is_that_of_a_solve_and_the_other_triangle_is_not_read(n: int) -> None:
    full = 0.4 * torch.randn(2, n, n) + 2 * torch.eye(n)
    eye = torch.eye(n).expand(2, n, n)
    expected = torch.linalg.solve_triangular(full.tril(), eye, upper=False)
    assert torch.allclose(inverse_of_lower(full), expected, rtol=0, atol=1e-12)
    assert torch.allclose(inverse_of_lower(full[0]), expected[0], rtol=0, atol=1e-12)
    expected = torch.linalg.solve_triangular(full.triu(), eye, upper=True)
    assert torch.allclose(inverse_of_upper(full), expected, rtol=0, atol=1e-12)


def test_float32_is_as_exact_as_the_solver() -> None:
    n = 48
    lower = 0.3 * torch.randn(n, n).tril(-1) + torch.randn(n).mul(0.3).exp().diag()
    lower = lower.float()
    exact = torch.linalg.inv(lower.double())
    scale = exact.abs().max()
    eye = torch.eye(n, dtype=torch.float32)
    solved = torch.linalg.solve_triangular(lower, eye, upper=False)
    theirs = (solved.double() - exact).abs().max() / scale
    ours = (inverse_of_lower(lower).double() - exact).abs().max() / scale
    assert ours < 5 * theirs + 1e-6


def test_gradients() -> None:
    lower = (0.5 * torch.randn(3, 3) + 2 * torch.eye(3)).requires_grad_()
    assert torch.autograd.gradcheck(inverse_of_lower, (lower,))
