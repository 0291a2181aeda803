"""Flows on the Stanford bunny and on Spot the cow, for densities that are known exactly.

    python -m experiments.mesh                       # the published cases, an hour
    python -m experiments.mesh --cases spot-10-diffusion bunny-50-biharmonic
    python -m experiments.mesh --every               # 2 meshes, 3 targets, 2 distances: three hours
    python -m experiments.mesh --smoke               # the same road in seconds

The target is the positive part of an eigenfunction of the surface's Laplacian, the k-th after the
constant one, turned so that its largest value is positive. It is linear on each face, so its mass,
its entropy and draws from it are exact; and it is zero on about half of the surface, in cells that
shrink with k, so no flow fits it perfectly. Flow matching follows gradients of a spectral distance
between ends that optimal transport has paired; the network sees waves of the three coordinates and
the first eigenfunctions, and `SurfaceField` turns what it says into a flow that keeps its mass.

Reported, in nats and against the area of the surface:

    nll       mean -log q of fresh draws of the target
    kl        nll less that of the target itself on the same draws: E[log p - log q], 0 is perfect
    mass      the integral of q by two random points in each face; a nll without mass 1 is none
    outside   share of the flow's draws where the target is zero
    solver    change of the mean log q with twice the steps of the solver

beside the uniform law, the exact entropy, and Riemannian flow matching as published, where that is
known; whether its targets were thresholded and scaled as here is not.

Everything lands in runs/mesh/: report.json, table.md, a picture and the weights of each flow.

Source: Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, section 5;
Rozen et al. (2021), Moser flow, arXiv 2108.08052, for densities made of eigenfunctions.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, plots
from cflow.base import ManifoldUniform
from cflow.data import meshes
from cflow.field import SurfaceField, TimedMLP
from cflow.manifold import Biharmonic, Diffusion, Mesh
from cflow.matching import (
    OTCoupling,
    PremetricPath,
    Regression,
    SquaredEuclidean,
    squared_error,
)
from cflow.ode import RK4
from cflow.samples import log_probs
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE

PUBLISHED = {  # Chen and Lipman (2024), test nll
    "spot-100-biharmonic": "1.29 +- 0.05",
    "spot-100-diffusion": "1.08 +- 0.05",
    "bunny-10-biharmonic": "1.06 +- 0.05",
    "bunny-10-diffusion": "1.16 +- 0.02",
}
EVERY = tuple("-".join(case) for case in product(
    ("bunny", "spot"), ("10", "50", "100"), ("biharmonic", "diffusion"),
))  # fmt: skip
TURNS = {"bunny": 0.0, "spot": 60.0}  # degrees about the second axis, for a good view


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/mesh")
    cases: tuple[str, ...] = tuple(PUBLISHED)
    every: bool = False  # all cases instead
    diffusion: float = 0.1  # time of the diffusion distance, in units of length^2
    waves: int = 64  # random waves of the coordinates that the network sees
    frequency: float = 4.0  # their spread, in radians for a unit of length
    eigenfunctions: int = 20  # that the network sees
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    steps: int = 12_000  # of the optimiser
    batch: int = 1024
    lr: float = 4e-3
    paths: int = 1024  # that are coupled and simulated together
    times: int = 32  # points of each
    path_steps: int = 32
    together: int = 32  # such sets in a pool, whose points are shuffled and used once
    solver_steps: int = 64  # of RK4; with 32 a few points of ten thousand go astray at edges
    tested: int = 20_000  # draws that judge
    drawn: int = 5000  # draws from the flow
    checked: int = 2000  # tested ones, solved again with twice the steps
    chunk: int = 4000  # points solved at once
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    cases=("spot-10-diffusion",), waves=4, eigenfunctions=2, hidden=(8,), steps=4, batch=32,
    paths=32, times=4, path_steps=4, together=2, solver_steps=2, tested=50, drawn=50, checked=5,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "results": {}}
    for case in EVERY if settings.every else settings.cases:
        name, k, premetric = case.split("-")
        distance = Biharmonic() if premetric == "biharmonic" else Diffusion(settings.diffusion)
        mesh = Mesh(*meshes.load(name), premetric=distance)
        target = Eigendensity(mesh, int(k))
        start = time.monotonic()
        flow = fit(target, settings)
        seconds = time.monotonic() - start
        flow.save(settings.out / f"{case}.safetensors")
        with torch.no_grad():
            drawn = flow.sample((settings.drawn,), generator=Generator().manual_seed(settings.seed))
        q = at_faces(flow, mesh, settings)
        row: dict[str, Any] = measured(flow, target, drawn, q, settings)
        row |= {"training": seconds, "published": PUBLISHED.get(case, "")}
        report["results"][case] = row
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        (settings.out / "table.md").write_text(markdown(report["results"]))
        middle = mesh.vertices[mesh.faces].mean(1)
        plots.surface(
            settings.out / f"{case}.png",
            mesh.vertices,
            mesh.faces,
            {f"{name}, {k}": target.log_prob(middle).exp(), "density of the flow": q.mean(1)},
            points={"draws from it": drawn},
            turn=TURNS[name],
            common=True,
        )
        print(f"{case}: kl {row['kl']:.4f} +- {row['error']:.4f} nats", flush=True)
    print((settings.out / "table.md").read_text())
    return report


class Eigendensity:
    """The positive part of an eigenfunction, as a density that is linear on pieces of faces.

        p(x) = max(phi_k(x), 0) / Z

    Faces that the zero line crosses are cut into one or two triangles of the positive side. On a
    triangle with values f_i at its corners the density mixes three, each proportional to one
    barycentric coordinate: Dirichlet laws (2, 1, 1), whose masses are area * f_i / 3.

    Args:
        mesh: The surface.
        k: Which eigenfunction; 0 is the constant one.
    """

    def __init__(self, mesh: Mesh, k: int) -> None:
        values = mesh.spectrum.eigenfunctions[:, k]
        self.mesh = mesh
        self.values = values * values[values.abs().argmax()].sign()
        self.corners, self.at = self._positive()
        self.area = areas(self.corners)
        self.mass = self.area[:, None] * self.at / 3
        self.log_total = float(self.mass.sum().log())

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mesh.interpolate(x, self.values).clamp_min(0).log() - self.log_total

    def sample(self, n: int, *, generator: Generator) -> Tensor:
        """Draw points `(n, 3)`, float64."""
        share = torch.rand(n, dtype=self.mass.dtype, generator=generator)
        sums = self.mass.flatten().cumsum(0)
        picked = torch.searchsorted(sums, share * sums[-1]).clamp(max=len(sums) - 1)
        exponential = -torch.rand(n, 4, dtype=self.mass.dtype, generator=generator).log()
        gamma = exponential[:, :3].scatter_add(1, picked[:, None] % 3, exponential[:, 3:])
        weight = gamma / gamma.sum(1, keepdim=True)
        return (weight[..., None] * self.corners[picked // 3]).sum(1)

    @property
    def entropy(self) -> float:
        """In nats against the area: the integral of -p log p, by Gauss's rule on each triangle."""
        node, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(16))
        u, v = torch.meshgrid((node + 1) / 2, (node + 1) / 2, indexing="ij")
        weight = 2 * u * weight[:, None] * weight / 4  # the square folded to a triangle
        f = self.at @ torch.stack([1 - u, u * (1 - v), u * v]).flatten(1)
        total = self.area @ (torch.xlogy(f, f) @ weight.flatten())
        return self.log_total - float(total) / math.exp(self.log_total)

    def _positive(self) -> tuple[Tensor, Tensor]:
        """Return triangles that make up where the function is positive, and its values there."""
        points, values = self.mesh.vertices[self.mesh.faces], self.values[self.mesh.faces]
        positive = values > 0
        number = positive.sum(1)
        # first comes the corner whose sign is not that of the other two
        alone = torch.where(number == 1, positive.int().argmax(1), positive.int().argmin(1))
        order = (alone[:, None] + torch.arange(3)) % 3
        values = values.gather(1, order)
        points = points.gather(1, order[..., None].expand(-1, -1, 3))
        share = values[:, :1] / (values[:, :1] - values[:, 1:])
        share = torch.where((number % 3 > 0)[:, None], share, 0.0)  # others are not cut
        cut = points[:, :1] + share[..., None] * (points[:, 1:] - points[:, :1])
        a, b, c = points.unbind(1)
        p, q = cut.unbind(1)
        f, g, h = values.unbind(1)
        zero = torch.zeros_like(f)
        pieces = [
            (number == 3, (a, b, c), (f, g, h)),
            (number == 1, (a, p, q), (f, zero, zero)),
            (number == 2, (p, b, c), (zero, g, h)),
            (number == 2, (p, c, q), (zero, h, zero)),
        ]
        corners = [torch.stack(three, 1)[where] for where, three, _ in pieces]
        return torch.cat(corners), torch.cat([torch.stack(at, 1)[on] for on, _, at in pieces])


class Seen(nn.Module):
    """Show a network the coordinates of a point, random waves of them, and eigenfunctions.

    Waves are smooth over edges, where eigenfunctions have kinks, and with them the divergence.
    """

    def __init__(self, mesh: Mesh, settings: Settings) -> None:
        super().__init__()
        self.mesh = mesh
        self.outputs = 3 + 2 * settings.waves + settings.eigenfunctions
        generator = Generator().manual_seed(settings.seed)
        ways = settings.frequency * torch.randn(3, settings.waves, generator=generator)
        scale = math.exp(mesh.log_volume((3,)) / 2)  # a mean square of 1
        functions = scale * mesh.spectrum.eigenfunctions[:, 1 : 1 + settings.eigenfunctions]
        self.ways: Tensor
        self.functions: Tensor
        self.register_buffer("ways", ways)
        self.register_buffer("functions", functions.float())

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.ways
        return torch.cat(
            [x, phase.sin(), phase.cos(), self.mesh.interpolate(x, self.functions)], -1
        )


@dataclass(frozen=True, eq=False)
class PathPool:
    """Batches of times, points and velocities, from pools of many paths.

    A pool has to be large: points of one path say nearly the same, and a network that sees a few
    thousand paths at a time learns where those happen to run.
    """

    target: Eigendensity
    settings: Settings

    def __len__(self) -> int:
        return self.settings.together * self.settings.paths * self.settings.times

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Give batches without end."""
        each = len(self) // batch
        first, skip = divmod(start, each)
        for index in count(first):
            generator = Generator().manual_seed(1_000_003 * seed + index)
            sets = [self._simulated(generator) for _ in range(self.settings.together)]
            points = [torch.cat(parts) for parts in zip(*sets, strict=True)]
            order = torch.randperm(len(self), generator=generator)[: each * batch]
            for rows in islice(order.split(batch), skip, None):
                yield tuple(part[rows] for part in points)
            skip = 0

    def _simulated(self, generator: Generator) -> tuple[Tensor, ...]:
        mesh, n, times = self.target.mesh, self.settings.paths, self.settings.times
        x0 = mesh.uniform((n,), (3,), like=torch.zeros(()), generator=generator)
        x1 = self.target.sample(n, generator=generator).to(x0)
        cost = lambda x0, x1: SquaredEuclidean()(mesh.embed(x0), mesh.embed(x1))
        pairs = OTCoupling(cost=cost)(x0, x1)
        t = (torch.arange(times)[:, None] + torch.rand(times, n, generator=generator)) / times
        path = PremetricPath(mesh, steps=self.settings.path_steps)
        point = path.trajectory(x0[pairs.i], x1[pairs.j], t)
        return tuple(part.flatten(0, 1) for part in point)


def fit(target: Eigendensity, settings: Settings) -> Flow:
    """Match a field from the uniform law to the target."""
    torch.manual_seed(settings.seed)
    mesh = target.mesh
    net = TimedMLP(3, 3, seen=Seen(mesh, settings), hidden_features=settings.hidden, zero_last=True)
    field = SurfaceField(net, mesh)

    def loss(model: nn.Module, t: Tensor, x: Tensor, v: Tensor, *, generator: Generator) -> Tensor:
        return squared_error(field, Regression(t, x, v, None, None))

    Trainer(
        field,
        loss,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(200, settings.steps // 10), final=0.01),
        clip=1.0,
        ema=0.999 if settings.steps > 1000 else None,
        seed=settings.seed,
        progress=False,
    ).fit(PathPool(target, settings))
    ode = ODE(field, RK4(settings.solver_steps), manifold=mesh)
    return Flow(ManifoldUniform(mesh, 3), ode).eval()


@torch.no_grad()
def measured(
    flow: Flow, target: Eigendensity, drawn: Tensor, q: Tensor, settings: Settings
) -> dict[str, float]:
    """Return the figures named above, those that are means with their standard errors."""
    start = time.monotonic()
    x = target.sample(settings.tested, generator=Generator().manual_seed(settings.seed + 12_345))
    log_q = log_prob(flow, x, settings)
    seconds = time.monotonic() - start
    gap = target.log_prob(x) - log_q
    area = areas(target.mesh.vertices[target.mesh.faces])
    assert isinstance(flow.transport, ODE)
    ode, some = flow.transport, x[: settings.checked]
    finer = ODE(ode.field, RK4(2 * settings.solver_steps), manifold=ode.manifold)
    moved = log_prob(Flow(flow.base, finer), some, settings) - log_q[: len(some)]
    return {
        "uniform": target.mesh.log_volume((3,)),
        "entropy": target.entropy,
        "nll": -log_q.mean().item(),
        "nll error": (log_q.std() / len(x) ** 0.5).item(),
        "kl": gap.mean().item(),
        "error": (gap.std() / len(x) ** 0.5).item(),
        "mass": (area * q.mean(1)).sum().item(),
        "mass error": (area * q.diff(dim=1).squeeze(1) / 2).square().sum().sqrt().item(),
        "outside": target.log_prob(drawn.double()).isinf().double().mean().item(),
        "solver": moved.mean().item(),
        "likelihood": seconds,
    }


@torch.no_grad()
def at_faces(flow: Flow, mesh: Mesh, settings: Settings) -> Tensor:
    """Return the density at two random points of each face, `(F, 2)`."""
    generator = Generator().manual_seed(settings.seed)
    root, one = torch.rand(2, len(mesh.faces), 2, dtype=torch.float64, generator=generator)
    root = root.sqrt()
    weight = torch.stack([1 - root, root * one, root * (1 - one)], -1)
    x = weight @ mesh.vertices[mesh.faces]
    return log_prob(flow, x.flatten(0, 1), settings).exp().reshape(-1, 2)


def log_prob(flow: Flow, x: Tensor, settings: Settings) -> Tensor:
    return log_probs(flow, x.float(), batch=settings.chunk).double()


def areas(triangles: Tensor) -> Tensor:
    a, b, c = triangles.unbind(1)
    return 0.5 * torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=-1)


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of the results."""
    lines = [
        "| case | uniform | published | nll | exact | kl | mass | outside | solver | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, row in rows.items():
        lines.append(
            f"| {case.replace('-', ', ')} | {row['uniform']:.3f} | {row['published']} "
            f"| {row['nll']:.3f} +- {row['nll error']:.3f} | {row['entropy']:.3f} "
            f"| {row['kl']:.4f} +- {row['error']:.4f} | {row['mass']:.4f} +- "
            f"{row['mass error']:.4f} | {row['outside']:.3f} | {row['solver']:+.4f} "
            f"| {row['training']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
