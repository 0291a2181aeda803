"""What compiles, vmaps and exports: every recipe, layer and map in docs/compatibility.md.

    python -m experiments.compatibility                   # about an hour on one thread
    python -m experiments.compatibility --resume          # go on after a cut run
    python -m experiments.compatibility --resume --limit 900  # give late cells another chance
    python -m experiments.compatibility --only maf Rotation --resume  # these rows anew
    python -m experiments.compatibility --smoke           # three rows, into runs/compatibility.md

A cell is the largest difference to eager mode, |a - b| / max(1, |b|), in float32 from fixed seeds,
or the reason why there is none, taken from the error that was caught. Cells that take longer than
the limit say so. The page is written after every row, and is what --resume reads.
"""

import contextlib
import importlib.metadata
import io
import logging
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.export import Dim

from cflow import Flow
from cflow.export import Sampler
from experiments.compatibility_rows import ROWS, Row

SMOKE = ("realnvp", "Permutation", "Rotation")
TRACED, RUN = 4, 7  # batch size that is traced for export, and the one that is compared
SEED = 2  # of noise drawn inside log_prob: the same in both modes
LONGEST = 110  # characters of an error that is not in the table of reasons
LATE = "not within {} s"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")

# Pattern of the message, pattern of the traceback (dynamo's own included), what it means.
DATA = r"data-dependent|Data-dependent|\.item\(\)|data dependent|boolean mask|dynamic shape"
REASONS: tuple[tuple[str, str, str], ...] = (
    (DATA, r"contraction\.py", "iterates until every sample arrives"),
    (DATA, r"series\.py", "length drawn at random"),
    (DATA, r"leap\.py", "searches for the inverse until it is found"),
    (DATA, r"cflow/ode/", "chooses its steps as it goes"),
    (r"only Tensors of floating point dtype can require gradients", r"", "tokens have no gradient"),
    # The loop of an adaptive solver keeps its clock in NumPy: dynamo stops where it is built.
    (r"Unsupported context manager", r"cflow/ode/loop\.py", "chooses its steps as it goes"),
    (r"doesn't have storage", r"cflow/ode/loop\.py", "chooses its steps as it goes"),
    (r"chooses its steps as it goes", r"", "chooses its steps as it goes"),
    (
        r"call Tensor\.requires_grad_\(\)",
        r"contraction\.py.*implicit",
        "its implicit gradient is autograd's, out of the reach of `torch.func`",
    ),
    (r"guided samples follow no density", r"", "guided samples have no density"),
    (r"aten\.linalg_matrix_exp", r"", "matrix exponential has no ONNX operator"),
    (r"prims\.ndtri", r"", "normal quantile has no ONNX operator"),
    (DATA, r"", "branches on the values of a tensor"),
)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path | None = None  # the page: docs/compatibility.md, or that of --smoke
    only: tuple[str, ...] = ()  # rows whose names begin so; all by default
    resume: bool = False  # keep what an earlier run has found; with --only, of all other rows
    limit: int = 120  # seconds of processor time for one cell
    jobs: int = 1  # processes
    smoke: bool = False


def main(settings: Settings) -> dict[str, dict[str, str]]:
    """Fill the table row by row, and return its cells."""
    page = settings.out or Path("runs" if settings.smoke else "docs", "compatibility.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    before = page.read_text() if settings.resume and page.exists() else ""
    found = read(before) if f"with {versions()}." in before else {}
    only = settings.only or (SMOKE if settings.smoke else ())
    rows = [row for row in ROWS if row.name.startswith(only)] if only else list(ROWS)
    tasks = []
    for row in rows:
        known = {} if settings.only else settled(found.get(row.name, {}), settings.limit)
        if known.keys() != COLUMNS.keys():
            tasks.append((row.name, settings.limit, known))
    for name, cells in measured(tasks, settings.jobs):
        found[name] = cells
        page.write_text(written(found))
        print(f"{name}: {cells}", flush=True)
    return found


Task = tuple[str, int, dict[str, str]]


def measured(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, dict[str, str]]]:
    if jobs == 1:
        yield from map(measure_named, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(measure_named, tasks)


def measure_named(task: Task) -> tuple[str, dict[str, str]]:
    name, limit, known = task
    torch.set_num_threads(1)
    return name, measure(next(row for row in ROWS if row.name == name), limit=limit, known=known)


def settled(cells: dict[str, str], limit: int) -> dict[str, str]:
    """Return the cells that a run with this limit need not measure again."""
    late = {column: re.match(LATE.format(r"(\d+)"), words) for column, words in cells.items()}
    return {
        column: words
        for column, words in cells.items()
        if (match := late[column]) is None or int(match[1]) >= limit
    }


def measure(row: Row, *, limit: int = 120, known: dict[str, str] | None = None) -> dict[str, str]:
    """Return the cells of one row, those that are known as they are."""
    known = known or {}
    for name in ("torch.onnx", "torch._dynamo", "torch.export", "torch.fx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own internals
        return {
            column: known[column] if column in known else cell(check, row, limit=limit)
            for column, check in COLUMNS.items()
        }


class TooLateError(BaseException):
    """The time of a cell is over; no `Exception`, for exporters catch those and try again."""


def cell(check: Callable[[Flow, Row], float], row: Row, *, limit: int = 120) -> str:
    torch.compiler.reset()
    flow = row.make()
    before = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # exporters print the graph they gave up
            value = check(flow, row)
    except TooLateError:
        return LATE.format(limit)
    except Exception as error:  # noqa: BLE001  whatever stops it is what the cell says
        return LATE.format(limit) if TooLateError.__name__ in _whole(error) else reason(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return "0" if value == 0 else f"{value:.0e}"


def _ring(*_: object) -> None:
    raise TooLateError


def _whole(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def reason(error: BaseException) -> str:
    """Say in plain words why it failed, by the table of reasons, or in the error's own words."""
    whole = _whole(error)
    for message, place, words in REASONS:
        if re.search(message, whole) and re.search(place, whole):
            return words
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    text = re.sub(r"[|`<>]", " ", text)
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " ..."


def data(flow: Flow, row: Row) -> tuple[Tensor, Tensor | None]:
    """Push points of the base side; they are what log_prob is asked about."""
    x, context = row.draw(flow, TRACED)
    with torch.no_grad():
        return flow.push(x, context), context


def seeded(call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    torch.manual_seed(SEED)
    return call(*inputs).detach()


def given(y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return (y,) if context is None else (y, context)


def difference(ours: Tensor, eager: Tensor) -> float:
    if ours.shape != eager.shape:
        raise ValueError(f"shape {tuple(ours.shape)}, eager mode gives {tuple(eager.shape)}")
    if not bool(eager.isfinite().all()):
        raise ValueError("eager mode gives values that are not finite")
    return ((ours - eager).abs() / eager.abs().clamp(min=1)).max().item()


def compiled_log_prob(flow: Flow, row: Row) -> float:
    inputs = given(*data(flow, row))
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    return difference(seeded(compiled, *inputs), seeded(flow.log_prob, *inputs))


def compiled_push(flow: Flow, row: Row) -> float:
    inputs = given(*row.draw(flow, TRACED))
    compiled = torch.compile(flow.push, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        return difference(seeded(compiled, *inputs), seeded(flow.push, *inputs))


def vmapped_log_prob(flow: Flow, row: Row) -> float:
    inputs = given(*data(flow, row))
    single = torch.func.vmap(flow.log_prob, randomness="different")
    return difference(seeded(single, *inputs), seeded(flow.log_prob, *inputs))


def score(flow: Flow, row: Row) -> float:
    """Compare the gradients at single points with autograd's."""
    inputs = [each[0] for each in given(*data(flow, row))]
    jacobian = torch.func.jacrev(flow.log_prob)

    def autograd(point: Tensor, *context: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        return torch.autograd.grad(flow.log_prob(point, *context), point)[0]

    return difference(seeded(jacobian, *inputs), seeded(autograd, *inputs))


def named(flow: Flow, row: Row, batch: int) -> dict[str, Tensor]:
    return dict(zip(("noise", "context"), given(*row.draw(flow, batch)), strict=False))


def exported_push(flow: Flow, row: Row) -> float:
    sampler, inputs, other = Sampler(flow).eval(), named(flow, row, TRACED), named(flow, row, RUN)
    shapes = {name: {0: Dim.DYNAMIC} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(sampler, (), inputs, dynamic_shapes=shapes).module()
        return difference(program(**other), sampler(**other))


def onnx_push(flow: Flow, row: Row) -> float:
    import onnxruntime

    sampler, inputs, other = Sampler(flow).eval(), named(flow, row, TRACED), named(flow, row, RUN)
    with torch.no_grad():
        program = torch.onnx.export(
            sampler,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["samples"],
            dynamic_shapes={name: {0: Dim.DYNAMIC} for name in inputs},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        wanted = {each.name for each in session.get_inputs()}
        feed = {name: value.numpy() for name, value in other.items() if name in wanted}
        return difference(torch.from_numpy(session.run(None, feed)[0]), sampler(**other))


COLUMNS: dict[str, Callable[[Flow, Row], float]] = {
    "compile `log_prob`": compiled_log_prob,
    "compile `push`": compiled_push,
    "vmap `log_prob`": vmapped_log_prob,
    "jacrev `log_prob`": score,
    "export `push`": exported_push,
    "ONNX `push`": onnx_push,
}

HEAD = """# What compiles, vmaps and exports

Every recipe, layer and map of one number, small and away from its initialisation, in evaluation
mode and float32 on the CPU. A number is the largest difference to eager mode, |a - b| / max(1, |b|)
over all entries; words say why there is no number. Noise is drawn from the same seed in both modes.
"Not within" so many seconds of processor time: maps without a closed inverse search for it, their
slow direction is unrolled when it is traced, and the graph is so long that tracing took more time.

- compile: `torch.compile(..., fullgraph=True, backend="aot_eager")`, one graph; `log_prob` with
  gradients, `push` without.
- vmap: `torch.func.vmap` of `log_prob` over single points, `randomness="different"`.
- jacrev: `torch.func.jacrev` of `log_prob` at one point, against `torch.autograd.grad`.
- export: `torch.export` of `push` at batch size {traced}, run at batch size {run}.
- ONNX: `torch.onnx.export` of `push` at batch size {traced}, run by onnxruntime at {run}.

Recipes stand in both orientations where those run different arithmetic; with `fast="density"` it is
`log_prob` that takes the cheap direction, with `fast="sample"` it is `push`. Continuous flows take
two steps of RK4. Recipes stand with three features and two transforms, those whose slow direction
searches for roots with two features and one transform. Pushes that end in grey levels give
integers, which hide small differences.

Made by `python -m experiments.compatibility`, with {versions}.
"""


def versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def read(page: str) -> dict[str, dict[str, str]]:
    """Return the cells of each row of a page, which `written` wrote."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {row[0].replace("`", ""): dict(zip(COLUMNS, row[1:], strict=True)) for row in rows}


def written(found: dict[str, dict[str, str]]) -> str:
    """Return the page, rows in the order of `ROWS`."""
    lines = [HEAD.format(traced=TRACED, run=RUN, versions=versions())]
    for section in dict.fromkeys(row.section for row in ROWS):
        rows = [row.name for row in ROWS if row.section == section and row.name in found]
        if not rows:
            continue
        lines += [f"## {section}", "", f"| | {' | '.join(COLUMNS)} |", "|---" * 7 + "|"]
        for name in rows:
            kind, *more = re.split(r"(?=,| in )", name, maxsplit=1)
            cells = " | ".join(found[name][column] for column in COLUMNS)
            lines.append(f"| `{kind}`{''.join(more)} | {cells} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings))
