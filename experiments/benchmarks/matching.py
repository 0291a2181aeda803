"""Flow matching beside POT, the bare network and torchcfm: couplings, pools and training steps.

    python -m experiments.benchmarks.matching                    # some minutes on two cores
    python -m experiments.benchmarks.matching --only ahead step  # some figures
    python -m experiments.benchmarks.matching --smoke            # every path, figures meaningless

Four figures: the OT coupling over POT's own solve of a cost matrix that is there already; a step on
a pool that one thread solves ahead, over the longer of the bare step and the solve; a step without
transport over the bare network's forward, backward and optimiser step; the distinct targets that a
batch keeps. torch runs in one thread, so that of two cores one is free for the pool. Times are
medians of interleaved rounds, with the quartiles of their ratio; everything lands in
runs/matching_benchmark/report.json.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np
import ot
import torch
import tyro
from torch import Tensor

from cflow.data.toy import eight_gaussians
from cflow.field import MLPField
from cflow.matching import (
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    PairPool,
    SquaredEuclidean,
    matching,
)
from experiments.benchmarks import run
from experiments.benchmarks.measure import Row, Seconds, contest, interleave, ratio
from experiments.benchmarks.settings import Settings

SOLVE, AHEAD, STEP, DISTINCT = 1.1, 1.1, 1.05, 256  # wanted
LR = 1e-3
PEER = find_spec("torchcfm") is not None  # the peer is optional

Run = Callable[[], Any]


def coupling(settings: Settings) -> list[Row]:
    """Time the coupling from points to indices, and POT from a cost matrix to a plan.

    Every round is another problem, the same one for all.
    """
    rows = []
    for n in settings.size((128, 256, 1024), (16,)):
        points = [(torch.randn(n, 2), eight_gaussians(n)) for _ in range(settings.size(20, 2))]
        costs = [(SquaredEuclidean()(x0, x1).numpy(),) for x0, x1 in points]
        mass = np.full(n, 1 / n)
        contestants: dict[str, Run] = {
            "cflow": _in_turn(OTCoupling(), points),
            "ot.emd": _in_turn(partial(ot.emd, mass, mass, numItermax=10_000_000), costs),
        }
        if PEER:
            from torchcfm.optimal_transport import OTPlanSampler

            contestants["torchcfm"] = _in_turn(OTPlanSampler(method="exact").sample_plan, points)
        repeats = settings.rounds(settings.size(4 if n < 1000 else 1, 1))
        seconds = interleave(contestants, repeats, warm_up=2)
        what = f"OT coupling of {n} points, over ot.emd"
        rows.append(contest(what, seconds, "cflow", against="ot.emd", wanted=SOLVE))
    return rows


def ahead(settings: Settings) -> list[Row]:
    """Time steps on a pool solved by one thread, the bare step, and the solve."""
    rows = []
    sizes = [((64,) * 3, 256, 256), ((64,) * 3, 256, 1024), ((512,) * 3, 256, 256)]
    for hidden, batch, pool in settings.size(sizes, [((8,), 8, 16)]):
        rows.append(_ahead(settings, hidden, batch, pool))
    return rows


def _ahead(settings: Settings, hidden: tuple[int, ...], batch: int, pool: int) -> Row:
    workers, data = 1, eight_gaussians(settings.size(20_000, 64))
    per_pool = pool // batch
    steps = per_pool * settings.size(max(4, 32 // per_pool), 2)
    pairs = PairPool(data, OTCoupling(), pool=pool)
    step = _step(settings, hidden, PairedCoupling())
    solves = pairs.batches(pool, seed=settings.seed)
    ready = [next(solves) for _ in range(settings.size(8, 2))]

    def bare() -> float:
        for k in range(steps):
            x0, x1 = (part[:batch] for part in ready[k % len(ready)])
            step(x1, x0)
        return steps

    def solve() -> float:
        for _ in range(max(1, steps // per_pool)):
            next(solves)
        return per_pool * max(1, steps // per_pool)

    def on_pool(workers: int) -> float:
        """Give the seconds of a step once the pool runs: the first chunks are awaited unclocked."""
        source = PairPool(data, OTCoupling(), pool=pool, workers=workers)
        with closing(source.batches(batch, seed=settings.seed)) as batches:
            for _ in range(per_pool * (workers + 2)):
                step(*reversed(next(batches)))
            start = time.perf_counter()
            for _ in range(steps):
                step(*reversed(next(batches)))
            return (time.perf_counter() - start) / steps

    seconds: Seconds = {name: [] for name in ("ahead", "bare", "solve", "inline")}
    for k in range(settings.rounds(0.6) + 1):
        found = {
            "bare": _clocked(bare),
            "solve": _clocked(solve),
            "ahead": on_pool(workers),
            "inline": on_pool(0),
        }
        for name, value in found.items():
            if k:  # the first round warms up
                seconds[name].append(value)
    floor = max(("bare", "solve"), key=lambda name: statistics.median(seconds[name]))
    judged, spread = ratio(seconds["ahead"], seconds[floor])
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    what = f"step {hidden}, batch {batch}, pool {pool} ahead, over the longer of step and solve"
    mine = medians.pop("ahead")
    detail = (f"{hidden}, batch {batch}, pool {pool}: solve is the share of one batch",)
    return Row(what, mine, medians, "s", judged, spread, ("<=", AHEAD), detail)


def step(settings: Settings) -> list[Row]:
    """Time training steps without transport, and those of the bare network on a ready batch."""
    rows = []
    for hidden, batch in settings.size([((64,) * 3, 256), ((256,) * 3, 512)], [((8,), 8)]):
        x1 = eight_gaussians(batch)
        ours = _step(settings, hidden, IndependentCoupling())
        contestants = {"cflow": lambda x1=x1, ours=ours: ours(x1, None)}
        contestants |= {"bare": _bare(settings, hidden, x1)}
        if PEER:
            contestants["torchcfm"] = _torchcfm(settings, hidden, x1)
        count = settings.size(20, 1)
        many = {name: _repeated(f, count) for name, f in contestants.items()}
        seconds = interleave(many, settings.rounds(2), warm_up=2)
        per = dict.fromkeys(many, count)
        what = f"step without transport, {hidden}, batch {batch}, over the bare network's"
        rows.append(contest(what, seconds, "cflow", against="bare", wanted=STEP, per=per))
        if PEER:
            what = f"step without transport, {hidden}, batch {batch}, torchcfm over the bare one"
            rows.append(contest(what, seconds, "torchcfm", against="bare", per=per))
    return rows


def targets(settings: Settings) -> list[Row]:
    """Count the distinct targets that the pairs of a batch keep."""
    n, draws = DISTINCT, settings.size(20, 2)
    kept: dict[str, list[int]] = {"cflow": []}
    for _ in range(draws):
        x0, x1 = torch.randn(n, 2), eight_gaussians(n)
        kept["cflow"].append(len(OTCoupling()(x0, x1).j.unique()))
        if PEER:
            from torchcfm.optimal_transport import OTPlanSampler

            _, found = OTPlanSampler(method="exact").sample_plan(x0, x1)
            kept.setdefault("torchcfm", []).append(len(found.unique(dim=0)))
    means = {name: statistics.mean(found) for name, found in kept.items()}
    worst = min(kept["cflow"])
    mine = means.pop("cflow")
    return [Row(f"distinct targets of {n}", mine, means, "", worst, None, (">=", n))]


def _field(settings: Settings, hidden: tuple[int, ...]) -> tuple[MLPField, torch.optim.Optimizer]:
    torch.manual_seed(settings.seed)
    field = MLPField(2, hidden_features=hidden)
    return field, torch.optim.Adam(field.parameters(), lr=LR)


def _step(
    settings: Settings, hidden: tuple[int, ...], pairing: IndependentCoupling | PairedCoupling
) -> Callable[[Tensor, Tensor | None], None]:
    """Return a training step of ours on targets, and sources where there are such."""
    field, optimizer = _field(settings, hidden)
    path, generator = LinearPath(), torch.Generator().manual_seed(settings.seed)

    def run(x1: Tensor, x0: Tensor | None) -> None:
        loss = matching(field, path, pairing, x1, x0=x0, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def _bare(settings: Settings, hidden: tuple[int, ...], x1: Tensor) -> Run:
    """Return a step of the network on points, times and targets that are there already."""
    field, optimizer = _field(settings, hidden)
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    x, target = torch.lerp(x0, x1, t[:, None]), x1 - x0

    def run() -> None:
        loss = (field(t, x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def _torchcfm(settings: Settings, hidden: tuple[int, ...], x1: Tensor) -> Run:
    from torchcfm import ConditionalFlowMatcher

    field, optimizer = _field(settings, hidden)
    matcher: Any = ConditionalFlowMatcher(sigma=0.0)

    def run() -> None:
        t, x, target = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = (field(t, x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def _in_turn(f: Callable[..., Any], problems: Sequence[tuple[Any, ...]]) -> Run:
    """Return a call of f on the next problem, and after the last on the first again."""
    turns = cycle(problems)
    return lambda: f(*next(turns))


def _repeated(f: Run, count: int) -> Run:
    def many() -> None:
        for _ in range(count):
            f()

    return many


def _clocked(f: Callable[[], float]) -> float:
    """Return seconds for each of the steps that f says it has taken."""
    start = time.perf_counter()
    steps = f()
    return (time.perf_counter() - start) / steps


FIGURES: run.Figures = {"coupling": coupling, "ahead": ahead, "step": step, "targets": targets}
PACKAGES = ("torch", "POT", "scipy", "numpy", *(("torchcfm",) if PEER else ()))


def main(settings: Settings) -> run.Report:
    return run.measure("matching", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__, default=Settings(threads=1)))
