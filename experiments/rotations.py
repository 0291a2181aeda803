"""Flows on the rotations of space, SO(3), for a law whose density is known.

    python -m experiments.rotations            # about ten minutes on one core
    python -m experiments.rotations --smoke    # the same road in seconds

The law mixes four wrapped normals of several widths, two of them wide about some axes and narrow
about others, as the poses are that an object may have in a picture. Three flows from Haar's law are
fitted to fresh draws, so that nothing can be overfitted:

    matrices      flow matching along geodesics, coupled by optimal transport, on 3 x 3 matrices
    quaternions   the same on unit quaternions; the field sees q as a matrix, and so is odd
    likelihood    maximum likelihood of an ODE on matrices, adaptive steps and a charge on kinetic
                  energy; a thirteenth of the optimiser steps, of half the batch

The figure is the divergence E[log p - log q] over new draws with its standard error, in nats: zero
is perfect, wanted is below 0.05. Beside it stand Haar's law and one wrapped normal, fitted. Also
reported: by how much log q(-q) differs from log q(q) for quaternions ("sign"), how far drawn points
are off the manifold ("off"), and the mean change of log q by a solve at a tolerance of 1e-6
("solver").

Everything lands in runs/rotations/: report.json, table.md, rotations.png, weights, an offline wandb
run. In the picture a rotation is a dot: its place on the map is where the first axis goes, and its
colour says where the second one points from there, east, north, west or south.

Source: Murphy et al. (2021), Implicit-PDF, arXiv 2106.05965, for such laws and pictures; Leach et
al. (2022), Denoising diffusion probabilistic models on SO(3); Chen and Lipman (2024), arXiv
2302.03660, for matching along geodesics.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, nll
from cflow.base import Base, Components, ManifoldUniform, WrappedNormal
from cflow.field import FrameField, KineticEnergy, TimedMLP
from cflow.manifold import Manifold, Quaternions, Rotations
from cflow.matching import GeodesicCost, GeodesicPath, OTCoupling, RiemannianError, matching
from cflow.ode import RK4, Dopri5
from cflow.train import CosineDecay, Trainer, WandbMonitor
from cflow.transport import ODE

SPACE, UNIT = Rotations(), Quaternions()
WEIGHTS = (0.2, 0.3, 0.3, 0.2)
SCALES = (0.12, 0.25, (0.5, 0.5, 0.1), (0.1, 0.6, 0.2))  # radians, about each axis
WANTED = 0.05


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/rotations")
    flows: tuple[str, ...] = ("matrices", "quaternions", "likelihood")
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    steps: int = 8000  # of the training by matching
    likelihood_steps: int = 600  # of those by likelihood, with half the batch
    batch: int = 256
    lr: float = 2e-3
    solver_steps: int = 12  # of RK4
    tested: int = 20_000  # draws that judge
    checked: int = 500  # of them, solved at a tight tolerance
    shown: int = 3000  # dots of a map
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    hidden=(16,), steps=8, likelihood_steps=2, batch=16, solver_steps=4, tested=40, checked=4,
    shown=50,
)  # fmt: skip


class OfRotation(nn.Module):
    """Let coefficients see a unit quaternion as the matrix of its rotation, q as -q."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(t, UNIT.to_matrix(x), context)


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-rotations", folder=settings.out, settings=shown)
    law = mixture()
    x = law.sample((settings.tested,), generator=Generator().manual_seed(settings.seed + 1))
    log_p = law.log_prob(x).double()
    entropy = -log_p.mean().item()
    report: dict[str, Any] = {"settings": shown, "entropy": entropy, "wanted": WANTED}
    rows = {"Haar's law": gap(log_p, ManifoldUniform(SPACE, (3, 3)), x)}
    single = WrappedNormal(SPACE, (3, 3), mean=x[0])
    rows["one wrapped normal"] = fit(single, law, settings, monitor, "one wrapped normal")
    rows["one wrapped normal"] |= gap(log_p, single, x)
    flows: dict[str, Flow] = {}
    for name in settings.flows:
        torch.manual_seed(settings.seed)
        flow = flows[name] = built(name, settings)
        rows[name] = fit(flow, law, settings, monitor, name)
        rows[name] |= gap(log_p, flow, given(name, x)) | checks(name, flow, x, settings)
        flow.save(settings.out / f"{name}.safetensors")
        report["results"] = rows
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        print(
            f"{name:12s} KL {rows[name]['kl']:.4f} +- {rows[name]['error']:.4f} nats (wanted "
            f"below {WANTED}), {rows[name]['seconds']:.0f} s",
            flush=True,
        )
    table = markdown(rows)
    (settings.out / "table.md").write_text(table)
    picture(settings.out / "rotations.png", law, flows, settings)
    monitor.record({f"{name}/kl": row["kl"] for name, row in rows.items()})
    monitor.finish()
    print(f"entropy {entropy:.4f} nats\n{table}")
    return report


def mixture() -> Components:
    """Return the law whose density is known."""
    like = torch.zeros((), dtype=torch.get_default_dtype())
    means = SPACE.uniform((4,), (3, 3), like=like, generator=Generator().manual_seed(2))
    parts = [
        WrappedNormal(SPACE, (3, 3), mean=mean, scale=torch.tensor(scale), learned=False)
        for mean, scale in zip(means, SCALES, strict=True)
    ]
    return Components(parts, logits=torch.tensor(WEIGHTS).log(), learned=False)


def built(name: str, settings: Settings) -> Flow:
    """Return a flow from Haar's law, of matrices or of quaternions."""
    net = TimedMLP((3, 3), 3, hidden_features=settings.hidden, zero_last=True)
    if name == "likelihood":  # fixed steps would be cheated: eight of Midpoint came to -8000 nats
        transport = ODE(
            FrameField(net, SPACE), Dopri5(1e-3, 1e-3), manifold=SPACE, cost=KineticEnergy(0.01)
        )
        return Flow(ManifoldUniform(SPACE, (3, 3)), transport)
    space, shape = (UNIT, (4,)) if name == "quaternions" else (SPACE, (3, 3))
    field = FrameField(OfRotation(net) if name == "quaternions" else net, space)
    transport = ODE(field, RK4(settings.solver_steps), manifold=space)
    return Flow(ManifoldUniform(space, shape), transport)


def given(name: str, x: Tensor) -> Tensor:
    """Return rotation matrices as the points of a flow; the signs of quaternions alternate."""
    if name != "quaternions":
        return x
    q = UNIT.from_matrix(x)
    q[::2] *= -1
    return q


def fit(
    model: Flow | Base, law: Components, settings: Settings, monitor: WandbMonitor, name: str
) -> dict[str, Any]:
    """Train on fresh draws, by matching or by likelihood."""
    matched = name in ("matrices", "quaternions")

    def loss(model: nn.Module, rows: Tensor, *, generator: Generator) -> Tensor:
        x1 = law.sample((len(rows),), generator=generator)
        if isinstance(model, Base):
            return -model.log_prob(x1)
        assert isinstance(model, Flow)
        if not matched:
            return nll(model, x1)
        space = cast(Manifold, ode_of(model).manifold)
        return matching(
            ode_of(model).field,
            GeodesicPath(space),
            OTCoupling(cost=angles),
            given(name, x1),
            x0=model.base.sample((len(x1),), generator=generator),
            error=RiemannianError(space),
            generator=generator,
        )

    steps = settings.steps if matched else settings.likelihood_steps
    began = time.perf_counter()
    Trainer(
        model,
        loss,
        steps=steps,
        batch=settings.batch if matched else settings.batch // 2,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(100, steps // 4), final=0.01),
        clip=None if matched else 5.0,
        ema=0.999 if matched else 0.99,
        monitor=monitor.stage(name),
        log_every=100,
        seed=settings.seed,
        progress=False,
    ).fit(torch.zeros(settings.batch, 1))  # only counts: every batch is drawn anew
    model.eval()
    count = sum(p.numel() for p in model.parameters())
    return {"seconds": time.perf_counter() - began, "parameters": count}


def angles(x0: Tensor, x1: Tensor) -> Tensor:
    """Return squared angles between rotations; quaternions say them in a tenth of the time."""
    if x0.dim() == 3:
        x0, x1 = UNIT.from_matrix(x0), UNIT.from_matrix(x1)
    return GeodesicCost(UNIT)(x0, x1)


@torch.no_grad()
def gap(log_p: Tensor, model: Flow | Base, x: Tensor) -> dict[str, float]:
    """Return the divergence of the law from a model, and its standard error, in nats."""
    log_q = torch.cat([model.log_prob(part).double() for part in x.split(1000)])
    apart = log_p - log_q
    return {"kl": apart.mean().item(), "error": (apart.std() / len(apart) ** 0.5).item()}


@torch.no_grad()
def checks(name: str, flow: Flow, x: Tensor, settings: Settings) -> dict[str, float]:
    """Return what should be zero: see the head of this file."""
    some = given(name, x[: settings.checked])
    ode, log_q = ode_of(flow), flow.log_prob(some)
    exact = Flow(flow.base, ODE(ode.field, Dopri5(1e-6, 1e-6), manifold=ode.manifold))
    found = {"solver": (exact.log_prob(some) - log_q).abs().mean().item()}
    if name == "quaternions":
        found["sign"] = (flow.log_prob(-some) - log_q).abs().max().item()
    drawn = flow.sample((settings.checked,), generator=Generator().manual_seed(3))
    if name == "quaternions":
        return found | {"off": (drawn.norm(dim=-1) - 1).abs().max().item()}
    return found | {"off": (drawn.mT @ drawn - torch.eye(3)).abs().max().item()}


def ode_of(flow: Flow) -> ODE:
    assert isinstance(flow.transport, ODE)
    return flow.transport


def markdown(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| model | KL, nats | solver | sign | off | seconds |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        small = [f"{row[key]:.1e}" if key in row else "" for key in ("solver", "sign", "off")]
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        cells = [f"{row['kl']:.4f} +- {row['error']:.4f}", *small, seconds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def picture(path: Path, law: Components, flows: dict[str, Flow], settings: Settings) -> None:
    """Draw samples of the law and of the flows: the first axis as a map, the second as a colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seeded = Generator().manual_seed(settings.seed + 2)
    panels = {"the law": law.sample((settings.shown,), generator=seeded)}
    for name, flow in flows.items():
        x = flow.sample((settings.shown,), generator=seeded)
        panels[f"flow: {name}"] = UNIT.to_matrix(x) if name == "quaternions" else x
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(9.5, 2.7 * rows), squeeze=False, layout="constrained",
        subplot_kw={"projection": "mollweide"},
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=False):
        longitude, latitude, heading = placed(x)
        style: dict[str, Any] = dict(s=3, lw=0, cmap="hsv", vmin=-180, vmax=180, alpha=0.7)
        axis.scatter(longitude, latitude, c=heading, **style)
        axis.set_title(title, fontsize=10)
        axis.grid(visible=True, lw=0.3, alpha=0.6)
        axis.tick_params(labelbottom=False, labelsize=6)
    bar = figure.colorbar(
        axes.flat[0].collections[0], ax=axes, shrink=0.7, ticks=(-180, -90, 0, 90, 180)
    )
    bar.ax.set_yticklabels(["west", "south", "east", "north", "west"])
    bar.set_label("where the second axis points", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def placed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return longitude and latitude of the first axis, and the heading of the second in degrees."""
    first, second = x[..., 0].double(), x[..., 1].double()
    up = torch.tensor([0.0, 0.0, 1.0], dtype=first.dtype).expand_as(first)
    east = nn.functional.normalize(torch.linalg.cross(up, first), dim=-1)
    north = torch.linalg.cross(first, east)
    heading = torch.atan2((second * north).sum(-1), (second * east).sum(-1))
    longitude = torch.atan2(first[..., 1], first[..., 0])
    return longitude, first[..., 2].clamp(-1, 1).asin(), torch.rad2deg(heading)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
