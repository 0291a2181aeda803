"""What exports: every recipe and every field, in each format, in docs/exports.md.

    python -m experiments.exports                     # an hour or two on one thread
    python -m experiments.exports --resume            # go on after a cut run
    python -m experiments.exports --only dit --resume # these rows anew
    python -m experiments.exports --smoke             # three rows without packages, into runs/

A cell is written with the public functions and read back; it holds the parity,
max|a - b| / max(1, max|b|) in float32, or the share of tokens that differ, or the reason why there
is no file. Cells that take longer
than the limit of processor time say so (compilers run beside it). The page is written after every
row, and is what --resume reads.
"""

import contextlib
import importlib.metadata
import io
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from cflow import Flow, JumpFlow
from cflow.export import (
    Encoder,
    Exportable,
    LogProb,
    Sampler,
    TokenSampler,
    export_aoti,
    export_onnx,
    export_pt2,
    load_exported,
)
from experiments.compatibility import PACKAGES, cell, settled
from experiments.compatibility_rows import Row
from experiments.exports_rows import ROWS, exportable

SMOKE = ("realnvp", "TwoLayerField, vectors", "ffjord, Hutchinson")
RUN = 9  # batch size of the last comparison, on top of those that the writers make
ANYHOW = 1.0  # tolerance: the table shows what is found

# What is said where the table of reasons of experiments.compatibility has no better words.
REASONS: tuple[tuple[str, str], ...] = (
    (r"is an estimate", "the likelihood is an estimate, which draws noise"),
    (r"is a bound", "the likelihood is a bound, which draws noise"),
    (r"points have no noise of their own", "dequantisation draws noise"),
    (r"no map and no density", "tokens have no map and no density"),
    (r"No ONNX function found for .OpOverload\(op='([\w.]+)'", r"{0} has no ONNX operator"),
    (r"marked L\S+ as dynamic but your code speciali", "torch.func fixes its batch size"),
    (r"NYI: querying is_contiguous inside of vmap", "torch.func fixes its batch size"),
)

Kind = Callable[[Flow], Exportable]
Writer = Callable[..., float]


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path | None = None  # the page: docs/exports.md, or that of --smoke
    only: tuple[str, ...] = ()  # rows whose names begin so; all by default
    resume: bool = False  # keep what an earlier run has found; with --only, of all other rows
    limit: int = 120  # seconds of processor time for one cell
    packages: bool = True  # compile packages ahead of time: half a minute a row
    smoke: bool = False


def written(kind: Kind, write: Writer, ending: str) -> Callable[[Flow, Row], float]:
    """Return a check that writes a file, reads it, and compares it at one more batch size."""

    def check(flow: Flow, row: Row) -> float:
        try:
            return _parity(kind, exportable(flow), write, ending, row)
        except Exception as error:
            words = reason(error)
            if words is None:
                raise
            raise RuntimeError(words) from None

    return check


def sampler(flow: Flow | JumpFlow) -> Exportable:
    return TokenSampler(flow) if isinstance(flow, JumpFlow) else Sampler(flow)


def _parity(kind: Kind, flow: Flow, write: Writer, ending: str, row: Row) -> float:
    module, (noise, context) = kind(flow), row.draw(flow, RUN)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        x = noise
        if module.kind != "sampler":
            x = Sampler(flow)(noise, context)
        path = Path(folder) / f"file.{ending}"
        found = write(module, path, context=context, tolerance=ANYHOW)
        return max(found, apart(load_exported(path)(x, context), module(x, context)))


def apart(a: Tensor, b: Tensor) -> float:
    if not b.is_floating_point():
        return float((a != b).double().mean())
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def reason(error: BaseException) -> str | None:
    """Return the words for an error of which the chain of causes says something known."""
    seen: BaseException | None = error
    while seen is not None:
        for pattern, words in REASONS:
            if match := re.search(pattern, str(seen)):
                return words.format(*match.groups())
        seen = seen.__cause__ or seen.__context__
    return None


COLUMNS: dict[str, Callable[[Flow, Row], float]] = {
    "sampler `.pt2`": written(sampler, export_pt2, "pt2"),
    "sampler ONNX": written(sampler, export_onnx, "onnx"),
    "sampler package": written(sampler, export_aoti, "pt2"),
    "encoder `.pt2`": written(Encoder, export_pt2, "pt2"),
    "encoder ONNX": written(Encoder, export_onnx, "onnx"),
    "`log_prob` `.pt2`": written(LogProb, export_pt2, "pt2"),
    "`log_prob` ONNX": written(LogProb, export_onnx, "onnx"),
}
PACKAGE, NONE = "sampler package", "not compiled"

HEAD = """# What exports

Every recipe and every field, small and away from its initialisation, in float32 on the CPU. Each
cell is a file that was written by `cflow.export` and read back: `Sampler` (noise to samples),
`Encoder` (data to noise) and `LogProb` (data to exact log-likelihoods), as a `torch.export` program
(`.pt2`), for onnxruntime (ONNX), or compiled ahead of time by AOTInductor (package). A number is
the parity, max|a - b| / max(1, max|b|) against eager mode on the same inputs, the largest over
batches of 1, 4, 7 and {run}; the writers accept 1e-5 and less, and more where a `tolerance` says
so. Words say why there is no file.

Samplers of tokens are `TokenSampler`s: uniform numbers to tokens, in a loop of the graph, so that
files do not grow with their steps. There a number is the share of tokens that differ. The writers
compare them on numbers in the middle of what they decide; one at the border of two tokens may fall
to either side in another runtime.

"Not within" so many seconds of processor time: tracing took longer. Maps without a closed inverse
search for it, so that their slow direction is a long graph; so is the exact divergence of an image
network, which has its gradient once for every entry (given time, `unet` with labels wrote its
`log_prob` to `.pt2` in 400 s; others were not tried for longer).
Flows that end in grey levels are exported before they round. Exact divergences of images go one
entry at a time, `Exact(chunk=1)`: several at once fix the batch size.

Made by `python -m experiments.exports`, with {versions}.
"""


def main(settings: Settings) -> dict[str, dict[str, str]]:
    """Fill the table row by row, and return its cells."""
    page = settings.out or Path("runs" if settings.smoke else "docs", "exports.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    found = read(page.read_text()) if settings.resume and page.exists() else {}
    only = settings.only or (SMOKE if settings.smoke else ())
    rows = [row for row in ROWS if row.name.startswith(only)] if only else list(ROWS)
    packages = settings.packages and not settings.smoke
    torch.set_num_threads(1)
    for row in rows:
        known = {} if settings.only else settled(found.get(row.name, {}), settings.limit)
        if packages and known.get(PACKAGE) == NONE:
            del known[PACKAGE]
        if known.keys() == COLUMNS.keys():
            continue
        found[row.name] = measure(row, settings.limit, known=known, packages=packages)
        page.write_text(table(found))
        print(f"{row.name}: {found[row.name]}", flush=True)
    return found


def measure(row: Row, limit: int, *, known: dict[str, str], packages: bool) -> dict[str, str]:
    """Return the cells of one row, those that are known as they are."""
    cells = dict(known)
    for column, check in COLUMNS.items():
        if column == PACKAGE and not packages:
            cells.setdefault(column, NONE)
        if column not in cells:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")  # of the exporters' own internals
                cells[column] = cell(check, row, limit=limit).removeprefix("RuntimeError: ")
    return {column: cells[column] for column in COLUMNS}


def read(page: str) -> dict[str, dict[str, str]]:
    """Return the cells of each row of a page, which `table` wrote."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {row[0].replace("`", ""): dict(zip(COLUMNS, row[1:], strict=True)) for row in rows}


def table(found: dict[str, dict[str, str]]) -> str:
    """Return the page, rows in the order of `ROWS`."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    lines = [HEAD.format(run=RUN, versions=versions)]
    for section in dict.fromkeys(row.section for row in ROWS):
        names = [row.name for row in ROWS if row.section == section and row.name in found]
        if names:
            lines += [f"## {section}", "", f"| | {' | '.join(COLUMNS)} |"]
            lines += ["|---" * (len(COLUMNS) + 1) + "|", *(line(name, found) for name in names), ""]
    return "\n".join(lines)


def line(name: str, found: dict[str, dict[str, str]]) -> str:
    kind, *more = re.split(r"(?=,)", name, maxsplit=1)
    return f"| `{kind}`{''.join(more)} | {' | '.join(found[name].values())} |"


if __name__ == "__main__":
    main(tyro.cli(Settings))
