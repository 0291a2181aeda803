"""Flows on manifolds beside flow_matching's Riemannian solver and geoopt's maps.

    python -m experiments.benchmarks.riemannian                     # some minutes on two cores
    python -m experiments.benchmarks.riemannian --only likelihood   # some figures
    python -m experiments.benchmarks.riemannian --smoke             # every path, in seconds

Four figures: sampling on sphere and torus over flow_matching's `RiemannianODESolver`, with the same
network, steps and starts; an exact log-likelihood on S^2 over sampling with the same solver; maps
over geoopt's, with the digits that each keeps; and what a solve from t = 0.5 and one backward give,
where the peer's are known to be wrong. Times are medians of interleaved rounds, with the quartiles
of their ratio; everything lands in runs/riemannian_benchmark/report.json.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from cflow import Flow
from cflow.base import ManifoldUniform
from cflow.field import Field, MLPField, TangentField
from cflow.manifold import (
    SPD,
    AffineInvariantSPD,
    Compact,
    Lorentz,
    Manifold,
    PoincareBall,
    Sphere,
    Torus,
)
from cflow.ode import RK4, Euler, Midpoint, Solver
from cflow.state import State
from cflow.transport import ODE
from experiments.benchmarks import run
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.settings import Settings

PEERS = {name: find_spec(name) is not None for name in ("flow_matching", "geoopt")}
SOLVERS: dict[str, Callable[[int], Solver]] = {"euler": Euler, "midpoint": Midpoint, "rk4": RK4}
AS_FAST, LIKELIHOOD = 1.0, 4.0  # wanted: our time over theirs, and a likelihood over a sample


def sampling(settings: Settings) -> list[Row]:
    """Time a solve from 0 to 1 without gradients."""
    rows = []
    batch, steps = settings.size(1000, 8), settings.size(20, 2)
    for space, size in ((Sphere(), 3), (Torus(), 2)):
        for width in settings.size((64, 256), (8,)):
            net = MLPField(size, hidden_features=(width,) * 3)
            x0 = space.uniform((batch,), (size,), like=torch.zeros(()))
            for method, solver in SOLVERS.items():
                ode = ODE(net, solver(steps), manifold=space)
                contestants: dict[str, Callable[[], Any]] = {
                    "cflow": lambda ode=ode, x0=x0: ode.push(State(x0))
                }
                if PEERS["flow_matching"]:
                    peer = _peer(space, net)
                    contestants["flow_matching"] = lambda peer=peer, x0=x0, method=method: (
                        peer.sample(x0, step_size=1 / steps, method=method)
                    )
                with torch.no_grad():
                    seconds = interleave(contestants, settings.rounds(), warm_up=2)
                against = "flow_matching" if PEERS["flow_matching"] else "cflow"
                what = f"{steps} {method} steps of {batch} points on {space}, network 3 x {width}"
                rows.append(contest(what, seconds, "cflow", against=against, wanted=AS_FAST))
    return rows


def likelihood(settings: Settings) -> list[Row]:
    """Time an exact log-likelihood and a sample with the same fixed-step solver."""
    rows = []
    batch, steps = settings.size(1000, 8), settings.size(20, 2)
    for width in settings.size((64, 256), (8,)):
        space = Sphere()
        field = TangentField(MLPField(3, hidden_features=(width,) * 3), space)
        flow = Flow(ManifoldUniform(space, 3), ODE(field, RK4(steps), manifold=space))
        with torch.no_grad():
            x = flow.sample(batch)
            seconds = interleave(
                {"log_prob": lambda flow=flow, x=x: flow.log_prob(x),
                 "sample": lambda flow=flow: flow.sample(batch)},
                settings.rounds(), warm_up=2,
            )  # fmt: skip
        what = f"exact log-likelihood of {batch} points on S^2, network 3 x {width}, over sampling"
        rows.append(contest(what, seconds, "log_prob", against="sample", wanted=LIKELIHOOD))
    return rows


def maps(settings: Settings) -> list[Row]:
    """Time expmap, logmap and dist, and say how far each misses the distance of near points."""
    if not PEERS["geoopt"]:
        return []
    import geoopt

    rows: list[Row] = []
    batch = settings.size(10_000, 8)
    theirs: list[tuple[Manifold, Any, tuple[int, ...]]] = [
        (Sphere(), geoopt.Sphere(), (3,)),
        (PoincareBall(), geoopt.PoincareBall(), (3,)),
        (Lorentz(), geoopt.Lorentz(), (4,)),
        (AffineInvariantSPD(), geoopt.SymmetricPositiveDefinite(), (3, 3)),
    ]
    for space, peer, event in theirs:
        count = batch if len(event) == 1 else batch // 10 or 4
        x, u = _points(space, event, count)
        y = space.expmap(x, u)
        for name, given in (("expmap", (x, u)), ("logmap", (x, y)), ("dist", (x, y))):
            contestants = {
                who: partial(getattr(them, name), *given)
                for who, them in (("cflow", space), ("geoopt", peer))
            }
            with torch.no_grad():
                seconds = interleave(contestants, settings.rounds())
            what = f"{name} of {count} float32 points on {type(space).__name__}"
            rows.append(contest(what, seconds, "cflow", against="geoopt"))
        with torch.no_grad():
            near = space.expmap(x.double(), 1e-3 * u.double())
            exact = space.dist(x.double(), near)
            miss = [_miss(m.dist(x, near.float()), exact) for m in (space, peer)]
        what = f"largest relative error of float32 distances near 0.001 on {type(space).__name__}"
        rows.append(Row(what, miss[0], {"geoopt": miss[1]}))
    return rows


def defects(settings: Settings) -> list[Row]:
    """Follow a rotation of known angle from t = 0.5, and backward."""
    space, x0 = Sphere(), torch.tensor([[1.0, 0.0, 0.0]])
    spin = _Spin()
    rows = []
    for what, ts, angle in (("from t = 0.5", [0.5, 1.0], 0.5), ("backward", [1.0, 0.0], -1.0)):
        want = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]])
        ours = ODE(spin, RK4(10), manifold=space).trajectory(x0, ts)[-1]
        found: dict[str, float] = {}
        if PEERS["flow_matching"]:
            grid = torch.tensor(ts)
            there = _peer(space, spin).sample(x0, step_size=0.1, method="rk4", time_grid=grid)
            found["flow_matching"] = float(space.dist(there, want))
        miss = float(space.dist(ours, want))
        rows.append(
            Row(f"miss of a unit rotation solved {what}, radians", miss, found, "", miss, None,
                ("<=", 1e-3))
        )  # fmt: skip
    return rows


class _Spin(Field):
    """Turn the sphere about its third axis by one radian in a unit of time."""

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1)


def _peer(space: Compact, net: nn.Module) -> Any:
    """Return flow_matching's solver on the same space, for the same network."""
    from flow_matching.solver import RiemannianODESolver
    from flow_matching.utils import ModelWrapper
    from flow_matching.utils import manifolds as theirs

    class Wrapped(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(t.expand(len(x)), x)

    manifold = theirs.Sphere() if isinstance(space, Sphere) else theirs.FlatTorus()
    return RiemannianODESolver(manifold, Wrapped(net))


def _points(space: Manifold, event: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Draw points and tangent vectors of length 0.7, in float32."""
    e = torch.randn(count, *event)
    if isinstance(space, SPD):
        x = space.projx(torch.matrix_exp(0.3 * (e + e.mT)))
    elif isinstance(space, PoincareBall):
        x = 0.6 * e / (1 + e.norm(dim=-1, keepdim=True))
    else:
        x = space.projx(e)
    u = space.proju(x, torch.randn_like(x))
    length = space.inner(x, u, u).sqrt().reshape(count, *(1,) * len(event))
    return x, 0.7 * u / length


def _miss(found: Tensor, exact: Tensor) -> float:
    worst = (found.double() - exact).abs() / exact
    return float(worst.nan_to_num(math.inf).max())


FIGURES = {"sampling": sampling, "likelihood": likelihood, "maps": maps, "defects": defects}
PACKAGES = ("torch", *(name for name, found in PEERS.items() if found))


def main(settings: Settings) -> run.Report:
    return run.measure("riemannian", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
