"""Sequences of DNA by jumps, given their class: bound, guidance, and what separates the classes.

    python -m experiments.dna            # about nine minutes on two cores
    python -m experiments.dna --smoke    # the same road in seconds

1000 sequences of 101 bases, half of them of class 1: the development sample in DNABERT's
repository, distributed as promoters. (The motif of CTCF stands in 125 sequences of class 1 and in
none of class 0, so they look like its binding sites.) The set is small: this shows the way rather
than a record. A masked flow learns p(x | class), with the class left out for a fifth of the
examples; half of all sequences are held out. Figures on these, in nats per base (uniform bases:
log 4 = 1.386): minus the bound with the right class, with the other one, and without; beside them
models of order 0 and 3, fitted to each class of the training half. The bound with either class is a
classifier, whose accuracy is reported. Samples at several scales of classifier-free guidance are
judged by a classifier of their own, logistic regression on counts of 4-mers, and by their content
of G and C.

Everything lands in runs/dna/: report.json, an offline wandb run.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from cflow import JumpFlow, recipes
from cflow.data import promoters
from cflow.jump import (
    ClassifierFreePosterior,
    MixtureSteps,
    Posterior,
    negative_elbo,
)
from cflow.matching import ContextDropout
from cflow.train import CosineDecay, Trainer, WandbMonitor
from experiments.text_ngrams import NGrams

BASES, CLASSES = 4, 2


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path = Path("runs/dna")
    optimizer_steps: int = 1500
    batch: int = 64
    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.3
    lr: float = 1e-3
    ema: float = 0.99
    repeats: int = 32  # moments for each sequence of the bound
    drawn: int = 500  # sequences of each class and scale
    steps: int = 32  # of jumps
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)  # of guidance
    threads: int = 2
    seed: int = 0
    smoke: bool = False  # a few steps of everything


SMOKE: dict[str, Any] = dict(
    optimizer_steps=3, batch=8, width=16, layers=1, heads=2, repeats=2, drawn=8, steps=4,
    scales=(0.0, 2.0), threads=1,
)  # fmt: skip


def main(settings: Settings) -> dict[str, Any]:
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    shown = asdict(settings) | {"out": str(settings.out)}
    data = promoters.promoters()
    order = torch.randperm(len(data.tokens), generator=Generator().manual_seed(settings.seed))
    train, test = order.tensor_split(2)
    x, c = data.tokens, data.labels
    flow, seconds = fit(x[train], c[train], settings, shown)
    report: dict[str, Any] = {"settings": shown, "seconds": seconds}
    report["bounds"] = bounds(flow, x[test], c[test], settings)
    report["ngrams"] = ngrams(x[train], c[train], x[test], c[test])
    weight = judge(x[train], c[train])
    report["judge"] = accuracy(weight, x[test], c[test])
    report["guided"] = guided(flow, weight, settings)
    report["data"] = [
        {"class": k, "gc": gc(x[c == k]), "judged": accuracy(weight, x[test], c[test], k)}
        for k in range(CLASSES)
    ]
    (settings.out / "report.json").write_text(json.dumps(report, indent=1))
    for name in ("bounds", "ngrams", "judge", "data", "guided"):
        print(name, json.dumps(report[name]))
    return report


def fit(x: Tensor, c: Tensor, settings: Settings, shown: dict[str, Any]) -> tuple[JumpFlow, float]:
    flow = recipes.token_transformer(
        x.shape[1],
        BASES,
        CLASSES,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        dropout=settings.dropout,
    )
    monitor = WandbMonitor("cflow-dna", folder=settings.out, settings=shown)
    began = time.perf_counter()
    Trainer(
        flow,
        partial(negative_elbo, dropout=ContextDropout(0.2, null=CLASSES)),
        steps=settings.optimizer_steps,
        batch=settings.batch,
        lr=settings.lr,
        schedule=CosineDecay(warmup=50),
        clip=1.0,
        ema=settings.ema,
        monitor=monitor,
        seed=settings.seed,
        progress=False,
    ).fit((x, c))
    monitor.finish()
    return flow, time.perf_counter() - began


def bounds(flow: JumpFlow, x: Tensor, c: Tensor, settings: Settings) -> dict[str, float]:
    """Measure minus the bound in nats per base, and what it says of the class."""
    found = []
    for label in (torch.zeros_like(c), torch.ones_like(c), torch.full_like(c, CLASSES)):
        generator = Generator().manual_seed(settings.seed)  # the same masks for every label
        with torch.no_grad():
            value = [
                flow.elbo(rows, part, repeats=settings.repeats, generator=generator)
                for rows, part in zip(x.split(50), label.split(50), strict=True)
            ]
        found.append(-torch.cat(value) / x.shape[1])
    each = torch.stack(found)  # (first class, second class, none) by sequence
    right, wrong = each.gather(0, c[None])[0], each.gather(0, 1 - c[None])[0]
    error = lambda v: v.std().item() / len(v) ** 0.5
    return {
        "right": right.mean().item(),
        "right_error": error(right),
        "wrong": wrong.mean().item(),
        "wrong_minus_right": (wrong - right).mean().item(),
        "wrong_minus_right_error": error(wrong - right),
        "none": each[2].mean().item(),
        "accuracy": (right < wrong).double().mean().item(),
    }


def ngrams(x: Tensor, c: Tensor, test: Tensor, label: Tensor) -> dict[str, float]:
    """Give nats per base of models of order 0 and 3 for each class."""
    found = {}
    for order in (1, 4):
        total = 0.0
        for k in range(CLASSES):
            rows = test[label == k]
            total += NGrams(x[c == k].flatten(), BASES, order).nats(rows) * len(rows)
        found[f"order {order - 1}"] = total / len(test)
    return found


def words(x: Tensor) -> Tensor:
    """Count 4-mers, `(n, 256)`, in units of their share."""
    code = sum(x[:, k : x.shape[1] - 3 + k] * BASES ** (3 - k) for k in range(4))
    assert isinstance(code, Tensor)
    return torch.nn.functional.one_hot(code, BASES**4).double().mean(1)


def judge(x: Tensor, c: Tensor) -> Any:
    """Fit logistic regression on counts of 4-mers."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=100.0, max_iter=2000).fit(words(x).numpy(), c.numpy())


def accuracy(model: Any, x: Tensor, c: Tensor, only: int | None = None) -> float:
    """Return the share of sequences, of one class only where asked, that are judged right."""
    rows = slice(None) if only is None else c == only
    return float((model.predict(words(x[rows]).numpy()) == c[rows].numpy()).mean())


def gc(x: Tensor) -> float:
    """Return the share of G and C; bases are in the order A C G T."""
    return ((x == 1) | (x == 2)).double().mean().item()


def guided(flow: JumpFlow, model: Any, settings: Settings) -> list[dict[str, float]]:
    rows = []
    assert isinstance(flow.rates, Posterior)
    for scale in settings.scales:
        rates = ClassifierFreePosterior(flow.rates, scale, null=CLASSES)
        for k in range(CLASSES):
            generator = Generator().manual_seed(settings.seed)
            x = flow.with_rates(rates).sample(
                settings.drawn,
                torch.tensor(k),
                sampler=MixtureSteps(settings.steps),
                generator=generator,
            )
            label = torch.full((len(x),), k)
            rows.append(
                {
                    "scale": scale,
                    "class": k,
                    "judged": accuracy(model, x, label),
                    "gc": gc(x),
                    "entropy": entropy(x),
                }
            )
    return rows


def entropy(x: Tensor) -> float:
    """Return the entropy of 4-mers in nats, at most log 256: it falls where samples repeat."""
    p = words(x).mean(0)
    return -torch.xlogy(p, p).sum().item()


if __name__ == "__main__":
    main(tyro.cli(Settings))
