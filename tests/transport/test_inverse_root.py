"""The search for an inverse: values, first gradients, brackets, and the error when it fails."""

import pytest
import torch
from torch import Tensor

from cflow.errors import SolverError
from cflow.transport.inverse_root import bracket, root


def cube(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """x^3 / 100 + x exp(theta): Newton overshoots far out."""
    rate = theta[..., 0].exp()
    return x**3 / 100 + rate * x, torch.log(3 * x**2 / 100 + rate)


def stair(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Steep and flat in turn, where Newton alone cycles."""
    return x + 0.999 * torch.sin(x), torch.log1p(0.999 * torch.cos(x))


@pytest.mark.parametrize("map", [cube, stair])
def test_roots_of_the_whole_line_are_found_without_a_bracket(map) -> None:
    theta = torch.randn(500, 1)
    x = torch.cat([torch.randn(250), 1e3 * torch.randn(250)])
    y, slope = map(x, theta)
    back, opposite = root("here", map, y, theta)
    assert torch.allclose(map(back, theta)[0], y, rtol=1e-13, atol=1e-13)
    steep = slope > -3
    assert torch.allclose(back[steep], x[steep], rtol=1e-11, atol=1e-11)
    assert torch.allclose(opposite[steep], -slope[steep], rtol=0, atol=1e-8)


def test_brackets_hold_the_root() -> None:
    y, theta = 1e4 * torch.randn(200), torch.randn(200, 1)
    low, high = bracket(cube, y, theta)
    assert bool((cube(low, theta)[0] <= y).all())
    assert bool((cube(high, theta)[0] >= y).all())


def test_gradients_are_those_of_the_implicit_function_theorem() -> None:
    y, theta = torch.randn(5).requires_grad_(), torch.randn(5, 1).requires_grad_()
    inverse = lambda y, theta: root("here", cube, y, theta, low=-50.0, high=50.0)
    assert torch.autograd.gradcheck(inverse, (y, theta))
    x = root("here", cube, y, theta, low=-50.0, high=50.0)[0]
    (slope,) = torch.autograd.grad(x.sum(), y)
    assert bool((slope > 0).all()), "no silent zero"


def test_a_root_that_is_not_reached_names_its_entry() -> None:
    y = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    lost = lambda x, theta: (torch.tanh(x), -2 * torch.log(torch.cosh(x)))
    with pytest.raises(SolverError, match=r"here: the inverse was not reached at entry \(0, 1\)"):
        root("here", lost, y, torch.zeros(2, 2, 0), low=-5.0, high=5.0)
    with pytest.raises(SolverError, match=r"entry \(1, 0\).*2 of 4"):
        root("here", cube, y, torch.zeros(2, 2, 1), low=-1.5, high=1.6)


def test_a_search_ends_early_and_ignores_batch_mates() -> None:
    calls = 0

    def counted(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return cube(x, theta)

    y, theta = torch.randn(64), torch.randn(64, 1)
    easy = root("here", counted, y, theta)[0]
    assert calls < 24, f"{calls} evaluations of a gentle map"
    hard = torch.cat([y, torch.tensor([1e9])]), torch.cat([theta, torch.tensor([[-30.0]])])
    assert torch.equal(root("here", cube, *hard)[0][:64], easy)


@pytest.mark.unchecked
def test_it_traces_as_one_graph() -> None:
    y, theta = torch.randn(5), torch.randn(5, 1)
    inverse = lambda y: root("here", cube, y, theta, low=-50.0, high=50.0, steps=12)[0]
    compiled = torch.compile(inverse, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(y), inverse(y), rtol=0, atol=1e-12)
    assert torch.allclose(
        torch.func.vmap(lambda a, b: root("here", cube, a, b)[0])(y, theta), inverse(y)
    )
