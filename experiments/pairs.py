"""Transport between two-dimensional laws: the table of conditional flow matching, with its peer.

    python -m experiments.pairs            # 18 to 35 minutes on two cores
    python -m experiments.pairs --smoke    # the same road in seconds

Four pairs of laws and five seeds, as in table 2 of Tong et al. (2024, arXiv 2302.00482): standard
normal to eight Gaussians, to moons and to the S-curve, and moons to eight Gaussians. Every method
trains the same network (3 x 64, SELU) from the same start for the same number of AdamW steps; rows
named torchcfm take pairs and targets from that package. "sf2m" is the flow of a Schroedinger
bridge; "best" is what cflow would do by itself: OT pairs from a pool of 512, a path without blur,
a learning rate that rises higher and falls, averaged weights. Mean and standard deviation over
seeds of

    W2    the exact 2-Wasserstein distance between new target points and as many new sources pushed
          by 100 Euler steps (and by 4); "floor" is that between two samples of the target
    NPE   |E int |v|^2 dt - W2^2(q0, q1)| / W2^2(q0, q1): how far the paths are from optimal ones

All methods of a seed see the same test points. Everything lands in runs/pairs/: report.json,
table.md, paths.png.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import tyro
from torch import Generator, Tensor, nn

from cflow.data import toy
from cflow.field import Field, LinearSchedule
from cflow.matching import (
    AffinePath,
    BridgePath,
    EntropicCoupling,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    PairPool,
    bridge_matching,
    matching,
)
from cflow.metrics import normalised_path_energy, wasserstein
from cflow.ode import Euler
from cflow.train import ConstantRate, CosineDecay, Trainer
from cflow.transport import ODE

Draw: TypeAlias = Callable[..., Tensor]

PAIRS: dict[str, tuple[Draw, Draw]] = {
    "gaussian to 8 gaussians": (toy.gaussian, toy.eight_gaussians_wide),
    "moons to 8 gaussians": (toy.moons_wide, toy.eight_gaussians_wide),
    "gaussian to moons": (toy.gaussian, toy.moons_wide),
    "gaussian to scurve": (toy.gaussian, toy.scurve),
}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/pairs")
    pairs: tuple[str, ...] = tuple(PAIRS)
    methods: tuple[str, ...] = (
        "independent", "ot", "sf2m", "best", "torchcfm independent", "torchcfm ot",
    )  # fmt: skip
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    steps: int = 3000  # optimiser steps
    batch: int = 256
    lr: float = 1e-3
    best_lr: float = 4e-3  # of the method "best", at its height
    decay: float = 1e-5  # AdamW's weight decay
    sigma: float = 0.1  # blur of the path, in units of the points; that of torchcfm's runner
    bridge: float = 1.0  # diffusion of the method "sf2m", in units of the points
    pool: int = 512  # points in one plan of the method "best"
    targets: int = 100_000  # target points of the method "best"
    tested: int = 2048  # points on either side of W2
    optimal: int = 4096  # points on either side of W2(q0, q1), the energy of optimal paths
    workers: int = 2  # processes, one core each
    smoke: bool = False  # a few steps of everything


class VelocityNet(Field):
    """The network of the published table: three hidden layers of 64 with SELU on (x, t)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.SELU(),
            nn.Linear(width, width), nn.SELU(),
            nn.Linear(width, width), nn.SELU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t[..., None]], dim=-1))


def train(pair: str, method: str, seed: int, settings: Settings) -> VelocityNet:
    """Train by one method; the network's start depends on the seed alone."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  torchcfm draws its pairs from NumPy's global generator
    field = VelocityNet()
    if method.startswith("torchcfm"):
        by_peer(field, method, PAIRS[pair], settings, seed)
        return field
    source, target = PAIRS[pair]
    best, score = method == "best", VelocityNet() if method == "sf2m" else None
    path = AffinePath(LinearSchedule(), noise=settings.sigma)
    coupling = OTCoupling() if method == "ot" else IndependentCoupling()
    bridge = BridgePath(settings.bridge)
    entropic = EntropicCoupling(2 * settings.bridge**2)

    def fresh(model: Any, row: Tensor, *, generator: Generator) -> Tensor:
        x0, x1 = (draw(len(row), generator=generator) for draw in (source, target))
        if score is None:
            return matching(model, path, coupling, x1, x0=x0, generator=generator)
        nets = model[0], model[1]
        return bridge_matching(*nets, bridge, entropic, x1, x0=x0, generator=generator)

    def paired(model: Field, x0: Tensor, x1: Tensor, *, generator: Generator) -> Tensor:
        return matching(model, LinearPath(), PairedCoupling(), x1, x0=x0, generator=generator)

    model = field if score is None else nn.ModuleList([field, score])
    weights, rate = list(model.parameters()), settings.best_lr if best else settings.lr
    data: Any = torch.zeros(settings.batch, 1)  # only counts: every batch is drawn anew
    if best:
        points = target(settings.targets, generator=Generator().manual_seed(seed))
        law = lambda n, generator: source(n, generator=generator)
        data = PairPool(points, OTCoupling(), source=law, pool=settings.pool)
    Trainer(
        model,
        paired if best else fresh,
        steps=settings.steps,
        batch=settings.batch,
        optimizer=torch.optim.AdamW(weights, lr=rate, weight_decay=settings.decay),
        schedule=CosineDecay(warmup=100) if best else ConstantRate(),
        ema=0.999 if best else None,
        seed=seed,
        progress=False,
    ).fit(data)
    return field


def by_peer(
    field: Field, method: str, laws: tuple[Draw, Draw], settings: Settings, seed: int
) -> None:
    """Train on the pairs and targets of torchcfm, in the loop of its tutorials."""
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
    )

    ot = method == "torchcfm ot"
    kind = ExactOptimalTransportConditionalFlowMatcher if ot else ConditionalFlowMatcher
    matcher = kind(sigma=settings.sigma)
    optimizer = torch.optim.AdamW(field.parameters(), lr=settings.lr, weight_decay=settings.decay)
    generator = Generator().manual_seed(seed)
    for _ in range(settings.steps):
        x0, x1 = (draw(settings.batch, generator=generator) for draw in laws)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)[:3]
        loss = (field(t, xt) - ut).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def judge(
    field: Field, pair: str, seed: int, shortest: float, settings: Settings
) -> dict[str, float]:
    """Push new sources and compare them with new targets."""
    generator = Generator().manual_seed(1000 + seed)
    source, target = PAIRS[pair]
    x0, x1, again = (
        draw(settings.tested, generator=generator) for draw in (source, target, target)
    )
    times = torch.linspace(0, 1, 101)
    with torch.no_grad():
        path = ODE(field, Euler(100)).trajectory(x0, times)
        four = ODE(field, Euler(4)).trajectory(x0, [0.0, 1.0])[-1]
        speed = path.diff(dim=0) * 100  # an Euler step is the velocity at its start
    spent = speed.square().sum(-1).mean()
    return {
        "w2": wasserstein(path[-1], x1, order=2).item(),
        "w2_4": wasserstein(four, x1, order=2).item(),
        "floor": wasserstein(again, x1, order=2).item(),
        "npe": normalised_path_energy(spent, torch.tensor(shortest)).item(),
    }


def run(job: tuple[str, str, int, float, Settings]) -> dict[str, Any]:
    pair, method, seed, shortest, settings = job
    torch.set_num_threads(1)
    start = time.perf_counter()
    field = train(pair, method, seed, settings)
    seconds = time.perf_counter() - start
    figures = judge(field, pair, seed, shortest, settings)
    weights = {name: t.tolist() for name, t in field.state_dict().items()}
    shown = weights if seed == settings.seeds[0] else None  # for the picture
    return {"pair": pair, "method": method, "seed": seed, **figures, "seconds": seconds,
            "weights": shown}  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(
            settings,
            pairs=settings.pairs[:1],
            seeds=settings.seeds[:1],
            steps=4,
            tested=64,
            optimal=64,
            pool=256,
            targets=300,
            workers=1,
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    optimal = {}
    for pair in settings.pairs:
        generator = Generator().manual_seed(0)
        x0, x1 = (draw(settings.optimal, generator=generator) for draw in PAIRS[pair])
        optimal[pair] = wasserstein(x0, x1, order=2).item()
    jobs = [
        (pair, method, seed, optimal[pair], settings)
        for seed in settings.seeds
        for pair in settings.pairs
        for method in settings.methods
    ]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            rows.append(done.result())
            shown = {k: v for k, v in rows[-1].items() if k != "weights"}
            print(f"{len(rows)}/{len(jobs)} {shown}", flush=True)
    table = summary(rows, settings)
    picture(rows, settings)
    bare = [{k: v for k, v in row.items() if k != "weights"} for row in rows]
    report = {
        "settings": asdict(settings) | {"out": str(settings.out)},
        "optimal": optimal,
        "rows": bare,
        "table": table,
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    (settings.out / "table.md").write_text(markdown(table))
    print(markdown(table))
    return report


def summary(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Average over seeds."""
    table = []
    for pair in settings.pairs:
        for method in settings.methods:
            mine = [r for r in rows if (r["pair"], r["method"]) == (pair, method)]
            entry: dict[str, Any] = {"pair": pair, "method": method}
            for name in ("w2", "w2_4", "floor", "npe", "seconds"):
                values = [r[name] for r in mine]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                entry[name] = (statistics.mean(values), spread)
            table.append(entry)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        "| pair | method | W2, 100 steps | W2, 4 steps | NPE | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for pair in dict.fromkeys(entry["pair"] for entry in table):
        mine = [entry for entry in table if entry["pair"] == pair]
        floor = mine[0]["floor"]
        lines.append(f"| {pair} | floor | {floor[0]:.3f} +- {floor[1]:.3f} | | | |")
        for entry in mine:
            cells = [f"{entry[k][0]:.3f} +- {entry[k][1]:.3f}" for k in ("w2", "w2_4", "npe")]
            seconds = f"{entry['seconds'][0]:.0f}"
            lines.append(f"| | {entry['method']} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]], settings: Settings) -> None:
    """Draw the paths of 200 points, one panel for each pair and method, from the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known: Mapping[tuple[str, str], Any] = {
        (r["pair"], r["method"]): r["weights"] for r in rows if r["weights"] is not None
    }
    shape = len(settings.pairs), len(settings.methods)
    figure, axes = plt.subplots(*shape, figsize=(2.4 * shape[1], 2.4 * shape[0]), squeeze=False)
    for i, pair in enumerate(settings.pairs):
        shown = 20 if settings.smoke else 200
        x0 = PAIRS[pair][0](shown, generator=Generator().manual_seed(5))
        for j, method in enumerate(settings.methods):
            field = VelocityNet()
            weights = {k: torch.tensor(v) for k, v in known[pair, method].items()}
            field.load_state_dict(weights)
            with torch.no_grad():
                path = ODE(field, Euler(100)).trajectory(x0, torch.linspace(0, 1, 101))
            axes[i, j].plot(path[..., 0], path[..., 1], color="0.75", linewidth=0.4, zorder=0)
            axes[i, j].scatter(*path[0].T, s=2, color="tab:blue")
            axes[i, j].scatter(*path[-1].T, s=2, color="tab:orange")
            axes[i, j].set_title(f"{pair}\n{method}", fontsize=7)
            axes[i, j].set_aspect("equal")
            axes[i, j].set_axis_off()
    figure.tight_layout()
    figure.savefig(settings.out / "paths.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
