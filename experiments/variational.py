"""Variational inference: flows on densities of known mass, and as posteriors of an autoencoder.

    python -m experiments.variational                # about twenty minutes on one core
    python -m experiments.variational --smoke        # the same road in seconds

First, Real NVPs are fitted by the reverse KL to three densities in the plane whose log Z is known,
once by the path gradient (sticking the landing) and once by the total one, from the same seeds.
Reported are KL(q || p) in nats, exact up to its standard error because log Z is known, the error of
the importance-weighted estimate of log Z, and the variance of both gradients at each fitted flow,
summed over parameters: the path gradient's should be the smaller one by far.

Then a variational autoencoder of the 8 x 8 digits (integers 0..16, binomial pixels) learns with a
diagonal Gaussian posterior, and with the same one followed by an inverse autoregressive flow or a
Real NVP, steered by the encoder (Kingma et al., 2016; an f-VAE in spirit). Reported are the ELBO
and the importance-weighted bound of 500 samples (IWAE-500), nats per test image, higher is better.
No published figure is for these digits: the diagonal posterior, trained in the same run, is the row
to stand beside. Everything lands in runs/variational/.

Source: Rezende and Mohamed (2015), arXiv 1505.05770; Roeder et al. (2017), arXiv 1703.09194; Kingma
et al. (2016), Improving variational inference with inverse autoregressive flow, arXiv 1606.04934.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.data import digits
from cflow.nets import MLP
from cflow.train import (
    LayerStatistics,
    PolynomialDecay,
    Trainer,
    WandbMonitor,
    for_inference,
)
from cflow.transport import Chain, CouplingLayer, Transport
from cflow.variational import Gradient, LinearAnnealing, alpha_divergence, drawn, reverse_kl

LEVELS, PIXELS = 17, 64
LATENT, CODE = 16, 64  # latent coordinates, and length of what the encoder says


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/variational")  # folder of the results
    targets: tuple[str, ...] = ("banana", "funnel", "mixture")
    posteriors: tuple[str, ...] = ("diagonal", "realnvp", "iaf")
    transforms: int = 8  # of the flows in the plane
    steps: int = 4000  # optimiser steps of one of them
    samples: int = 128  # points a step
    posterior_transforms: int = 4
    vae_steps: int = 6000  # optimiser steps of one autoencoder
    batch: int = 128  # images
    annealing: int = 1000  # steps in which the weight of the KL rises to 1
    importance: int = 500  # samples of the importance-weighted bound
    repeats: int = 200  # gradients whose variance is taken
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    targets=("banana",), transforms=2, steps=5, samples=8, posterior_transforms=1, vae_steps=5,
    batch=16, annealing=2, importance=3, repeats=5,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    report: dict[str, Any] = {"settings": shown, "targets": {}, "digits": {}}
    monitor = WandbMonitor("cflow-variational", folder=settings.out, settings=shown)
    for name in settings.targets:
        report["targets"][name] = {}
        for gradient in ("path", "total"):
            found = in_the_plane(name, gradient, settings, monitor)
            report["targets"][name][gradient] = found
            print(
                f"{name:8s} by {gradient:5s}  KL {found['kl']:7.4f} +- {found['kl_error']:.4f}  "
                f"log Z off by {found['log_z_off']:+.4f}  variance of the gradient: path "
                f"{found['variance']['path']:.3g}, total {found['variance']['total']:.3g}",
                flush=True,
            )
            write(report, settings)
    for name in settings.posteriors:
        found = autoencode(name, settings, monitor)
        report["digits"][name] = found
        print(
            f"digits, {name:8s}  ELBO {found['elbo']:8.2f} +- {found['elbo_error']:.2f}  IWAE-"
            f"{settings.importance} {found['iwae']:8.2f}  {found['parameters']} parameters, "
            f"{found['seconds']:.0f} s",
            flush=True,
        )
        write(report, settings)
    monitor.record(
        {f"iwae/{name}": entry["iwae"] for name, entry in report["digits"].items()}
        | {f"kl/{name}": entry["path"]["kl"] for name, entry in report["targets"].items()}
    )
    monitor.finish()
    return report


# Densities in the plane, unnormalised by a known constant.

LOG_Z = 2.0


def normal(x: Tensor, mean: float | Tensor, scale: float | Tensor) -> Tensor:
    scale = torch.as_tensor(scale)
    return -0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def banana(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return LOG_Z + normal(a, 0.0, 1.0) + normal(b, a.square() - 1, 0.3)


def funnel(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return LOG_Z + normal(a, 0.0, 1.35) + normal(b, 0.0, torch.exp(a / 2))


def mixture(x: Tensor) -> Tensor:
    centres = torch.tensor([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]])
    logs = normal(x[..., None, :], centres, 0.6).sum(-1)
    return LOG_Z + logs.logsumexp(-1) - math.log(4)


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "banana": banana,
    "funnel": funnel,
    "mixture": mixture,
}


def in_the_plane(
    name: str, gradient: Gradient, settings: Settings, monitor: WandbMonitor
) -> dict[str, Any]:
    """Fit a flow to one density by one gradient, and measure it against the known constant."""
    torch.manual_seed(settings.seed)
    target = TARGETS[name]
    flow = recipes.realnvp(2, transforms=settings.transforms, hidden_features=(64, 64))
    loss = lambda flow, *, context, generator: reverse_kl(
        flow, target, samples=settings.samples, gradient=gradient, generator=generator
    )
    generator = Generator().manual_seed(settings.seed + 1)
    trainer = for_inference(
        flow,
        target,
        steps=settings.steps,
        monitor=monitor.stage(f"{name}/{gradient}"),
        watch=[LayerStatistics(torch.randn(256, 2, generator=generator))],
        seed=settings.seed,
    )
    replace(trainer, loss=drawn(loss), validate_every=500, progress=False).fit(torch.zeros(1))
    flow.eval()
    with torch.no_grad():
        gaps = reverse_kl(flow, target, samples=20_000, generator=generator) + LOG_Z
        estimate = -alpha_divergence(flow, target, samples=20_000, generator=generator)
    return {
        "kl": gaps.mean().item(),
        "kl_error": (gaps.std() / len(gaps) ** 0.5).item(),
        "log_z_off": estimate.item() - LOG_Z,
        "variance": {kind: variance(flow, target, kind, settings) for kind in KINDS},
    }


KINDS: tuple[Gradient, ...] = ("path", "total")


def variance(
    flow: Flow, target: Callable[[Tensor], Tensor], kind: Gradient, settings: Settings
) -> float:
    """Return the variance of a step's gradient, summed over the parameters."""
    generator = Generator().manual_seed(settings.seed + 2)
    found = []
    for _ in range(settings.repeats):
        loss = reverse_kl(
            flow, target, samples=settings.samples, gradient=kind, generator=generator
        ).mean()
        grads = torch.autograd.grad(loss, list(flow.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found).var(0).sum().item()


# The digits.


class Autoencoder(nn.Module):
    """Hold an encoder, a posterior that it steers, and a decoder of binomial pixels."""

    def __init__(self, posterior: Flow) -> None:
        super().__init__()
        self.encoder = MLP(PIXELS, CODE, hidden_features=(256, 256))
        self.posterior = posterior
        self.decoder = MLP(LATENT, PIXELS, hidden_features=(256, 256))
        self.prior = Gaussian(LATENT)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.long))  # for the annealing

    def code(self, x: Tensor) -> Tensor:
        return self.encoder(x.float() / (LEVELS - 1) - 0.5)

    def log_joint(self, x: Tensor, weight: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """Return log p(z) + log p(x | z) / weight as a function of z, for integer images x."""
        n, k = torch.tensor(LEVELS - 1.0), x.float()
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

        def of(z: Tensor, code: Tensor) -> Tensor:
            logits = self.decoder(z)
            pixels = ways + k * logits - n * nn.functional.softplus(logits)
            return self.prior.log_prob(z) + pixels.sum(-1) / weight

        return of


def posterior(name: str, settings: Settings) -> Flow:
    """Build a diagonal Gaussian steered by the code, alone or followed by a steered flow."""
    diagonal = CouplingLayer(
        [True] * LATENT, MLP(0, 2 * LATENT, context=CODE, hidden_features=(128,))
    )
    parts: list[Transport] = [diagonal]
    options: dict[str, Any] = dict(
        transforms=settings.posterior_transforms, hidden_features=(128, 128)
    )
    if name == "iaf":
        parts.append(recipes.iaf(LATENT, CODE, **options).transport)
    if name == "realnvp":
        parts.append(recipes.realnvp(LATENT, CODE, **options).transport)
    return Flow(Gaussian(LATENT), Chain(*parts), context_shape=(CODE,))


def autoencode(name: str, settings: Settings, monitor: WandbMonitor) -> dict[str, Any]:
    """Train one autoencoder, and return its bounds on the test digits."""
    torch.manual_seed(settings.seed)
    train, validation, test = (part.flatten(1) for part in digits())
    model = Autoencoder(posterior(name, settings))
    rise = LinearAnnealing(settings.annealing, start=0.05)
    kind: Gradient = "total" if name == "iaf" else "path"  # the pull of an IAF is slow

    def loss(module: Autoencoder, x: Tensor, *, generator: Generator) -> Tensor:
        """Return log q - log p(z) times a weight that rises to 1, less log p(x | z)."""
        weight = rise.at(int(module.step)) if module.training else 1.0
        if module.training:
            module.step += 1
        code = module.code(x)
        target = module.log_joint(x, weight)
        values = reverse_kl(
            module.posterior,
            target,
            context=code,
            samples=1,
            gradient=kind,
            generator=generator,
        )
        return weight * values[0]

    start = time.perf_counter()
    Trainer(
        model,
        loss,
        steps=settings.vae_steps,
        batch=settings.batch,
        schedule=PolynomialDecay(warmup=100, final=0.1),
        clip=100.0,
        ema=0.995,
        validate_every=100,
        monitor=monitor.stage(f"digits/{name}"),
        seed=settings.seed,
        progress=False,
    ).fit(train, validation)
    seconds = time.perf_counter() - start
    elbo, iwae = bounds(model, test[:8] if settings.smoke else test, settings)
    return {
        "elbo": elbo.mean().item(),
        "elbo_error": (elbo.std() / len(elbo) ** 0.5).item(),
        "iwae": iwae.mean().item(),
        "iwae_error": (iwae.std() / len(iwae) ** 0.5).item(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
    }


@torch.no_grad()
def bounds(model: Autoencoder, test: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the ELBO and the importance-weighted bound of each test image."""
    generator = Generator().manual_seed(settings.seed + 3)
    both = []
    for x in test.split(20):
        code, target = model.code(x), model.log_joint(x)
        draws: list[Tensor] = [
            -alpha_divergence(
                model.posterior,
                target,
                alpha=alpha,
                context=code,
                samples=settings.importance,
                doubly_reparameterized=False,
                generator=generator,
            )
            for alpha in (1.0, 0.0)
        ]
        both.append(torch.stack(draws))
    elbo, iwae = torch.cat(both, dim=1)
    return cast(Tensor, elbo), cast(Tensor, iwae)


def write(report: dict[str, Any], settings: Settings) -> None:
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
