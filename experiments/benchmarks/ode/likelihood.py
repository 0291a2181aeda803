"""Exact log-likelihood of one and the same field: ours, and flow_matching's ODESolver."""

import math
from collections.abc import Callable
from typing import Any

import torch
from flow_matching.solver import ODESolver
from torch import Tensor

from cflow import Flow
from cflow.base import Gaussian
from cflow.field import Analytic, Divergence, Exact, Field
from cflow.ode import Dopri5, Midpoint, Solver, Tsit5
from cflow.transport import ODE
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.ode.problems import Perceptron, two_layer
from experiments.benchmarks.settings import Settings

TOLERANCE = 1e-5
STEPS = 8  # of the midpoint rule
WIDTH = 256


@torch.no_grad()
def likelihood(settings: Settings) -> list[Row]:
    """Evaluate log p at equal fixed steps, where values must agree, and at equal tolerance."""
    rows = []
    for features in settings.size((8, 64), (3,)):
        general = Perceptron(features, gain=1.5)
        special = two_layer(features, width=WIDTH)
        for batch in settings.size((100, 500), (5,)):
            x = torch.randn(batch, features)
            rounds = settings.rounds(0.2 if features * batch > 8000 else 0.5)
            rows += _compare("3 x 256", general, Exact(), x, rounds, wanted=1.3)
            closed = 15.0 if features >= 64 else None
            rows += _compare("TwoLayerField", special, Analytic(), x, rounds, wanted=closed)
    return rows


def _compare(
    name: str,
    field: Field,
    divergence: Divergence,
    x: Tensor,
    rounds: int,
    *,
    wanted: float | None,
) -> list[Row]:
    features = x.shape[1]
    what = f"log p, {name}, D={features}, batch {len(x)}"
    theirs = ODESolver(lambda x, t: field(t.expand(len(x)), x))

    def ours(solver: Solver) -> Callable[[], Tensor]:
        flow = Flow(Gaussian(features), ODE(field, solver, divergence=divergence))
        return lambda: flow.log_prob(x)

    def peer(**options: Any) -> Callable[[], Tensor]:
        # It turns on the gradient of the points that it is given, so it gets its own.
        return lambda: theirs.compute_likelihood(
            x.clone(), log_normal, exact_divergence=True, **options
        )[1].detach()

    contests = {
        f"midpoint, {STEPS} steps": {
            "ours": ours(Midpoint(STEPS)),
            "flow_matching": peer(method="midpoint", step_size=1 / STEPS),
        },
        f"at {TOLERANCE:g}": {
            "ours": ours(Dopri5(TOLERANCE, TOLERANCE)),
            "ours, Tsit5": ours(Tsit5(TOLERANCE, TOLERANCE)),
            "flow_matching": peer(method="dopri5", step_size=None, atol=TOLERANCE, rtol=TOLERANCE),
        },
    }
    rows = []
    for how, contestants in contests.items():
        values = {key: run() for key, run in contestants.items()}
        apart = max((v - values["ours"]).abs().max().item() for v in values.values())
        assert apart < 1e-3 * (1 + values["ours"].abs().max().item()), (what, how, apart)
        seconds = interleave(contestants, rounds, warm_up=0)
        row = contest(
            f"{what}, {how}",
            seconds,
            "ours",
            against="flow_matching",
            wanted=wanted,
            faster=True,
            detail=(f"{what}, {how}: values differ by at most {apart:.1e} nats",),
        )
        rows.append(row)
    return rows


def log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
