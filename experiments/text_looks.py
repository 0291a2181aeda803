"""What `experiments.text` looks at after training: samples, filled gaps, guided samples."""

import re
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from cflow.data.text import Text
from cflow.jump import (
    FirstHitting,
    JumpFlow,
    JumpSampler,
    MixtureSteps,
    Posterior,
    PredictorPosterior,
    infill,
)
from experiments.text_ngrams import NGrams, apart

HEADING = ":\n"  # a change of the speaker
SCALES = (0.0, 1.0, 2.0, 4.0)  # of guidance


class Looks(Protocol):
    """The settings that are read here."""

    @property
    def length(self) -> int: ...
    @property
    def drawn(self) -> int: ...
    @property
    def steps(self) -> tuple[int, ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def out(self) -> Path: ...


def ngrams(train: Tensor, test: Tensor, vocabulary: int) -> dict[str, float]:
    """Give the cross-entropy of n-gram models on the last 10 %, in nats per character."""
    found = {f"{n}-gram": NGrams(train, vocabulary, n).nats(test) for n in range(1, 7)}
    print("  ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


def steps(
    flow: JumpFlow, corpus: Text, train: Tensor, test: Tensor, settings: Looks
) -> list[dict[str, Any]]:
    """Draw windows in few and many steps, and hold their characters against the text."""
    size = len(corpus.vocabulary)
    trigrams, words = NGrams(train, size, 3), spelled(corpus, train)
    real = test[: len(test) // settings.length * settings.length].view(-1, settings.length)
    counted = train[: len(train) // settings.length * settings.length].view(-1, settings.length)
    rows = [
        {"steps": "text", **statistics(real[: settings.drawn], counted, trigrams, words, corpus)}
    ]
    samplers: dict[str, JumpSampler] = {str(n): MixtureSteps(n) for n in settings.steps}
    pages = []
    for name, sampler in {**samplers, "first hitting": FirstHitting()}.items():
        generator = Generator().manual_seed(settings.seed)
        began = time.perf_counter()
        x = flow.sample(settings.drawn, sampler=sampler, generator=generator)
        row = {"steps": name, "seconds": time.perf_counter() - began}
        rows.append(row | statistics(x, counted, trigrams, words, corpus))
        pages.append(f"--- {name} steps\n{corpus.vocabulary.decode(x[0])}\n")
        print(
            "  ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()
            ),
            flush=True,
        )
    (settings.out / "samples.txt").write_text("\n".join(pages))
    return rows


def statistics(
    x: Tensor, counted: Tensor, trigrams: NGrams, words: set[str], corpus: Text
) -> dict[str, float]:
    """Hold windows against the text that was learned.

    Total variation of single characters and of trigrams, the cross-entropy of their trigrams under
    those of the text (nats per character), the share of trigrams and of whole words that the text
    has.
    """
    size = len(corpus.vocabulary)
    inner = [re.findall(r"[A-Za-z']+", page)[1:-1] for page in map(corpus.vocabulary.decode, x)]
    found = [word.lower() for page in inner for word in page]  # windows cut their first and last
    return {
        "unigram": apart(x, counted, size, 1),
        "trigram": apart(x, counted, size, 3),
        "nats": trigrams.nats(x),
        "seen": trigrams.seen(x),
        "words": sum(word in words for word in found) / max(1, len(found)),
    }


def spelled(corpus: Text, tokens: Tensor) -> set[str]:
    """Return the words of a text, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Za-z']+", corpus.vocabulary.decode(tokens))}


def fill(flow: JumpFlow, corpus: Text, windows: Tensor, settings: Looks) -> dict[str, Any]:
    """Hide the middle quarter of windows, and draw it given the rest."""
    x = windows[: settings.drawn]
    length = settings.length
    hidden = torch.zeros(length, dtype=torch.bool)
    hidden[3 * length // 8 : 5 * length // 8] = True
    generator = Generator().manual_seed(settings.seed)
    drawn = infill(
        flow, x, known=~hidden, sampler=MixtureSteps(middle(settings)), generator=generator
    )
    assert torch.equal(drawn[:, ~hidden], x[:, ~hidden])
    right = (drawn == x)[:, hidden].double().mean().item()
    chance = torch.bincount(x.flatten()).double().div(x.numel()).square().sum().item()
    pages = [
        f"--- window {k}\n{corpus.vocabulary.decode(x[k])}\n--- filled between\n"
        f"{corpus.vocabulary.decode(drawn[k][: 3 * length // 8])}["
        f"{corpus.vocabulary.decode(drawn[k][hidden])}]"
        f"{corpus.vocabulary.decode(drawn[k][5 * length // 8 :])}\n"
        for k in range(min(3, len(x)))
    ]
    (settings.out / "filled.txt").write_text("\n".join(pages))
    print(f"filled: {right:.3f} of hidden characters as in the text, {chance:.3f} by chance")
    return {"right": right, "chance": chance, "hidden": int(hidden.sum()), "windows": len(x)}


def middle(settings: Looks) -> int:
    """Return the number of steps of what is not a study of steps."""
    return min(64, max(settings.steps))


class Counts(nn.Module):
    """Predict from counts of characters, masks among them: log p(many speakers | x_t), linear."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weight = nn.Linear(states, 1)

    def forward(self, t: Tensor, one_hot: Tensor, context: Tensor | None = None) -> Tensor:
        return nn.functional.logsigmoid(self.weight(one_hot.float().mean(1))[:, 0])


def steer(flow: JumpFlow, corpus: Text, train: Tensor, settings: Looks) -> list[dict[str, Any]]:
    """Guide towards windows with more changes of speaker than most."""
    states = flow.base.states
    windows = train[: len(train) // settings.length * settings.length].view(-1, settings.length)
    many = changes(corpus, windows)
    label = many > many.median()
    predictor = Counts(states)
    generator = Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.3)
    for _ in range(300):
        rows = torch.randint(len(windows), (128,), generator=generator)
        t = torch.rand(128, generator=generator)
        hide = torch.rand(128, settings.length, generator=generator) > t[:, None]
        x = torch.where(hide, states - 1, windows[rows])
        log_p = predictor(t, nn.functional.one_hot(x, states))
        wrong = torch.log1p(-log_p.exp().clamp_max(1 - 1e-6))
        value = -torch.where(label[rows], log_p, wrong).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    rates = flow.rates
    assert isinstance(rates, Posterior)
    trigrams = NGrams(train, len(corpus.vocabulary), 3)
    found = [{"scale": "text", "changes": many.mean().item(), "nats": trigrams.nats(windows[:64])}]
    for scale in SCALES:
        guided = flow.with_rates(PredictorPosterior(rates, predictor, scale=scale))
        generator = Generator().manual_seed(settings.seed)
        sampler = MixtureSteps(middle(settings))
        x = guided.sample(settings.drawn, sampler=sampler, generator=generator)
        row = {
            "scale": scale,
            "changes": changes(corpus, x).mean().item(),
            "nats": trigrams.nats(x),
        }
        print(
            f"guided by {scale:g}: {row['changes']:.2f} changes, {row['nats']:.3f} nats", flush=True
        )
        found.append(row)
    return found


def changes(corpus: Text, windows: Tensor) -> Tensor:
    """Count changes of the speaker in each window."""
    return torch.tensor([float(corpus.vocabulary.decode(x).count(HEADING)) for x in windows])
