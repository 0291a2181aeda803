"""Molecules as atoms in space: elements as tokens and places as points, drawn by one flow.

    python -m experiments.mixed            # ten minutes on two cores, eight of training
    python -m experiments.mixed --smoke    # the same road in seconds

Molecules of QM9 with nine heavy atoms (SMILES files in CFLOW_DATA); RDKit (extra `molecules`) puts
them in space by ETKDG, one geometry each, with a seed. Hydrogen is left out, atoms are C, N, O or F
in random order, places are in angstrom and centred. Elements start as masks, places from a normal
law, and an equivariant network sees both. In a tenth of each batch elements are known, in a tenth
places, so that the flow also draws one given the other. Noise is turned towards its molecule, and
exchanged among atoms of one element, before they are joined by lines (Song et al.).

Every row but the last is compared with the first half of the test part:

    elements     total variation between frequencies of elements
    whole        share of molecules whose bonds join all atoms, and of which no two atoms overlap
    sound        whole, and no atom is bound to more heavy atoms than its element can be
    neighbours   1-Wasserstein distance between distances to the nearest atom, angstrom
    pairs        the same of all pairs of atoms

"test" is the second half of the test part: the floor. "given elements" draws places for the
elements of the first half, "given places" elements for its places: `right` is the share of atoms
that get their own element, `common` what the commonest would get. `nats` are mean -log p of the
places of a molecule given its elements (an ODE, in the 24 dimensions of centred clouds), and the
bound on -log p of an element given all places. The network cannot tell mirror images apart.

Everything lands in runs/mixed/: report.json, molecules.png, flow.safetensors, geometries, an
offline wandb run.

Source: Dunn and Koes (2024), FlowMol, arXiv 2404.19739; Campbell et al. (2024), arXiv 2402.04997;
Song et al. (2023), Equivariant flow matching with hybrid probability transport for 3D molecule
generation, arXiv 2312.07168; Hoogeboom et al. (2022), arXiv 2203.17003 (QM9 with hydrogen).
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor, nn

from cflow.base import MaskTokens, MeanFreeGaussian
from cflow.data import smiles
from cflow.jump import (
    Mixed,
    MixedEGNN,
    MixedFlow,
    MixedSteps,
    MixtureSteps,
    mixed_matching,
    points_given_tokens,
    tokens_given_points,
)
from cflow.ode import RK4
from cflow.train import CosineDecay, Trainer, WandbMonitor
from experiments.mixed_molecules import ATOMS, ELEMENTS, compared, made, picture


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/mixed")
    minutes: float = 8.0  # of training
    optimizer_steps: int = 100_000  # at most
    trained: int = 6000  # molecules, of which a twentieth choose the weights
    tested: int = 2000  # in two halves
    batch: int = 128
    hidden: int = 64  # length of the vector of an atom
    layers: int = 5  # rounds of messages
    length: float = 1.5  # unit of length of the network, angstrom
    token_weight: float = 1.0  # angstrom^2 per nat
    lr: float = 2e-3
    ema: float = 0.998
    steps: int = 20  # of two questions each
    fewer: tuple[int, ...] = (5, 10)  # other numbers of steps
    solver_steps: int = 12  # of RK4, for likelihoods
    judged: int = 100  # molecules whose likelihood is taken
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    optimizer_steps=4, trained=40, tested=16, batch=16, hidden=8, layers=1, steps=3, fewer=(2,),
    solver_steps=2, judged=4, threads=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    strings = smiles.qm9()
    place = lambda part, n: settings.out / f"geometries_{part}_{n}_{settings.seed}.npz"
    train = made(
        strings.train_smiles, settings.trained, settings.seed, place("train", settings.trained)
    )
    test = made(strings.test_smiles, settings.tested, settings.seed, place("test", settings.tested))
    half = settings.tested // 2
    one, other = (
        Mixed(*(part[rows] for part in test)) for rows in (slice(half), slice(half, None))
    )
    shown = asdict(settings) | {"out": str(settings.out)}
    flow, training = fit(train, settings, shown)
    flow.save(settings.out / "flow.safetensors")
    generator = Generator().manual_seed(settings.seed + 1)
    began = time.perf_counter()
    drawn = flow.sample(half, generator=generator)
    seconds = time.perf_counter() - began
    placed = flow.sample((), tokens=one.tokens, generator=generator)
    rows = {"test": compared(other, one), "drawn": compared(drawn, one)}
    rows["given elements"] = compared(placed, one)
    for steps in settings.fewer:
        for order in (1, 2):
            sampler = MixedSteps(MixtureSteps(steps * 2 // order), order=order)
            z = flow.sample(half, sampler=sampler, generator=generator)
            rows[f"drawn, {2 * steps} questions, order {order}"] = compared(z, one)
    report = {
        "settings": shown,
        "training": training,
        "seconds to draw": seconds,
        "results": rows,
        "given places": named(flow, one, generator),
        "nats": likelihoods(flow, one, settings, generator),
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    few = lambda z: Mixed(*(part[:6] for part in z))
    shelf = {"test part": other, "drawn": drawn, "drawn for elements of the test part": placed}
    picture(settings.out / "molecules.png", {label: few(z) for label, z in shelf.items()})
    print(json.dumps({k: v for k, v in report.items() if k != "settings"}, indent=1))
    return report


def fit(
    train: Mixed, settings: Settings, shown: dict[str, Any]
) -> tuple[MixedFlow, dict[str, Any]]:
    """Train a flow; the base of places is as wide as they are."""
    torch.manual_seed(settings.seed)
    scale = (train.x.square().sum((1, 2)).mean() / (3 * (ATOMS - 1))).sqrt().item()
    base = MaskTokens(ATOMS, len(ELEMENTS))
    network = MixedEGNN(
        base.states,
        base.vocabulary,
        hidden_features=settings.hidden,
        layers=settings.layers,
        length=settings.length,
    )
    sampler = MixedSteps(MixtureSteps(settings.steps), order=2)
    flow = MixedFlow(base, MeanFreeGaussian((ATOMS, 3), scale=scale), network, sampler=sampler)

    def loss(model: nn.Module, tokens: Tensor, x: Tensor, *, generator: Generator) -> Tensor:
        assert isinstance(model, MixedFlow)
        x0 = near(model.base_points.sample((len(x),), generator=generator), tokens, x)
        weight = settings.token_weight
        return mixed_matching(model, tokens, x, x0=x0, token_weight=weight, generator=generator)

    held = max(1, settings.trained // 20)
    monitor = WandbMonitor("cflow-mixed", folder=settings.out, settings=shown)
    began = time.perf_counter()
    result = Trainer(
        flow,
        loss,
        steps=settings.optimizer_steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(200, settings.optimizer_steps // 4), final=0.01),
        clip=1.0,
        ema=settings.ema,
        validate_every=500,
        monitor=monitor,
        log_every=100,
        seed=settings.seed,
        time_limit=60 * settings.minutes,
        progress=False,
    ).fit(tuple(part[held:] for part in train), tuple(part[:held] for part in train))
    monitor.finish()
    flow.eval()
    return flow, {
        "steps": result.step,
        "validation": result.best_value,
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in flow.parameters()),
    }


def near(x0: Tensor, tokens: Tensor, x1: Tensor) -> Tensor:
    """Turn clouds of noise, and exchange their atoms of one element, so that they are near x1.

    Molecules come in any orientation and order, so the noise has its own law afterwards, also given
    the elements.
    """
    unlike = (tokens[:, :, None] != tokens[:, None]).to(x0) * 1e6
    for _ in range(2):
        x0 = turned(x0, x1)
        cost = torch.cdist(x1, x0).square() + unlike
        order = [torch.from_numpy(linear_sum_assignment(c)[1]) for c in cost.numpy()]
        x0 = x0.gather(1, torch.stack(order)[..., None].expand_as(x0))
    return turned(x0, x1)


def turned(x0: Tensor, x1: Tensor) -> Tensor:
    """Return x0 after the rotation that brings it nearest to x1 (Kabsch)."""
    u, _, vh = torch.linalg.svd(x0.mT @ x1)
    last = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :-1], u[..., -1:] * last[:, None, None]], -1)
    return x0 @ (u @ vh)


def named(flow: MixedFlow, test: Mixed, generator: Generator) -> dict[str, float]:
    """Draw elements for places, and count those that are right."""
    z = flow.sample((), points=test.x, generator=generator)
    share = torch.bincount(test.tokens.flatten()) / test.tokens.numel()
    return {
        "right": (z.tokens == test.tokens).float().mean().item(),
        "common": share.max().item(),
        "elements": compared(z, test)["elements"],
    }


@torch.no_grad()
def likelihoods(
    flow: MixedFlow, test: Mixed, settings: Settings, generator: Generator
) -> dict[str, float]:
    """Return mean -log p of each part given the other, in nats, with standard errors."""
    tokens, x = (part[: settings.judged] for part in test)
    places = -points_given_tokens(flow).with_solver(RK4(settings.solver_steps)).log_prob(x, tokens)
    bound = -tokens_given_points(flow).elbo(tokens, x, repeats=8, generator=generator) / ATOMS
    return {
        "places": places.mean().item(),
        "places, error": (places.std() / len(places) ** 0.5).item(),
        "elements": bound.mean().item(),
        "elements, error": (bound.std() / len(bound) ** 0.5).item(),
    }


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
