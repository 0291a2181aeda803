"""Memory: what a gradient keeps must not grow with the number of steps where that is promised."""

import pytest
import torch
from torch import nn

from cflow.ode import RK4, Adjoint, Backsolve, Checkpoint, Direct, Dopri5, Reversible, Solver
from cflow.testing import peak_bytes

pytestmark = pytest.mark.unchecked  # the check of types holds references


def gradient(solver: Solver, adjoint: Adjoint) -> int:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 3))
    y0 = torch.randn(50, 3, requires_grad=True)

    def run() -> None:
        y = adjoint.solve(
            solver, lambda t, y: net(y), y0, 0.0, 1.0, parameters=tuple(net.parameters())
        ).y
        y.square().sum().backward()

    return peak_bytes(run)


FLAT = [
    (lambda n: Reversible(RK4(n)), Direct()),
    (lambda n: RK4(n), Backsolve()),
]


@pytest.mark.parametrize(("solver", "adjoint"), FLAT, ids=["reversible", "backsolve"])
def test_memory_does_not_grow_with_the_steps(solver, adjoint: Adjoint) -> None:
    few, many = gradient(solver(10), adjoint), gradient(solver(300), adjoint)
    record = 300 * 4 * 2 * 8  # times of the steps, kept as numbers
    assert many <= 1.03 * few + record


def test_adaptive_reversible_memory_does_not_grow_with_the_steps() -> None:
    make = lambda h: Reversible(Dopri5(1e3, 1e3, initial_step=h, max_steps=10_000))
    sparse = gradient(make(0.5), Direct())
    dense = gradient(Reversible(Dopri5(1e-10, 1e-10, max_steps=10_000)), Direct())
    assert dense <= 1.1 * sparse + 200 * 50 * 3 * 8


def test_checkpoint_memory_grows_with_the_square_root() -> None:
    peaks = [gradient(RK4(n), Checkpoint()) for n in (16, 256)]
    assert peaks[1] < 6 * peaks[0]  # the root of 16, and what does not grow
    plain = [gradient(RK4(n), Direct()) for n in (16, 256)]
    assert plain[1] > 10 * plain[0]
