"""What the solver itself costs: beside a bare loop, with a network and with next to nothing."""

import torch
from flow_matching.solver import ODESolver
from torch import Tensor

from cflow.ode import RK4, Dopri5, Euler
from cflow.state import State
from cflow.transport import ODE
from experiments.benchmarks.measure import Row, contest, counted, interleave
from experiments.benchmarks.ode.peers import Torchode, torchdiffeq_dopri5, torchdiffeq_steps
from experiments.benchmarks.ode.problems import Perceptron
from experiments.benchmarks.settings import Settings


@torch.no_grad()
def network(settings: Settings) -> list[Row]:
    """Take 100 Euler steps of a 3 x 256 perceptron on 1000 points in the plane."""
    steps, batch = settings.size((100, 1000), (10, 50))
    field, x = Perceptron(2), torch.randn(batch, 2)
    times = [torch.full((batch,), k / steps) for k in range(steps)]

    def bare() -> Tensor:
        y, h = x, 1 / steps
        for t in times:
            y = y + h * field(t, y)
        return y

    theirs = ODESolver(lambda x, t: field(t.expand(len(x)), x))
    transport = ODE(field, Euler(steps))
    contestants = {
        "Euler.solve": lambda: Euler(steps).solve(field, x, 0.0, 1.0).y,
        "ODE.push": lambda: transport.push(State(x)).x,
        "bare loop": bare,
        "flow_matching": lambda: theirs.sample(x_init=x, step_size=1 / steps, method="euler"),
    }
    for name, run in contestants.items():
        assert torch.allclose(run(), bare(), atol=1e-5), name
    seconds = interleave(contestants, settings.rounds(2))
    what = f"{steps} Euler steps, 3 x 256, batch {batch}"
    return [
        contest(f"{what}: {ours}", seconds, ours, against="bare loop", wanted=1.03)
        for ours in ("Euler.solve", "ODE.push")
    ]


@torch.no_grad()
def single(settings: Settings) -> list[Row]:
    """Take steps of y' = -y at batch 1, where every microsecond is the solver's own."""
    return [*_fixed(settings), _adaptive(settings)]


def _fixed(settings: Settings) -> list[Row]:
    steps, y0 = settings.size(200, 10), torch.randn(1, 2)
    h = 1 / steps

    def f(t: Tensor | float, y: Tensor) -> Tensor:
        return -y

    def bare_euler() -> Tensor:
        y = y0
        for k in range(steps):
            y = y + h * f(k * h, y)
        return y

    def bare_rk4() -> Tensor:
        y = y0
        for k in range(steps):
            t = k * h
            k1 = f(t, y)
            k2 = f(t + h / 2, y + h / 2 * k1)
            k3 = f(t + h / 2, y + h / 2 * k2)
            k4 = f(t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    rows = []
    for solver, bare in ((Euler(steps), bare_euler), (RK4(steps), bare_rk4)):
        contestants = {
            "ours": lambda solver=solver: solver.solve(f, y0, 0.0, 1.0).y,
            "bare loop": bare,
        }
        assert torch.allclose(contestants["ours"](), bare(), atol=1e-5)
        seconds = interleave(contestants, settings.rounds(3))
        per = dict.fromkeys(seconds, float(steps))
        what = f"y' = -y, batch 1, {type(solver).__name__}, a step"
        rows.append(contest(what, seconds, "ours", against="bare loop", wanted=1.3, per=per))
    return rows


def _adaptive(settings: Settings) -> Row:
    """Time a step of Dormand-Prince with its control; the bare loop's steps are our own."""
    end, tolerance = settings.size(20.0, 1.0), 1e-9
    y0 = torch.randn(1, 2, dtype=torch.float64)

    def f(t: Tensor | float, y: Tensor) -> Tensor:
        return -y

    counting, count = counted(f)
    ours = Dopri5(rtol=tolerance, atol=tolerance)
    solution = ours.solve(f, y0, 0.0, end)
    exact = y0 * torch.exp(torch.tensor(-end, dtype=torch.float64))
    steps = {"ours": int(solution.accepted + solution.rejected)}
    bare, steps["bare loop"] = bare_dopri5(f, y0, end, tolerance)
    torchdiffeq_dopri5(counting, y0, end, tolerance)
    steps["torchdiffeq"] = torchdiffeq_steps(count.calls)
    controlled = Torchode(f, tolerance)
    fixed = Torchode(f, tolerance, step=end / steps["ours"])
    steps["torchode"] = int(controlled(y0, end).stats["n_steps"])
    steps["torchode, fixed steps"] = int(fixed(y0, end).stats["n_steps"])
    assert max((solution.y - exact).abs().max(), (bare - exact).abs().max()) < 1e-6
    contestants = {
        "ours": lambda: ours.solve(f, y0, 0.0, end),
        "bare loop": lambda: bare_dopri5(f, y0, end, tolerance),
        "torchode": lambda: controlled(y0, end),
        "torchode, fixed steps": lambda: fixed(y0, end),
        "torchdiffeq": lambda: torchdiffeq_dopri5(f, y0, end, tolerance),
    }
    seconds = interleave(contestants, settings.rounds(2))
    per = {name: float(n) for name, n in steps.items()}
    detail = ("steps: " + ", ".join(f"{name} {n}" for name, n in steps.items()),)
    what = "y' = -y, batch 1, float64, Dopri5, a step"
    return contest(what, seconds, "ours", against="bare loop", wanted=2.0, per=per, detail=detail)


def bare_dopri5(f, y: Tensor, end: float, tolerance: float) -> tuple[Tensor, int]:
    """Solve by Dormand and Prince's pair as one would write it for one sample and no library."""
    t, h, steps = 0.0, 1e-2, 0
    k1 = f(t, y)
    while t < end:
        h = min(h, end - t)
        k2 = f(t + h / 5, y + h * (k1 / 5))
        k3 = f(t + 0.3 * h, y + h * (3 / 40 * k1 + 9 / 40 * k2))
        k4 = f(t + 0.8 * h, y + h * (44 / 45 * k1 - 56 / 15 * k2 + 32 / 9 * k3))
        k5 = f(
            t + 8 / 9 * h,
            y + h * (19372 / 6561 * k1 - 25360 / 2187 * k2 + 64448 / 6561 * k3 - 212 / 729 * k4),
        )
        k6 = f(
            t + h,
            y
            + h
            * (
                9017 / 3168 * k1
                - 355 / 33 * k2
                + 46732 / 5247 * k3
                + 49 / 176 * k4
                - 5103 / 18656 * k5
            ),
        )
        new = y + h * (
            35 / 384 * k1 + 500 / 1113 * k3 + 125 / 192 * k4 - 2187 / 6784 * k5 + 11 / 84 * k6
        )
        k7 = f(t + h, new)
        error = h * (
            71 / 57600 * k1
            - 71 / 16695 * k3
            + 71 / 1920 * k4
            - 17253 / 339200 * k5
            + 22 / 525 * k6
            - 1 / 40 * k7
        )
        scale = tolerance + tolerance * torch.maximum(y.abs(), new.abs())
        size = (error / scale).square().mean().sqrt().item()
        if size <= 1:
            t, y, k1 = t + h, new, k7
        h *= min(10.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.2))
        steps += 1
    return y, steps
