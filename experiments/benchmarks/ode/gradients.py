"""Gradients through a solve: how exact those of the reversible scheme are, and what each keeps.

The scheme carries a pair (y, z) that start equal, with the step psi_h of any solver (McCallum and
Foster 2024, arXiv 2410.11648, equation 4):

    y' = lam y + (1 - lam) z + psi_h(t, z),    z' = z - psi_{-h}(t + h, y')
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import SolverError
from cflow.field import Hutchinson
from cflow.ode import Adjoint, Backsolve, Checkpoint, Direct, Dopri5, Midpoint, Reversible, Solver
from cflow.state import State
from cflow.testing import peak_bytes
from cflow.transport import ODE
from experiments.benchmarks.measure import Row
from experiments.benchmarks.ode.problems import Mated, Perceptron, marked
from experiments.benchmarks.settings import Settings

FEATURES, LAM = 4, 0.999


def gradients(settings: Settings) -> list[Row]:
    """Train a field by maximum likelihood in float64: gradients, their memory, their alarm."""
    field = Perceptron(FEATURES, width=settings.size(64, 8), gain=2.0).double()
    x = torch.randn(settings.size(16, 3), FEATURES, dtype=torch.float64)
    return [*_exactness(settings, field, x), *_memory(settings, field, x), _alarm()]


def _loss(
    field: Perceptron, x: Tensor, solver: Solver, adjoint: Adjoint | None = None
) -> Callable[[], Tensor]:
    """Return a function that gives the negative log-likelihood, always with the same probes."""
    ode = ODE(field, solver, divergence=Hutchinson(), adjoint=adjoint)
    flow = Flow(Gaussian(FEATURES).double(), ode)
    return lambda: -flow.log_prob(x, generator=Generator().manual_seed(1)).mean()


def _gradient(field: Perceptron, loss: Callable[[], Tensor]) -> Tensor:
    found = torch.autograd.grad(loss(), list(field.parameters()))
    return torch.cat([g.flatten() for g in found])


def _exactness(settings: Settings, field: Perceptron, x: Tensor) -> list[Row]:
    """Hold rebuilt gradients against backpropagation through the same steps."""
    steps = settings.size(1000, 10)
    solver = Reversible(Midpoint(steps))
    rebuilt = _gradient(field, _loss(field, x, solver))
    written_out = _apart(rebuilt, _gradient(field, lambda: plain_loss(field, x, steps)))
    kept = _apart(rebuilt, _kept(field, x, solver))
    rows = [
        Row(
            f"gradient of Reversible(Midpoint({steps})) against the scheme written out, relative",
            written_out,
            {'backward="direct"': kept},
            judged=max(written_out, kept),
            wanted=("<=", 1e-9),
        )
    ]
    true = _gradient(field, _loss(field, x, Dopri5(1e-12, 1e-12)))
    for tolerance in (1e-5, 1e-8):
        solver = Reversible(Dopri5(tolerance, tolerance))
        rebuilt = _gradient(field, _loss(field, x, solver))
        apart = _apart(rebuilt, _kept(field, x, solver))
        direct = _gradient(field, _loss(field, x, Dopri5(tolerance, tolerance)))
        rows.append(
            Row(
                f"gradient of Reversible(Dopri5({tolerance:g})) against its steps, relative",
                apart,
                {
                    "against the true gradient": _apart(rebuilt, true),
                    "Dopri5 with Direct against it": _apart(direct, true),
                },
                judged=apart,
                wanted=("<=", 1e-9),
            )
        )
    return rows


def _kept(field: Perceptron, x: Tensor, solver: Reversible) -> Tensor:
    """Return the gradient through the same steps while autograd keeps them."""
    return _gradient(field, _loss(field, x, replace(solver, backward="direct")))


def plain_loss(field: Perceptron, x: Tensor, steps: int) -> Tensor:
    """Write the reversible midpoint scheme out, from t = 1 to 0, for autograd to differentiate."""
    noise = Hutchinson().draw(x, 1, Generator().manual_seed(1))

    def f(t: float, y: Tensor) -> Tensor:
        times = y.new_full((len(y),), t)
        rates = Hutchinson()(field, times, y[:, :-1], None, noise)
        return torch.cat([rates.v, rates.div[:, None]], dim=1)

    def psi(h: float, t: float, y: Tensor) -> Tensor:
        return h * f(t + h / 2, y + h / 2 * f(t, y))

    h = -1 / steps
    y = z = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    for k in range(steps):
        t = 1 + k * h
        y = LAM * y + (1 - LAM) * z + psi(h, t, z)
        z = z - psi(-h, t + h, y)
    return -(Gaussian(FEATURES).double().log_prob(y[:, :-1]) + y[:, -1]).mean()


def _memory(settings: Settings, field: Perceptron, x: Tensor) -> list[Row]:
    """Measure the peak of live memory of loss and gradient at few and at many steps."""
    few, many = settings.size((10, 1000), (2, 6))
    ways: dict[str, tuple[Callable[[int], Solver], Adjoint]] = {
        "Reversible": (lambda n: Reversible(Midpoint(n)), Direct()),
        "Backsolve": (Midpoint, Backsolve()),
        "Checkpoint": (Midpoint, Checkpoint()),
        "Direct": (Midpoint, Direct()),
    }
    rows = []
    for name, (solver, adjoint) in ways.items():
        what = f"peak memory of a gradient, {name}: {many} steps over {few}"
        low, high = (
            peak_bytes(partial(_gradient, field, _loss(field, x, solver(n), adjoint)))
            for n in (few, many)
        )
        rows.append(
            Row(
                what,
                high / 2**20,
                {f"{few} steps": low / 2**20},
                "MiB",
                high / low,
                wanted=("<=", 1.1) if name == "Reversible" else None,
            )
        )
    return rows


def _alarm() -> Row:
    """Retrace a stiff field, where rounding grows on the way back: it must be noticed."""
    field = Mated(Perceptron(2, width=8), rate=50.0).double()
    x, mask = torch.randn(4, 2, dtype=torch.float64), marked(4, last=True)
    plain = Midpoint(500)
    end, true = (
        ODE(field, solver).push(State(x), mask).x[-1] for solver in (Reversible(plain), plain)
    )
    said = "nothing"
    try:
        torch.autograd.grad(end.square().mean(), list(field.parameters()))
    except SolverError as error:
        said = f"SolverError: {error}"
    off = (end - true).abs().max().item()
    detail = (f"{said} (its end is off by {off:.1e}, a plain midpoint's is not)",)
    heard = float(said != "nothing")
    what = "a field too stiff to retrace (rate 50, 500 steps) is reported"
    return Row(what, said[:11], {}, "", heard, None, (">=", 1.0), detail)


def _apart(found: Tensor, true: Tensor) -> float:
    return ((found - true).norm() / true.norm()).item()
