"""Does a sample's result depend on its batch mates? Alone, in a crowd, by a stiff one, a NaN."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cflow.field import Field
from cflow.ode import Dopri5, Status, Tsit5
from cflow.state import State, tracked
from cflow.transport import ODE
from experiments.benchmarks.measure import Row
from experiments.benchmarks.ode.peers import Torchode, torchdiffeq_dopri5
from experiments.benchmarks.ode.problems import (
    RATE,
    Breaking,
    Mated,
    Perceptron,
    Rowwise,
    broadcasting,
    marked,
)
from experiments.benchmarks.settings import Settings

TOLERANCE = 1e-5
Solver = Dopri5 | Tsit5


@torch.no_grad()
def independence(settings: Settings) -> list[Row]:
    """Solve the same samples in different company, points and (points, log-determinant)."""
    batch, singles = settings.size((1000, 200), (10, 4))
    rate = settings.size(RATE, 50.0)
    rows = []
    for solver in (Dopri5(TOLERANCE, TOLERANCE), Tsit5(TOLERANCE, TOLERANCE)):
        for density in (False, True):
            x = torch.randn(batch, 5)
            rows.append(_bits(_Case(Rowwise(), solver, density, rate), x, singles))
            x, field = torch.randn(batch, 2), Perceptron(2, gain=1.5)
            rows += _close(_Case(field.double(), solver, density, rate), x.double(), singles)
            rows += _close(_Case(field.float(), solver, density, rate), x, singles)
    return [*rows, *_broken(batch)]


@dataclass(frozen=True)
class _Case:
    """A field, a solver, and whether the log-determinant travels along with the points."""

    field: Field
    solver: Solver
    density: bool
    rate: float  # of the stiff mate

    def solve(self, x: Tensor, mask: Tensor) -> State:
        start = tracked(x) if self.density else State(x)
        return ODE(Mated(self.field, rate=self.rate), self.solver).push(start, mask)

    def name(self, x: Tensor) -> str:
        what = "(x, ladj)" if self.density else "x"
        dtype = str(x.dtype).removeprefix("torch.")
        return f"{type(self.solver).__name__}, {type(self.field).__name__}, {dtype}, {what}"

    def companies(self, x: Tensor, singles: int) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Return pairs of results that should be equal, by the company that differs."""
        batch = self.solve(x, marked(len(x), last=False))
        alone = [self.solve(x[k : k + 1], marked(1, last=False)) for k in range(singles)]
        beside = self.solve(torch.cat([x, x[:1]]), marked(len(x) + 1, last=True))
        lonely = [torch.cat(leaves) for leaves in zip(*map(_leaves, alone), strict=True)]
        return {
            "alone": ([leaf[:singles] for leaf in _leaves(batch)], lonely),
            "beside a stiff mate": (_leaves(batch), [leaf[: len(x)] for leaf in _leaves(beside)]),
        }


def _bits(case: _Case, x: Tensor, singles: int) -> Row:
    """Ask for bitwise equality where the field itself works row by row."""
    pairs = case.companies(x, singles)
    equal = {name: all(map(torch.equal, a, b)) for name, (a, b) in pairs.items()}
    return Row(
        f"bitwise equal in all companies: {case.name(x)}",
        float(all(equal.values())),
        {name: float(same) for name, same in equal.items()},
        "",
        float(all(equal.values())),
        None,
        (">=", 1.0),
    )


def _close(case: _Case, x: Tensor, singles: int) -> list[Row]:
    """Ask a matrix product, whose rounding knows the batch, for equal steps and close values."""
    double, shares, changes = x.dtype == torch.float64, {}, {}
    for name, (a, b) in case.companies(x, singles).items():
        shares[name] = (a[-1] == b[-1]).double().mean().item()
        changes[name] = max((p - q).abs().max().item() for p, q in zip(a[:-1], b[:-1], strict=True))
    share, change = min(shares.values()), max(changes.values())
    at_least, at_most = (1.0, 1e-10) if double else (0.9, TOLERANCE)
    return [
        Row(
            f"share with equal step counts: {case.name(x)}",
            share,
            shares,
            judged=share,
            wanted=(">=", at_least),
        ),
        Row(
            f"largest change: {case.name(x)}",
            change,
            changes,
            judged=change,
            wanted=("<=", at_most),
        ),
    ]


def _broken(batch: int) -> list[Row]:
    """Put a row that turns to NaN beside healthy ones, and see what becomes of these."""
    x, bad = torch.randn(batch, 5), marked(batch, last=True)
    field = Breaking(Rowwise())
    solver = replace(Dopri5(TOLERANCE, TOLERANCE), throw=False)
    found = solver.solve(field, x, 0.0, 1.0, args=(bad,))
    healthy = solver.solve(field, x[:-1], 0.0, 1.0, args=(bad[:-1],))
    same = bool((found.y[:-1] == healthy.y).all() and (found.nfe[:-1] == healthy.nfe).all())
    named = [Status(int(s)) for s in found.status]
    own = named[-1] == Status.NON_FINITE and set(named[:-1]) == {Status.DONE}
    truth = healthy.y
    torchode = Torchode(lambda t, y: field(t, y, bad), TOLERANCE)(x, 1.0)
    statuses = sorted(set(torchode.status[:-1].tolist()))
    error = (torchode.ys[:-1, 0] - truth).abs().max().item()
    theirs = _report(lambda: torchdiffeq_dopri5(broadcasting(field, bad), x, 1.0, TOLERANCE), truth)
    peers = {
        "torchode": f"healthy rows: status {statuses} (0 is success), off by {error:.2g}",
        "torchdiffeq": theirs,
    }
    verdict = f"{named[-1].name} for the row, mates {'bit-identical' if same else 'changed'}"
    return [Row("a row turns to NaN", verdict, peers, "", float(same and own), wanted=(">=", 1.0))]


def _report(solve: Callable[[], Tensor], truth: Tensor) -> str:
    """Say what a solve with a NaN among its rows gives to the healthy rows."""
    try:
        y = solve()[:-1]
    except (AssertionError, RuntimeError, ValueError) as error:
        return f"raises {type(error).__name__}: {str(error)[:60]}"
    lost = (~torch.isfinite(y)).any(1).sum().item()
    return f"{lost} of {len(y)} healthy rows lost, off by {(y - truth).abs().max().item():.2g}"


def _leaves(state: State) -> list[Tensor]:
    """Return the points, the log-determinants if there are any, and, last, the evaluations."""
    return [leaf for leaf in (state.x, state.ladj, state.nfe) if isinstance(leaf, Tensor)]
