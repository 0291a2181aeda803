"""Where the atoms of a perovskite sit, given its elements and the size of its cell: a flow on tori.

    python -m experiments.crystals            # about eight minutes on one core
    python -m experiments.crystals --smoke    # the same road in seconds

perov_5 has five atoms in a cubic cell; their fractional coordinates are a point of a torus in 15
dimensions. The training part is not offered here, so the flow is trained on the validation part
(3787 structures, of which 187 choose the weights) and judged on the test part; figures of papers,
with five times the structures, are not comparable. Two fields by flow matching from the uniform
law, on the same structures:

    equivariant   does not see where the cell begins nor how atoms are numbered
    plain         waves of the coordinates, trained on random shifts and orders of the atoms

Three things have to be said about a likelihood here. A structure may be shifted at will: each is
given a random shift, under which the law is uniform; the density of 15 coordinates is then that of
the structure itself times one for the shift. The order of the atoms is random, and the elements
come with it as the condition. In the files two coordinates of each atom are exactly 0 or 1/2, so
that likelihoods have no bound: all coordinates are blurred by normal noise of `blur` of a cell, and
no law can then come below `floor` nats, that of structures known but for their blur.

    nll       mean -log q of test structures, nats a structure (uniform law: 0)
    pairs     1-Wasserstein distance between shortest distances of all pairs of atoms, drawn for the
              elements of the test part and found there, in parts of a cell
    within    share of drawn structures whose atoms are off by less than `near` of a cell (root of
              the mean square), with shift and like atoms at their best
    symmetry  mean change of log q under a shift and another order; "solver" is that by a fine solve

"kernel" is a density about training structures which is told the site of each atom, of which the
flows know nothing, but no elements. "floor" is the least nll, beside the pairs of training
structures.

Everything lands in runs/crystals/: report.json, table.md, pairs.png, weights, an offline wandb run.

Source: Xie et al. (2022), arXiv 2110.06197, for the parts; Jiao et al. (2023), arXiv 2309.04475;
Miller et al. (2024), FlowMM, arXiv 2406.04713, for flow matching without the mean velocity.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow
from cflow.base import ManifoldUniform
from cflow.data import crystals
from cflow.field import CrystalField, Field, PeriodicField
from cflow.manifold import Torus
from cflow.matching import GeodesicPath, PairedCoupling, matching
from cflow.ode import RK4, Dopri5
from cflow.samples import log_probs
from cflow.train import CosineDecay, Monitor, Trainer, WandbMonitor
from cflow.transport import ODE

SHAPE = (5, 3)
CELL = Torus(1.0, ndim=2)
SITES = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1]]) / 2  # as in the files
ORDERS = torch.tensor(list(permutations(range(5))))
FIELDS = ("equivariant", "plain")
HEAVIEST = 83  # atomic number
HELD = 187  # structures that choose the weights


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/crystals")
    blur: float = 0.02  # of all coordinates, in parts of a cell
    near: float = 0.05  # in parts of a cell
    hidden: int = 64  # length of the vector of an atom
    layers: int = 3  # rounds of messages
    plain_hidden: tuple[int, ...] = (256, 256, 256)
    steps: int = 12_000  # optimiser steps, equivariant
    plain_steps: int = 24_000  # optimiser steps, plain: about the same time
    batch: int = 64
    lr: float = 2e-3
    solver_steps: int = 16  # of RK4
    tested: int = 1000  # test structures whose likelihood is taken
    checked: int = 100  # of them, solved at a tight tolerance
    chunk: int = 250  # structures solved at once
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    hidden=8, layers=1, plain_hidden=(16,), steps=6, plain_steps=6, batch=16, solver_steps=2,
    tested=20, checked=2, chunk=20,
)  # fmt: skip


class Structures(NamedTuple):
    """Hold coordinates `(n, 5, 3)`, atomic numbers `(n, 5)`, and what is told of each atom."""

    x: Tensor
    kind: Tensor
    context: Tensor

    def of(self, rows: Tensor) -> "Structures":
        return Structures(*(part[rows] for part in self))


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-crystals", folder=settings.out, settings=shown)
    seen, test = load("val"), load("test")
    order = torch.randperm(len(seen.x), generator=Generator().manual_seed(settings.seed))
    train, held = seen.of(order[HELD:]), seen.of(order[:HELD])
    generator = Generator().manual_seed(settings.seed + 1)
    some = test.of(torch.randperm(len(test.x), generator=generator)[: settings.tested])
    truth = presented(some, settings.blur, generator)
    uniform = CELL.uniform((len(truth.x),), SHAPE, like=truth.x, generator=generator)
    apart = held.of(torch.randint(len(held.x), (len(some.x),), generator=generator))
    rows: dict[str, dict[str, float]] = {
        "uniform law": {"nll": 0.0, "error": 0.0, **compared(truth, uniform, settings)},
        "kernel": kernel(train, held, some, settings, generator),
        "floor": {
            "nll": floor(settings.blur),
            "pairs": wasserstein(
                pairs(truth.x), pairs(presented(apart, settings.blur, generator).x)
            ),
        },
    }
    report: dict[str, Any] = {"settings": shown, "results": rows}
    samples = {}
    for name in FIELDS:
        flow, seconds = fit(name, train, held, settings, monitor.stage(name))
        flow.save(settings.out / f"{name}.safetensors")
        context = flow_context(name, truth)
        samples[name] = torch.cat(
            [flow.sample((), part, generator=generator) for part in context.split(settings.chunk)]
        )
        rows[name] = likelihood(flow, truth.x, context, settings)
        rows[name] |= compared(truth, samples[name], settings) | {
            "seconds": seconds, "parameters": sum(p.numel() for p in flow.parameters())
        }  # fmt: skip
        rows[name] |= {"symmetry": symmetry(flow, name, truth, settings, generator)}
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{name}: {rows[name]['nll']:.2f} nats, {seconds:.0f} s", flush=True)
    table = markdown(rows)
    (settings.out / "table.md").write_text(table)
    picture(settings.out / "pairs.png", truth.x, samples)
    monitor.record({f"{name}/nll": rows[name]["nll"] for name in FIELDS})
    monitor.finish()
    print(table)
    return report


def load(part: Literal["val", "test"]) -> Structures:
    """Load a part; an atom is told its element and the edge of its cell, both of unit size."""
    found = crystals.load("perov_5", part)
    edge = ((found.lengths[:, :1] - 4.1) / 0.4).float()[:, None].expand(-1, 5, 1)
    one = nn.functional.one_hot(found.species, HEAVIEST + 1).float()
    return Structures(found.fractional.float(), found.species, torch.cat([one, edge], -1))


def presented(structures: Structures, blur: float, generator: Generator) -> Structures:
    """Return structures as a flow sees them: atoms in random order, shifted at random, blurred."""
    x, kind, context = structures
    order = torch.rand(kind.shape, generator=generator).argsort(-1)
    rows = torch.arange(len(x))[:, None]
    shift = torch.rand(len(x), 1, 3, generator=generator)
    noise = blur * torch.randn(x.shape, generator=generator)
    return Structures(
        CELL.projx(x[rows, order] + shift + noise), kind[rows, order], context[rows, order]
    )


def aligned(x0: Tensor, x1: Tensor, kind: Tensor, *, anchors: int = 1) -> tuple[Tensor, Tensor]:
    """Exchange like atoms of x0, and shift x1, so that the two are near each other.

    If x0 is uniform, and x1 comes in random order and with a random shift, each is so afterwards,
    so that this is a coupling. Differences are taken about those of the first atoms, `anchors` of
    them, of which the best one counts, less their mean; more find the nearest in more cases.
    """
    allowed = (kind[:, ORDERS] == kind[:, None]).all(-1)
    x0 = x0[:, ORDERS]
    apart = x1[:, None] - x0  # (n, orders, 5, 3)
    around = apart[:, :, None] - apart[:, :, :anchors, None]
    around = around - around.round()
    middle = around.mean(3)
    cost, best = (around - middle[:, :, :, None]).square().sum(3).min(2)
    shift = (apart[:, :, :anchors] + middle).gather(2, best[:, :, None]).squeeze(2)
    order = cost.sum(-1).masked_fill(~allowed, torch.inf).argmin(1)
    rows = torch.arange(len(x1))
    return x0[rows, order], CELL.projx(x1 - shift[rows, order][:, None])


def flow_context(name: str, structures: Structures) -> Tensor:
    """Return what a flow is told: a vector for each atom, or one for all."""
    return structures.context if name == "equivariant" else structures.context.flatten(1)


def fit(
    name: str, train: Structures, held: Structures, settings: Settings, monitor: Monitor
) -> tuple[Flow, float]:
    """Match a field from the uniform law to structures."""
    torch.manual_seed(settings.seed)
    told = flow_context(name, train)
    if name == "equivariant":
        field: Field = CrystalField(
            SHAPE,
            particle_context=told.shape[-1],
            hidden_features=settings.hidden,
            layers=settings.layers,
        )
    else:
        field = PeriodicField(
            SHAPE, told.shape[-1], period=1.0, hidden_features=settings.plain_hidden
        )
    transport = ODE(field, RK4(settings.solver_steps), manifold=CELL)
    flow = Flow(ManifoldUniform(CELL, SHAPE), transport, context_shape=tuple(told.shape[1:]))

    def loss(
        model: nn.Module, x: Tensor, kind: Tensor, context: Tensor, *, generator: Generator
    ) -> Tensor:
        assert isinstance(model, Flow)
        seen = presented(Structures(x, kind, context), settings.blur, generator)
        x0 = model.base.sample((len(x),), generator=generator)
        x0, x1 = aligned(x0, seen.x, seen.kind)
        return matching(
            field,
            GeodesicPath(CELL),
            PairedCoupling(),
            x1,
            x0=x0,
            context=flow_context(name, seen),
            generator=generator,
        )

    steps = settings.steps if name == "equivariant" else settings.plain_steps
    began = time.perf_counter()
    Trainer(
        flow,
        loss,
        steps=steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(100, steps // 2), final=0.01),
        clip=1.0,
        ema=0.999 if steps > 1000 else None,
        validate_every=max(1, steps // 10),
        monitor=monitor,
        log_every=100,
        seed=settings.seed,
        progress=False,
    ).fit(tuple(train), tuple(held))
    return flow.eval(), time.perf_counter() - began


@torch.no_grad()
def likelihood(flow: Flow, x: Tensor, context: Tensor, settings: Settings) -> dict[str, float]:
    """Return the negative log-likelihood in nats, its standard error, and what the solver costs."""
    nll = -log_probs(flow, x, context, batch=settings.chunk).double()
    few = slice(settings.checked)
    assert isinstance(flow.transport, ODE)
    exact = flow.with_solver(Dopri5(1e-5, 1e-5))
    gap = nll[few] + exact.log_prob(x[few], context[few])
    return {
        "nll": nll.mean().item(),
        "error": (nll.std() / len(nll) ** 0.5).item(),
        "solver": gap.mean().abs().item(),
    }


@torch.no_grad()
def symmetry(
    flow: Flow, name: str, truth: Structures, settings: Settings, generator: Generator
) -> float:
    """Return the mean change of log q under a shift and another order of the atoms, in nats."""
    some = truth.of(torch.arange(min(settings.checked, len(truth.x))))
    other = presented(some, 0.0, generator)
    log_q = flow.log_prob(some.x, flow_context(name, some))
    return (flow.log_prob(other.x, flow_context(name, other)) - log_q).abs().mean().item()


def floor(blur: float) -> float:
    """Return the entropy of a known structure that is blurred and shifted at random, in nats.

    For each axis the four differences of coordinates have covariance blur^2 (1 + 1 1').
    """
    return 3 * (0.5 * math.log(5) + 4 * (math.log(blur) + 0.5 * math.log(2 * math.pi * math.e)))


def kernel(
    train: Structures, held: Structures, test: Structures, settings: Settings, generator: Generator
) -> dict[str, float]:
    """Return the figure of a kernel density of structures whose atoms stand at known sites."""

    def off(x: Tensor) -> Tensor:
        u = x - SITES
        u = u - u.round()
        return (u - u.mean(1, keepdim=True)).flatten(1)

    def log_q(x: Tensor, width: float) -> Tensor:
        far = torch.cdist(off(x), off(train.x), compute_mode="donot_use_mm_for_euclid_dist")
        log_kernel = -0.5 * (far / width).square() - 12 * math.log(width)
        constant = math.log(len(train.x)) + 6 * math.log(2 * math.pi) + 1.5 * math.log(5)
        return log_kernel.logsumexp(1) - constant

    noisy = lambda x: x + settings.blur * torch.randn(x.shape, generator=generator)
    chosen, tested = noisy(held.x), noisy(test.x)
    widths = [settings.blur * 1.1**k for k in range(12)]
    width = max(widths, key=lambda width: log_q(chosen, width).mean().item())
    nll = -log_q(tested, width).double()
    return {"nll": nll.mean().item(), "error": (nll.std() / len(nll) ** 0.5).item()}


def pairs(x: Tensor) -> Tensor:
    """Return the shortest distances of all pairs of atoms, in parts of a cell, sorted."""
    i, j = torch.triu_indices(5, 5, 1)
    return torch.linalg.vector_norm(CELL.logmap(x[:, i], x[:, j]), dim=-1).flatten().sort().values


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the 1-Wasserstein distance of equally many sorted numbers."""
    return (a - b).abs().mean().item()


def compared(truth: Structures, x: Tensor, settings: Settings) -> dict[str, float]:
    """Compare structures drawn for the same elements as those of the test part."""
    one, other = aligned(x, truth.x, truth.kind, anchors=5)
    off = CELL.logmap(one, other).square().sum(-1).mean(-1).sqrt()
    return {
        "pairs": wasserstein(pairs(x), pairs(truth.x)),
        "within": (off < settings.near).float().mean().item(),
        "off, median": off.median().item(),
    }


def markdown(rows: dict[str, dict[str, float]]) -> str:
    lines = [
        "| law | nll, nats | pairs | within | symmetry, nats | solver, nats | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        error = f" +- {row['error']:.2f}" if row.get("error") else ""
        cells = [f"{row['nll']:.2f}{error}"]
        for key, form in dict(
            pairs=".4f", within=".3f", symmetry=".1e", solver=".1e", seconds=".0f"
        ).items():
            cells.append(format(row[key], form) if key in row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(path: Path, truth: Tensor, samples: dict[str, Tensor]) -> None:
    """Draw histograms of the shortest distances of pairs, of test structures and of samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(samples), figsize=(4.6 * len(samples), 3.2), sharey=True, layout="constrained"
    )
    for axis, (name, x) in zip(axes, samples.items(), strict=True):
        style: dict[str, Any] = dict(bins=100, range=(0, 0.87), density=True)
        axis.hist(pairs(truth).numpy(), **style, color="0.8", label="test structures, blurred")
        axis.hist(pairs(x).numpy(), **style, histtype="step", color="tab:blue", label="drawn")
        axis.set_title(f"{name} field", fontsize=10)
        axis.set_xlabel("shortest distance of a pair of atoms, parts of a cell", fontsize=8)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
    axes[0].set_ylabel("density", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
