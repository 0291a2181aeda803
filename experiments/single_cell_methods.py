"""The cells, and how a field learns to carry each snapshot to the next."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cflow.data import single_cell
from cflow.field import LinearSchedule, MLPField
from cflow.matching import (
    AffinePath,
    BridgePath,
    BridgeProcess,
    IndependentCoupling,
    OTCoupling,
    SplinePath,
    along,
    chain,
    snapshot_matching,
    spline_matching,
    unit_times,
)
from cflow.ode import RK4
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE

if TYPE_CHECKING:
    from experiments.single_cell import Settings


class Case(NamedTuple):
    """One training set: a set of cells, and the snapshot that is left out, if any."""

    name: str
    left: int | None


class Cells(NamedTuple):
    """Hold scaled snapshots, times in [0, 1], the scale, and which is left out."""

    snapshots: list[Tensor]
    times: list[float]
    scale: float
    left: int | None


def load(case: Case, most: int | None = None) -> Cells:
    """Load snapshots, of each at most so many cells, centred and scaled by those that are seen."""
    found, times = single_cell.load(case.name)
    found = [x[:most] for x in found]
    pooled = torch.cat([x for k, x in enumerate(found) if k != case.left])
    mean = pooled.mean(0)
    scale = (pooled - mean).square().mean().sqrt().item()
    scaled = [((x - mean) / scale).float() for x in found]
    return Cells(scaled, unit_times(times), scale, case.left)


class Trained(nn.Module):
    """What a method learns: a velocity, and for bridges a score."""

    def __init__(self, features: int, settings: Settings, *, bridge: bool) -> None:
        super().__init__()
        self.field = MLPField(features, hidden_features=settings.hidden)
        self.score = MLPField(features, hidden_features=settings.hidden) if bridge else None


def pair_loss(cells: Cells, method: str, settings: Settings) -> Callable[..., Tensor]:
    """Match pairs of neighbouring snapshots."""
    blurred = AffinePath(LinearSchedule(), noise=settings.sigma)
    path = BridgePath(settings.diffusion) if method == "sf2m" else blurred
    coupling = IndependentCoupling() if method == "independent" else OTCoupling()

    def loss(model: Trained, row: Tensor, *, generator: Generator) -> Tensor:
        return snapshot_matching(
            model.field,
            path,
            coupling,
            cells.snapshots,
            times=cells.times,
            leave_out=cells.left,
            batch=settings.batch,
            score=model.score,
            generator=generator,
        )

    return loss


def spline_loss(cells: Cells, settings: Settings) -> Callable[..., Tensor]:
    """Match cubic splines through chains: one cell of each snapshot, linked by optimal plans."""
    seen = [k for k in range(len(cells.times)) if k != cells.left]
    snapshots, path = [cells.snapshots[k] for k in seen], SplinePath([cells.times[k] for k in seen])
    pairs = settings.batch * (len(seen) - 1)  # chains as many as the other methods have pairs

    def loss(model: Trained, row: Tensor, *, generator: Generator) -> Tensor:
        index = chain(OTCoupling(), snapshots, n=settings.batch, generator=generator)
        points = along(snapshots, index).repeat(len(seen) - 1, 1, 1)
        blur = torch.randn(pairs, 1, points.shape[2], generator=generator)  # shifts a whole chain
        points = points + settings.sigma * blur
        return spline_matching(model.field, path, points, generator=generator)

    return loss


def peer_loss(cells: Cells, settings: Settings) -> Callable[..., Tensor]:
    """Take pairs, points and targets from torchcfm, interval by interval as its notebooks do."""
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=settings.sigma)
    seen = [k for k in range(len(cells.times)) if k != cells.left]

    def loss(model: Trained, row: Tensor, *, generator: Generator) -> Tensor:
        parts = []
        for a, b in pairwise(seen):
            start, gap = cells.times[a], cells.times[b] - cells.times[a]
            x0, x1 = (
                x[torch.randint(len(x), (settings.batch,), generator=generator)]
                for x in (cells.snapshots[a], cells.snapshots[b])
            )
            t, x, u = matcher.sample_location_and_conditional_flow(x0, x1)[:3]
            parts.append((start + gap * t, x, u / gap))
        t, x, u = (torch.cat(part) for part in zip(*parts, strict=True))
        return (model.field(t, x) - u).square().mean(1)

    return loss


def fit(cells: Cells, method: str, seed: int, settings: Settings) -> tuple[Trained, list[Any]]:
    """Train by one method; the start of the field depends on the seed alone."""
    torch.manual_seed(seed)  # torchcfm draws its times and noise from it
    np.random.seed(seed)  # noqa: NPY002  and its pairs from NumPy's
    model = Trained(cells.snapshots[0].shape[1], settings, bridge=method == "sf2m")
    if method == "torchcfm ot":
        loss = peer_loss(cells, settings)
    elif method == "spline":
        loss = spline_loss(cells, settings)
    else:
        loss = pair_loss(cells, method, settings)
    trained = Trainer(
        model,
        loss,
        steps=settings.steps,
        batch=1,
        lr=settings.lr,
        schedule=CosineDecay(warmup=100),
        ema=0.99,
        log_every=100,
        seed=seed,
        progress=False,
    ).fit(torch.zeros(1, 1))  # only counts: every batch is drawn anew
    return model, trained.history


def push(model: Trained, cells: Cells, a: int, b: int, settings: Settings) -> dict[str, Tensor]:
    """Carry the cells of snapshot a to each of the times a + 1, ..., b, by all that was learned."""
    x, ts = cells.snapshots[a], cells.times[a : b + 1]
    steps = settings.solver_steps * len(cells.times)
    with torch.no_grad():
        found = {"": ODE(model.field, RK4(steps=settings.solver_steps)).trajectory(x, ts)}
        if model.score is not None:
            process = BridgeProcess(model.field, model.score, settings.diffusion)
            generator = Generator().manual_seed(0)
            found[" sde"] = process.trajectory(x, ts, steps=steps, generator=generator)
    return {name: path[1:] for name, path in found.items()}
