"""Four particles in a double well: an equivariant flow, its likelihood, and how it weighs samples.

    python -m experiments.particles            # about twenty minutes on one busy core
    python -m experiments.particles --smoke    # the same road in seconds

The DW4 system has a known energy E, in units of k T, and 100,000 clouds drawn from exp(-E) on the
subspace of centred clouds. An equivariant field is trained on them by flow matching from a
mean-free normal law. Reported are

    nll     mean -log q of test clouds, nats, in the 6 dimensions of centred clouds
    log z   log of the integral of exp(-E), by importance weights w = exp(-E) / q of drawn clouds
    excess  nll - (mean E of the same test clouds + log z), an estimate of KL(p || q), nats
    ess     effective sample size (sum w)^2 / sum w^2, as a share of the drawn clouds
    energy  1-Wasserstein distance between energies of drawn and test clouds, in k T

and the largest changes of log q and of x under a rotation with an exchange of particles and a
solve at a tight tolerance. Published on this system and these files (remembered, not measured
here; trained without the samples): iDEM nll 7.17, FAB 7.16. Everything lands in runs/particles/:
report.json, energies.png, weights of the flow, an offline wandb run.

Source: Koehler, Klein and Noe (2020), Equivariant flows, arXiv 2006.02425; Klein, Kraemer and Noe
(2023), Equivariant flow matching, arXiv 2306.15030; Akhound-Sadegh et al. (2024), Iterated
denoising energy matching, arXiv 2402.06121 (iDEM and FAB on these files).
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from cflow import Flow
from cflow.base import MeanFreeGaussian
from cflow.data import particles
from cflow.field import EquivariantField
from cflow.manifold import MeanFree
from cflow.matching import IndependentCoupling, LinearPath, matching
from cflow.ode import RK4, Dopri5
from cflow.samples import log_probs
from cflow.train import CosineDecay, Trainer, WandbMonitor
from cflow.transport import ODE

SYSTEM = "dw4"


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/particles")
    hidden: int = 32  # length of the vector of a particle
    layers: int = 3  # rounds of messages
    length: float = 2.0  # unit of length of the network, in those of the clouds
    steps: int = 10_000  # optimiser steps
    batch: int = 256
    lr: float = 2e-3
    solver_steps: int = 24  # of RK4
    tested: int = 10_000  # test clouds whose likelihood is taken
    drawn: int = 5_000  # clouds drawn from the flow
    checked: int = 500  # clouds solved again at a tight tolerance
    chunk: int = 2000  # clouds solved at once
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    hidden=8, layers=2, steps=20, batch=32, solver_steps=4, tested=60, drawn=60, checked=8, chunk=40
)


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    monitor = WandbMonitor("cflow-particles", folder=settings.out, settings=shown)
    test = particles.load(SYSTEM, "test")[: settings.tested]
    flow, seconds = fit(settings, monitor)
    flow.save(settings.out / "flow.safetensors")
    generator = Generator().manual_seed(settings.seed + 1)
    with torch.no_grad():
        began = time.perf_counter()
        log_q = log_probs(flow, test, batch=settings.chunk)
        tested = time.perf_counter() - began
        pieces = [
            flow.sample_and_log_prob(min(settings.chunk, settings.drawn - k), generator=generator)
            for k in range(0, settings.drawn, settings.chunk)
        ]
    drawn, log_drawn = (torch.cat(part) for part in zip(*pieces, strict=True))
    report = {
        "settings": shown,
        "seconds": {"training": seconds, "likelihood of test clouds": tested},
        **measured(test, log_q, drawn, log_drawn),
        "changes": changes(flow, test[: settings.checked], log_q[: settings.checked]),
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    picture(settings.out / "energies.png", test, drawn, log_drawn)
    monitor.record({k: report[k]["value"] for k in ("nll", "log z", "excess", "ess", "energy")})
    monitor.finish()
    print(json.dumps({k: v for k, v in report.items() if k != "settings"}, indent=1))
    return report


def fit(settings: Settings, monitor: WandbMonitor) -> tuple[Flow, float]:
    """Train a flow on the clouds; the base is as wide as they are."""
    torch.manual_seed(settings.seed)
    data = particles.load(SYSTEM, "train")
    shape = tuple(data.shape[1:])
    base = MeanFreeGaussian(shape, scale=spread(data))
    field = EquivariantField(
        shape, hidden_features=settings.hidden, layers=settings.layers, length=settings.length
    )

    def loss(model: EquivariantField, x: Tensor, *, generator: Generator) -> Tensor:
        x0 = base.sample((len(x),), generator=generator)
        return matching(model, LinearPath(), IndependentCoupling(), x, x0=x0, generator=generator)

    began = time.perf_counter()
    Trainer(
        field,
        loss,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=min(500, settings.steps // 10)),
        clip=1.0,
        ema=0.999 if settings.steps > 1000 else None,
        monitor=monitor,
        log_every=100,
        seed=settings.seed,
    ).fit(data)
    transport = ODE(field, RK4(steps=settings.solver_steps), manifold=MeanFree())
    return Flow(base, transport).eval(), time.perf_counter() - began


def spread(x: Tensor) -> float:
    """Return the standard deviation of centred clouds in a direction of their subspace."""
    return (x.square().sum((1, 2)).mean() / MeanFree().dim(x.shape[1:])).sqrt().item()


def measured(test: Tensor, log_q: Tensor, drawn: Tensor, log_drawn: Tensor) -> dict[str, Any]:
    """Return the figures of the table above, each with its standard error."""
    of_test = particles.energy(SYSTEM, test.double())
    of_drawn = particles.energy(SYSTEM, drawn.double())
    log_w = -of_drawn - log_drawn.double()
    log_z = log_w.logsumexp(0) - math.log(len(log_w))
    w = (log_w - log_z).exp()
    error = (w.std() / len(w) ** 0.5).item()
    nll, gap = -log_q.double(), -log_q.double() - of_test - log_z
    apart = wasserstein(of_test, of_drawn)
    return {
        "nll": {"value": nll.mean().item(), "error": (nll.std() / len(nll) ** 0.5).item()},
        "log z": {"value": log_z.item(), "error": error},
        "excess": {
            "value": gap.mean().item(),
            "error": math.hypot((gap.std() / len(gap) ** 0.5).item(), error),
        },
        "ess": {"value": (w.sum().square() / w.square().sum() / len(w)).item()},
        "energy": {"value": apart},
        "mean energy": {
            "test": of_test.mean().item(),
            "drawn": of_drawn.mean().item(),
            "weighted": ((w * of_drawn).sum() / w.sum()).item(),
        },
    }


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the 1-Wasserstein distance of numbers, by their quantiles."""
    q = (torch.arange(1000, dtype=a.dtype) + 0.5) / 1000
    return (a.quantile(q) - b.quantile(q)).abs().mean().item()


def changes(flow: Flow, x: Tensor, log_q: Tensor) -> dict[str, float]:
    """Return how far log q changes where it should not: by symmetries, and by solving exactly."""
    turn = torch.linalg.qr(torch.randn(2, 2, generator=Generator().manual_seed(3))).Q
    assert isinstance(flow.transport, ODE)
    ode = flow.transport
    exact = Flow(flow.base, ODE(ode.field, Dopri5(1e-6, 1e-6), manifold=ode.manifold)).eval()
    with torch.no_grad():
        turned = flow.log_prob(x.roll(1, 1) @ turn.mT)
        tight = exact.log_prob(x)
    return {
        "symmetries, largest": (turned - log_q).abs().max().item(),
        "solver, mean": (tight - log_q).mean().item(),
        "solver, largest": (tight - log_q).abs().max().item(),
    }


def picture(path: Path, test: Tensor, drawn: Tensor, log_drawn: Tensor) -> None:
    """Draw histograms of energies and of distances of pairs: test, drawn, drawn and weighted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    of_drawn = particles.energy(SYSTEM, drawn.double())
    w = torch.softmax(-of_drawn - log_drawn.double(), 0)
    i, j = torch.triu_indices(drawn.shape[1], drawn.shape[1], 1)
    apart = lambda x: (x[:, i] - x[:, j]).norm(dim=-1)
    columns = [
        ("energy, k T", particles.energy(SYSTEM, test.double()), of_drawn, w, (-28, -8)),
        (
            "distance of a pair",
            apart(test).flatten(),
            apart(drawn).flatten(),
            w.repeat_interleave(len(i)),
            (0, 8),
        ),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, (label, truth, found, weight, span) in zip(axes, columns, strict=True):
        style = dict(bins=80, range=span, density=True)
        axis.hist(truth.numpy(), **style, color="0.8", label="test clouds")
        axis.hist(found.numpy(), **style, histtype="step", color="tab:blue", label="drawn")
        axis.hist(
            found.numpy(),
            **style,
            histtype="step",
            color="tab:orange",
            weights=weight.numpy(),
            label="drawn, weighted",
        )
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
