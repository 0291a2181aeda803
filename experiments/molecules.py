"""Molecules as SMILES by jumps: validity, uniqueness, novelty.

    python -m experiments.molecules            # 35 minutes of training on two cores
    python -m experiments.molecules --smoke    # the same road in seconds
    python -m experiments.molecules --weights runs/molecules/flow.safetensors   # samples alone

A masked flow of the tokens of QM9's SMILES (107459 to learn from, 11940 to test; atoms in brackets
are one token, shorter molecules are filled up at their end with a token of its own, which is
learned as any; a sample that has it elsewhere counts as invalid). A digit that closes a ring is
another token than the one that opened it, so that a model need not count; both are written alike.
1000 molecules are drawn in 2 to 256 steps and by other samplers, at temperature 1 but for two rows,
unfiltered, seed fixed, and read by RDKit (extra `molecules`):

    validity     share that RDKit reads, with at least one atom
    uniqueness   distinct canonical SMILES among the valid ones
    novelty      share of the distinct ones that the training file does not hold

Wanted: 0.90 and 0.95 with 64 evaluations at most; novelty is reported (QM9 holds most small
molecules there are, so that a good model of it finds little new). A batch goes on until its last
molecule is done: "evaluations" are calls of the network, "of each" those of a molecule. The
restarts of the last sampler were chosen on another seed, on which 2 to 4 of them from 0.5 to 0.75
gave 0.89 to 0.92. The bound is in nats per molecule on the test file. Then molecules of which a
third is known; numbers of atoms and rings stand beside those of the test file.

Everything lands in runs/molecules/: report.json, flow.safetensors, molecules.png, an offline wandb
run.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor, nn

from cflow import JumpFlow, load, recipes
from cflow.data import smiles
from cflow.errors import MissingExtraError
from cflow.jump import (
    Corrected,
    Draw,
    FirstHitting,
    JumpSampler,
    MixtureSteps,
    Restarted,
    infill,
    negative_elbo,
)
from cflow.train import CosineDecay, Trainer, WandbMonitor, muon

BEST = "surest first, restarted"


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/molecules")
    weights: Path | None = None  # of an earlier training, which is then left out
    minutes: float = 35.0  # of training
    optimizer_steps: int = 100_000  # at most
    batch: int = 256
    width: int = 128
    layers: int = 6
    heads: int = 8
    lr: float = 0.04  # of matrices, by Muon
    rest: float = 1e-2  # of everything else, by AdamW
    ema: float = 0.998
    repeats: int = 8  # moments for each molecule of the bound
    drawn: int = 1000
    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 256)
    bfloat16: bool = True  # products of matrices in half precision
    compiled: bool = True  # for training; needs a C++ compiler
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    optimizer_steps=3, batch=8, width=16, layers=1, heads=2, repeats=2, drawn=8, steps=(2, 4),
    compiled=False, threads=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    chem()  # before anything is trained
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    data = Encoded.of(smiles.qm9())
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    report: dict[str, Any] = {"settings": shown}
    weights = settings.weights or settings.out / "flow.safetensors"
    if settings.weights is None:
        flow = build(data.train.shape[1], data.states, settings)
        report["training"] = fit(flow, data.train, settings, shown)
        flow.save(weights)
    flow = load(weights, JumpFlow)
    report["parameters"] = sum(p.numel() for p in flow.parameters())
    known = set(data.source.train_smiles)
    test = data.test[:64] if settings.smoke else data.test
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        report["bound"] = bound(flow, test, settings)
        report["data"] = judged(list(data.source.test_smiles[: settings.drawn]), known)
        report["samples"] = sampled(flow, data, known, settings)
        report["completed"] = completed(flow, data, test, settings)
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    return report


@dataclass(frozen=True)
class Encoded:
    """Hold molecules whose rings are closed by tokens of their own, behind the vocabulary's."""

    source: smiles.Molecules
    digits: tuple[int, ...]  # tokens that open and close rings alike in the files
    train: Tensor
    test: Tensor

    @classmethod
    def of(cls, found: smiles.Molecules) -> "Encoded":
        symbols = found.vocabulary.symbols
        digits = tuple(k for k, symbol in enumerate(symbols) if symbol.isdigit())
        train, test = (closing(x, digits, len(symbols)) for x in (found.train, found.test))
        return cls(found, digits, train, test)

    @property
    def states(self) -> int:
        return len(self.source.vocabulary) + len(self.digits)

    def plain(self, x: Tensor) -> Tensor:
        """Return the tokens of the vocabulary."""
        return torch.cat([torch.arange(self.states - len(self.digits)), torch.tensor(self.digits)])[
            x
        ]


def closing(x: Tensor, digits: tuple[int, ...], first: int) -> Tensor:
    """Replace every second one of each digit by tokens from `first` on."""
    out = x.clone()
    for k, digit in enumerate(digits):
        same = x == digit
        out[same & (same.cumsum(1) % 2 == 0)] = first + k
    return out


def build(length: int, vocabulary: int, settings: Settings) -> JumpFlow:
    return recipes.token_transformer(
        length,
        vocabulary,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
    )


def fit(
    flow: JumpFlow, data: Tensor, settings: Settings, shown: Mapping[str, Any]
) -> dict[str, Any]:
    if settings.compiled:
        flow.rates.get_submodule("network").compile()
    monitor = WandbMonitor("cflow-molecules", folder=settings.out, settings=shown)
    began = time.perf_counter()
    trainer = Trainer(
        flow,
        partial(loss, settings=settings),
        steps=settings.optimizer_steps,
        batch=settings.batch,
        optimizer=muon(flow, lr=settings.lr, rest=settings.rest),
        schedule=CosineDecay(warmup=50, final=0.01),
        clip=1.0,
        ema=settings.ema,
        monitor=monitor,
        seed=settings.seed,
        time_limit=60 * settings.minutes,
        progress=False,
    )
    result = trainer.fit(data)
    monitor.finish()
    last = [h["loss"] for h in result.history if "loss" in h][-20:]
    return {
        "steps": result.step,
        "seconds": time.perf_counter() - began,
        "loss": sum(last) / len(last),
    }


def loss(flow: nn.Module, x: Tensor, *, generator: Generator, settings: Settings) -> Tensor:
    assert isinstance(flow, JumpFlow)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        return negative_elbo(flow, x, generator=generator)


def bound(flow: JumpFlow, x: Tensor, settings: Settings) -> dict[str, float]:
    """Measure minus the bound in nats per molecule, and its standard error."""
    generator = Generator().manual_seed(settings.seed)
    with torch.no_grad():
        value = torch.cat(
            [
                flow.elbo(rows, repeats=settings.repeats, generator=generator)
                for rows in x.split(128)
            ]
        )
    mean, error = -value.mean().item(), (value.std() / len(value) ** 0.5).item()
    print(f"bound {mean:.3f} +- {error:.3f} nats per molecule", flush=True)
    return {"nats": mean, "error": error, "molecules": len(x)}


def sampled(flow: JumpFlow, data: Encoded, known: set[str], settings: Settings) -> dict[str, Any]:
    """Draw molecules in few and many steps, and by other samplers."""
    samplers: dict[str, JumpSampler] = {f"{n} steps": MixtureSteps(n) for n in settings.steps}
    many = MixtureSteps(max(n for n in settings.steps if n <= 64))
    samplers |= {
        "64 steps, first seed again, float64": replace(many, draw=Draw(dtype=torch.float64)),
        "64 steps, temperature 0.8": replace(many, draw=Draw(temperature=0.8)),
        "64 steps, top-p 0.9": replace(many, draw=Draw(top_p=0.9)),
        "64 steps, refreshed": replace(many, refresh=8.0),
        "32 steps, corrected": Corrected(replace(many, steps=max(1, many.steps // 2))),
        "first hitting": FirstHitting(),
        "surest first, by probability": FirstHitting(order="probability"),
        "surest first, by margin": FirstHitting(order="margin"),
        BEST: Restarted(FirstHitting(order="margin"), rounds=3, back=0.65),
    }
    found = {}
    asked: list[int] = []
    count = flow.rates.get_submodule("network").register_forward_hook(
        lambda network, inputs, logits: asked.append(len(logits))
    )
    for name, sampler in samplers.items():
        generator = Generator().manual_seed(settings.seed)
        began = time.perf_counter()
        x = flow.sample(settings.drawn, sampler=sampler, generator=generator)
        used = {
            "seconds": time.perf_counter() - began,
            "evaluations": len(asked),
            "evaluations of each": sum(asked) / settings.drawn,
        }
        asked.clear()
        names = spelled(data, x)
        found[name] = judged(names, known) | used
        print(name, *(f"{key} {value:.4g}" for key, value in found[name].items()), flush=True)
        if name == BEST:
            picture([name for name in names if read(name)][:20], settings.out / "molecules.png")
    count.remove()
    return found


def judged(names: list[str], known: set[str]) -> dict[str, float]:
    """Give validity, uniqueness, novelty, and the mean numbers of heavy atoms and rings."""
    read_ones = [m for m in map(read, names) if m is not None]
    canonical = [chem().MolToSmiles(m) for m in read_ones]
    distinct = set(canonical)
    size = max(1, len(read_ones))
    return {
        "validity": len(read_ones) / len(names),
        "uniqueness": len(distinct) / size,
        "novelty": len(distinct - known) / max(1, len(distinct)),
        "atoms": sum(m.GetNumHeavyAtoms() for m in read_ones) / size,
        "rings": sum(m.GetRingInfo().NumRings() for m in read_ones) / size,
    }


def completed(flow: JumpFlow, data: Encoded, x: Tensor, settings: Settings) -> dict[str, float]:
    """Keep the first third of each row of test tokens, and draw the rest."""
    x = x[: settings.drawn]
    known = torch.arange(x.shape[1]) < x.shape[1] // 3
    generator = Generator().manual_seed(settings.seed)
    sampler = MixtureSteps(max(n for n in settings.steps if n <= 64))
    drawn = infill(flow, x, known=known, sampler=sampler, generator=generator)
    names = spelled(data, drawn)
    found = judged(names, set(data.source.test_smiles))
    print(f"completed from a third: valid {found['validity']:.3f}", flush=True)
    return found


def spelled(data: Encoded, x: Tensor) -> list[str]:
    """Write tokens as SMILES; those with padding between their tokens are none, and left empty."""
    vocabulary = data.source.vocabulary
    pad = vocabulary.symbols.index(vocabulary.pad)
    inside = (x[:, 1:] != pad) & (x[:, :-1] == pad)
    names = [vocabulary.decode(row) for row in data.plain(x)]
    return ["" if bad else name for name, bad in zip(names, inside.any(1).tolist(), strict=True)]


def read(name: str) -> Any:
    """Return the molecule of a SMILES, or None where it is none."""
    molecule = chem().MolFromSmiles(name)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def chem() -> Any:
    """Return RDKit's chemistry, with its log silenced."""
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise MissingExtraError(
            "molecules: rdkit is not installed; pip install 'cflow[molecules]'"
        ) from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


def picture(names: list[str], path: Path) -> None:
    from rdkit.Chem import Draw as Drawing

    if not names:
        return
    image = Drawing.MolsToGridImage(
        [chem().MolFromSmiles(name) for name in names], molsPerRow=5, subImgSize=(150, 130)
    )
    image.save(path)


if __name__ == "__main__":
    main(tyro.cli(Settings))
