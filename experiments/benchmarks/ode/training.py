"""One FFJORD training step beside zuko's, at equal accuracy of the gradient.

Both see the same velocity, the same points and the same probe. Each is run over a range of
tolerances; the error of its parameter gradient is measured against one in float64 at 1e-10, and its
time is read off, log-log, at the error that zuko has at 1e-5. 8-D, float32.
"""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from zuko.distributions import DiagNormal
from zuko.flows.continuous import FFJTransform
from zuko.transforms import FreeFormJacobianTransform

from cflow import Flow
from cflow.base import Gaussian
from cflow.field import Analytic, Divergence, Exact, Field, Hutchinson, Rates
from cflow.field.divergence import Velocity
from cflow.ode import Adjoint, Checkpoint, Direct, Dopri5, Reversible, Solver, Tsit5
from cflow.transport import ODE
from cflow.typing import Frame
from experiments.benchmarks.measure import Row, interleave, ratio
from experiments.benchmarks.ode.problems import scale_weights, two_layer
from experiments.benchmarks.settings import Settings

FEATURES, WIDTH = 8, 256
LEVEL = 1e-5  # zuko's tolerance, whose gradient error all are held to
GAINS = {"fresh field": 1.0, "trained-like field": 2.5}  # factors on the initial weights
SEED = 1  # of the probe
SCAN = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # tolerances

Step = Callable[[], Tensor]  # loss and gradient; returns the gradient


class ZukoField(Field):
    """View zuko's network as a field of ours; zuko's time runs from the data to the base."""

    def __init__(self, transform: FFJTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.transform.f(1 - t, x)


@dataclass(frozen=True)
class GivenProbe(Divergence):
    """Estimate the divergence with a probe that was drawn before, `(batch, 1, features)`."""

    probe: Tensor
    likelihood: ClassVar[Literal["exact", "estimate"]] = "estimate"

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        return self.probe.to(x.dtype)

    def __call__(
        self,
        v: Velocity,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        frobenius: bool = False,
        frame: Frame | None = None,
    ) -> Rates:
        return Hutchinson()(v, t, x, context, noise, frobenius=frobenius, frame=frame)


@dataclass(frozen=True)
class Problem:
    """A field, the points whose likelihood is raised, and how the divergence is found."""

    name: str
    field: Field
    x: Tensor
    divergence: Divergence

    def ours(self, solver: Solver, adjoint: Adjoint) -> Step:
        """Return a training step of cflow."""
        base = Gaussian(FEATURES).to(self.x.dtype)
        flow = Flow(base, ODE(self.field, solver, divergence=self.divergence, adjoint=adjoint))
        return lambda: self._backward(-flow.log_prob(self.x).mean())

    def zuko(self, tolerance: float) -> Step:
        """Return a training step of zuko; its probe is the first noise after the seed, as ours."""
        field, exact = self.field, self.divergence.likelihood == "exact"
        base = DiagNormal(torch.zeros_like(self.x[0]), torch.ones_like(self.x[0]))

        def f(s: Tensor, x: Tensor) -> Tensor:
            return -field((1 - s).expand(len(x)), x)

        own = field.transform.f if isinstance(field, ZukoField) else f
        phi = tuple(field.parameters())
        transform = FreeFormJacobianTransform(
            own, phi=phi, atol=tolerance, rtol=tolerance, exact=exact
        )

        def step() -> Tensor:
            torch.manual_seed(SEED)
            z, ladj = transform.call_and_ladj(self.x)
            return self._backward(-(base.log_prob(z) + ladj).mean())

        return step

    def _backward(self, loss: Tensor) -> Tensor:
        """Return the gradient, found as for an optimiser."""
        for parameter in self.field.parameters():
            parameter.grad = None
        loss.backward()
        grads = [p.grad for p in self.field.parameters()]
        return torch.cat([torch.zeros(0) if g is None else g.flatten() for g in grads])

    def truth(self, tolerance: float) -> Tensor:
        """Return the gradient in float64, a few points at a time to bound memory."""
        fine, total = Dopri5(tolerance, tolerance), 0.0
        field = copy.deepcopy(self.field).double()
        for rows in torch.arange(len(self.x)).split(50):
            divergence = self.divergence
            if isinstance(divergence, GivenProbe):
                divergence = GivenProbe(divergence.probe[rows])
            part = Problem(self.name, field, self.x[rows].double(), divergence)
            total = total + part.ours(fine, Direct())() * (len(rows) / len(self.x))
        assert isinstance(total, Tensor)
        return total


@dataclass(frozen=True)
class Curve:
    """What a method takes and errs at each tolerance; seconds are lists over rounds."""

    errors: list[float]
    seconds: list[list[float]]

    def near(self, level: float) -> list[int]:
        """Return the tolerances around an error: two, or the loosest where it is good enough."""
        if self.errors[0] <= level:
            return [0]
        for k in range(1, len(self.errors)):
            if self.errors[k] <= level:
                return [k - 1, k]
        return []

    def at(self, level: float, rounds: int) -> list[float]:
        """Return the seconds of each round at an error, log-log between its neighbours."""
        found = self.near(level)
        if not found:
            return [math.inf] * rounds
        if len(found) == 1:
            return self.seconds[found[0]]
        a, b = (math.log(self.errors[k]) for k in found)
        share = (a - math.log(level)) / (a - b)
        pairs = zip(*(self.seconds[k] for k in found), strict=True)
        return [math.exp((1 - share) * math.log(s) + share * math.log(t)) for s, t in pairs]


def training(settings: Settings) -> list[Row]:
    """Compare steps with one probe, with the exact trace, and with the trace in closed form."""
    hidden = (settings.size(WIDTH, 8),) * 3
    rows: list[Row] = []
    for name, gain in list(GAINS.items())[: settings.size(2, 1)]:
        transform = FFJTransform(FEATURES, hidden_features=hidden, activation=nn.SiLU)
        scale_weights(transform, gain)
        field = ZukoField(transform)
        special = two_layer(FEATURES, width=hidden[0], gain=gain)
        x = torch.randn(settings.size(500, 6), FEATURES)
        torch.manual_seed(SEED)
        probe = GivenProbe(torch.randn_like(x)[:, None])
        few = x[: settings.size(100, 3)]
        rows += compare(settings, Problem(f"{name}, one probe", field, x, probe))
        rows += compare(settings, Problem(f"{name}, exact trace", field, few, Exact()))
        rows += compare(settings, Problem(f"{name}, TwoLayerField", special, few, Analytic()))
    return rows


def compare(settings: Settings, problem: Problem) -> list[Row]:
    """Measure all curves, and read off the times at zuko's error."""
    scan = settings.size(SCAN, (1e-3, LEVEL))
    truth = problem.truth(settings.size(1e-10, 1e-6))
    methods: dict[str, Callable[[float], Step]] = {
        "zuko": problem.zuko,
        "Dopri5": lambda tol: problem.ours(Dopri5(tol, tol), Direct()),
        "Tsit5": lambda tol: problem.ours(Tsit5(tol, tol), Direct()),
    }
    main = len(methods)  # the others are slow and timed around zuko's error only
    if problem.divergence.likelihood == "estimate":
        methods |= {
            "Dopri5, Checkpoint": lambda tol: problem.ours(Dopri5(tol, tol), Checkpoint()),
            "Reversible(Dopri5)": lambda tol: problem.ours(Reversible(Dopri5(tol, tol)), Direct()),
        }
    steps = {who: [method(tol) for tol in scan] for who, method in methods.items()}
    errors = {who: [_apart(run(), truth) for run in runs] for who, runs in steps.items()}
    level = errors["zuko"][scan.index(LEVEL)]
    runs = {
        f"{who} {k}": run
        for who, found in steps.items()
        for k, run in enumerate(found)
        if who in list(methods)[:main] or k in Curve(errors[who], []).near(level)
    }
    seconds = interleave(runs, settings.rounds(0.2), warm_up=0)
    curves = {
        who: Curve(errors[who], [seconds.get(f"{who} {k}", []) for k in range(len(scan))])
        for who in methods
    }
    peer = curves.pop("zuko")
    detail = tuple(_line(who, scan, curve) for who, curve in (("zuko", peer), *curves.items()))
    rows = []
    for who, curve in curves.items():
        other = peer.seconds[scan.index(LEVEL)]
        own = curve.at(level, len(other))
        faster, spread = ratio(other, own)
        what = f"training step, {problem.name}, batch {len(problem.x)}, error {level:.0e}: {who}"
        peers = {"zuko": statistics.median(other)}
        wanted = (">=", 2.0) if who in ("Dopri5", "Tsit5") else None
        mine = statistics.median(own) if curve.near(level) else "not reached"
        rows.append(Row(what, mine, peers, "s", faster, spread, wanted, detail))
        detail = ()
    return rows


def _line(who: str, scan: tuple[float, ...], curve: Curve) -> str:
    points = zip(scan, curve.errors, curve.seconds, strict=True)
    parts = [
        f"{tol:.0e}: {e:.1e}" + (f" in {statistics.median(s) * 1e3:.0f} ms" if s else "")
        for tol, e, s in points
    ]
    return f"{who:20s} " + "; ".join(parts)


def _apart(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true).norm() / true.norm()).item()
