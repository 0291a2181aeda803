"""One problem, one seed: train everything, draw with few evaluations, measure.

flow matching          independent pairs: the teacher, which is also the 1-rectified flow
OT                     pairs by optimal transport within a batch
2-rectified            trained on pairs that the teacher made; 3-rectified on those of that one
distilled              the teacher, trained on its own pairs at the first Euler step alone
mean flow              the average velocity, trained from nothing, on independent pairs
mean flow, distilled   the same with the teacher's velocity for a target
layers                 a flow of layers by maximum likelihood: one evaluation, no steps
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cflow import Flow, load, nll
from cflow.manifold import Euclidean
from cflow.matching import (
    Coupling,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    matching,
    mean_flow,
)
from cflow.ode import RK4, Euler, Heun, Solver
from cflow.samples import calibrate, draw, path_measures
from cflow.train import CosineDecay, Trainer, distil, reflow
from cflow.transport import ODE, Leap, Transport, instantaneous, with_solver
from experiments.fewstep.problems import Problem

STEPS = (1, 2, 4, 8, 100)
LEAPS = (1, 2, 4, 8)
PATH = LinearPath()

Ends = Callable[[int, Generator], tuple[Tensor, Tensor]]


def study(problem: Problem, seed: int, folder: Path) -> dict[str, Any]:
    """Return all figures; whatever was trained lies in the folder, and is not trained again."""
    torch.manual_seed(seed)
    models = trained(problem, seed, folder)
    rows = {name: measured(problem, flow, seed, name) for name, flow in models.items()}
    return {
        "problem": problem.name,
        "seed": seed,
        "unit": problem.unit,
        "floor": problem.floor(seed),
        "rows": rows,
        "sizes": asdict(problem.sizes),
    }


def trained(problem: Problem, seed: int, folder: Path) -> dict[str, Flow]:
    """Train all models, each from the seed."""
    sizes = problem.sizes
    fit = Fit(problem, seed, folder)
    event_dim = len(problem.event)

    def carried(transport: Transport) -> Flow:
        return Flow(problem.base, transport)

    def by_matching(ends: Ends, coupling: Coupling) -> Callable[..., Tensor]:
        def loss(model: Any, row: Tensor, *, generator: Generator) -> Tensor:
            x0, x1 = ends(len(row), generator)
            return matching(model.transport.field, PATH, coupling, x1, x0=x0, generator=generator)

        return loss

    def by_mean(teacher: nn.Module | None) -> Callable[..., Tensor]:
        def loss(model: Any, row: Tensor, *, generator: Generator) -> Tensor:
            x0, x1 = fit.ends(len(row), generator)
            u, pairs = model.transport.flow_map, IndependentCoupling()
            return mean_flow(u, PATH, pairs, x1, x0=x0, teacher=teacher, generator=generator)

        return loss

    def likelihood(model: Flow, row: Tensor, *, generator: Generator) -> Tensor:
        return nll(model, problem.fresh(len(row), generator=generator), generator=generator)

    models: dict[str, Flow] = {}
    independent, optimal = (fit.ends, IndependentCoupling()), fit.optimal()
    for name, pairs in (("flow matching", independent), ("OT", optimal)):
        torch.manual_seed(seed)
        flow = carried(ODE(problem.field(), Euler(100), manifold=fit.space))
        models[name] = fit(name, flow, by_matching(*pairs), sizes.steps, sizes.lr)

    teacher, solver = models["flow matching"], Heun(sizes.teacher_steps)
    rounds = reflow(
        teacher, sizes.pairs, rounds=sizes.rounds, folder=folder / "reflow", solver=solver,
        chunk=2048, seed=seed, trainer=fit.trainer(sizes.reflow_steps, sizes.lr / 4),
        progress=False,
    )  # fmt: skip
    models |= {f"{k}-rectified": flow for k, flow in enumerate(rounds, 2)}
    models["distilled"] = distil(
        teacher, sizes.distil_pairs, folder=folder / "distilled", solver=solver, chunk=2048,
        seed=seed, trainer=fit.trainer(sizes.distil_steps, sizes.distil_lr), progress=False,
    )  # fmt: skip

    assert isinstance(teacher.transport, ODE)
    field = copy.deepcopy(teacher.transport.field).eval()
    for name, given in (("mean flow", None), ("mean flow, distilled", field)):
        torch.manual_seed(seed)
        flow = carried(Leap(problem.flow_map(), event_dim=event_dim))
        models[name] = fit(name, flow, by_mean(given), sizes.mean_steps, sizes.mean_lr)

    if problem.layers is not None:
        torch.manual_seed(seed)
        x = problem.fresh(1024, generator=Generator().manual_seed(seed))
        flow = problem.layers(x)
        models["layers"] = fit("layers", flow, likelihood, sizes.layer_steps, 2e-3)
    return models


class Fit:
    """Trainings of one problem and seed: where their ends come from, and their trainer."""

    def __init__(self, problem: Problem, seed: int, folder: Path) -> None:
        self.problem, self.seed, self.folder = problem, seed, folder
        self.space = Euclidean(len(problem.event))

    def ends(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw starts and ends of paths."""
        x0 = self.problem.base.sample((n,), generator=generator)
        return x0, self.problem.fresh(n, generator=generator)

    def optimal(self) -> tuple[Ends, Coupling]:
        """Return ends whose pairs are optimal: of a large set made once, or within each batch."""
        sizes = self.problem.sizes
        if not sizes.optimal:
            return self.ends, OTCoupling()
        generator = Generator().manual_seed(5000 + self.seed)
        chunks = []
        for _ in range(0, sizes.optimal, sizes.solved):
            x0, x1 = self.ends(sizes.solved, generator)
            i, j, _ = OTCoupling()(x0, x1, generator=generator)
            chunks.append((x0[i], x1[j]))
        starts, stops = (torch.cat(part) for part in zip(*chunks, strict=True))

        def kept(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(starts), (n,), generator=generator)
            return starts[rows], stops[rows]

        return kept, PairedCoupling()

    def trainer(self, steps: int, lr: float) -> Callable[..., Trainer]:
        """Return what makes a trainer of a model, a loss and a folder."""
        sizes = self.problem.sizes

        def make(model: nn.Module, loss: Callable[..., Tensor], *, folder: Path) -> Trainer:
            return Trainer(
                model,
                loss,
                steps=steps,
                batch=sizes.batch,
                optimizer=torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0),
                schedule=CosineDecay(warmup=min(100, steps // 4), final=0.01),
                clip=1.0,
                ema=0.999,
                folder=folder,
                checkpoint_every=10**9,
                validate_every=500,
                seed=self.seed,
                time_limit=sizes.seconds,
                progress=False,
            )

        return make

    def __call__(
        self, name: str, flow: Flow, loss: Callable[..., Tensor], steps: int, lr: float
    ) -> Flow:
        """Train a flow on fresh ends, once; the rows that the trainer hands out only count."""
        weights = self.folder / name / "flow.safetensors"
        if weights.exists():
            return load(weights, into=flow).eval()
        trainer = self.trainer(steps, lr)(flow, loss, folder=weights.parent)
        trainer.fit(torch.zeros(self.problem.sizes.batch, 1))
        flow.save(weights)
        return flow.eval()


@torch.no_grad()
def measured(problem: Problem, flow: Flow, seed: int, name: str) -> dict[str, Any]:
    """Return distances by evaluations, the calibrated sampler's, and how straight the paths are."""
    sizes = problem.sizes
    n = sizes.tested * sizes.repeats

    def distance(flow: Flow) -> float:
        generator = Generator().manual_seed(9000 + seed)
        return problem.distance(problem.finish(draw(flow, n, batch=512, generator=generator)), seed)

    carrier = flow.transport
    if not isinstance(carrier, ODE | Leap):
        return {"distances": {0: distance(flow)}}
    steps = STEPS if isinstance(carrier, ODE) else LEAPS
    found: dict[str, Any] = {"distances": {k: distance(flow.with_solver(Euler(k))) for k in steps}}
    start = time.perf_counter()
    draws = Generator().manual_seed(seed)
    fine = Euler(1) if name == "distilled" else RK4(25)  # it was trained for that step alone
    choice = calibrate(flow, 4, n=sizes.calibrated, reference=fine, batch=128, generator=draws)
    found["calibrated"] = {
        "distance": distance(flow.with_solver(choice.solver)),
        "solver": str(choice.solver),
        "error": choice.error,
        "error of the choice": apart(flow, choice.solver, fine, sizes.calibrated, seed),
        "error of 8": apart(flow, Euler(8), fine, sizes.calibrated, seed),
        "seconds": time.perf_counter() - start,
    }
    if isinstance(carrier, ODE):
        generator = Generator().manual_seed(8000 + seed)
        paths = path_measures(flow, sizes.paths, steps=sizes.path_steps, generator=generator)
        found["paths"] = {
            "transport cost": paths.transport_cost.item(),
            "energy": paths.energy.item(),
            "straightness": paths.straightness.item(),
        }
    return found


@torch.no_grad()
def apart(flow: Flow, solver: Solver, reference: Solver, n: int, seed: int) -> float:
    """Return the root mean squared distance, per entry, from a finer solve."""
    fine = Flow(flow.base, with_solver(instantaneous(flow.transport), reference))
    ends = [
        draw(each, n, batch=128, generator=Generator().manual_seed(6000 + seed))
        for each in (flow.with_solver(solver), fine)
    ]
    return (ends[0] - ends[1]).square().mean().sqrt().item()
