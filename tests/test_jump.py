"""A jump process on three states runs on the same time loop as every ODE, and keeps its exact law.

The law p(t) of a process with rates Q(t) obeys dp/dt = p Q(t), a linear ODE that our solver solves.
"""

import torch
from scipy.stats import chisquare
from torch import Tensor

from cflow.ode import Dopri5, march

STEPS, WALKERS = 50, 200_000
FALSE_ALARM = 1e-6  # probability that a correct sampler fails each test


def rates(t: Tensor) -> Tensor:
    """Return Q(t), `(*t, 3, 3)`: rows sum to zero, and nothing is symmetric."""
    slow, fast = 0.5 + t, 2.0 * (1.0 - t) + 0.2
    zero = torch.zeros_like(t)
    rows = [[-(slow + fast), slow, fast], [fast, -fast, zero], [2 * slow, slow, -3 * slow]]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def exact_law(start: Tensor, t1: float) -> Tensor:
    f = lambda t, p: torch.einsum("bi,bij->bj", p, rates(t))
    return Dopri5(1e-11, 1e-11).solve(f, start[None], 0.0, t1).y[0]


def simulate(start: Tensor, t1: float, generator: torch.Generator) -> Tensor:
    """March walkers with the transition matrix of each step (midpoint rates: second order)."""

    def step(t: float, t_next: float, x: Tensor) -> Tensor:
        h = t_next - t
        transition = torch.matrix_exp(h * rates(torch.tensor(t + h / 2)))
        return torch.multinomial(transition[x], 1, generator=generator)[:, 0]

    x0 = torch.multinomial(start, WALKERS, replacement=True, generator=generator)
    return march(step, x0, torch.linspace(0, t1, STEPS + 1).tolist())


def test_the_law_of_the_walkers_is_the_exact_law() -> None:
    start = torch.tensor([0.7, 0.2, 0.1])
    generator = torch.Generator().manual_seed(0)
    for t1 in (0.3, 1.0):
        law = exact_law(start, t1)
        assert torch.allclose(law.sum(), torch.tensor(1.0))
        counts = torch.bincount(simulate(start, t1, generator), minlength=3)
        assert chisquare(counts.numpy(), (WALKERS * law).numpy()).pvalue > FALSE_ALARM


def test_the_test_would_notice_a_late_stop() -> None:
    start = torch.tensor([0.7, 0.2, 0.1])
    late = simulate(start, 0.32, torch.Generator().manual_seed(0))
    counts = torch.bincount(late, minlength=3)
    law = exact_law(start, 0.3)
    assert chisquare(counts.numpy(), (WALKERS * law).numpy()).pvalue < FALSE_ALARM
