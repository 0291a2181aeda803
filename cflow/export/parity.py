"""What files are traced and compared with, and how far they are from the module they came from.

parity = max|a - b| / max(1, max|b|),    a the file, b the module, on the same fixed inputs

Of tokens it is the share that differ.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from cflow.errors import CflowError, DomainError, expect_trailing
from cflow.export.exportable import Exportable

__all__ = [
    "CHECKED",
    "SEED",
    "TRACED",
    "ExportError",
    "evaluating",
    "examples",
    "expect_parity",
    "one_line",
]

LONGEST = 200  # characters of another package's message

TRACED, CHECKED = 4, (4, 7, 1)
"""Batch size that is traced, and those that are checked."""

SEED = 0
"""Seed of the fixed inputs."""


class ExportError(CflowError, RuntimeError):
    """A module cannot be written, or the written file disagrees with it."""


def examples(
    module: Exportable, batch: int, context: Tensor | None, *, seed: int = SEED
) -> dict[str, Tensor]:
    """Draw fixed inputs by name; vectors for a context are drawn where none are given."""
    generator = Generator().manual_seed(seed)
    given = _conditions(module, batch, context, generator)
    fixed = module.fixed
    drawn = given if fixed is None else fixed.expand(batch, *fixed.shape)
    inputs = {module.input_name: module.draw(batch, drawn, generator)}
    return inputs if given is None else inputs | {"context": given}


def expect_parity(
    where: str,
    module: Exportable,
    call: Callable[[dict[str, Tensor]], Tensor],
    tolerance: float,
    context: Tensor | None,
) -> float:
    """Return how far a file is from its module, on several sizes of a batch.

    Raises:
        ExportError: It is farther than the tolerance, or the module itself is not finite.
    """
    worst = 0.0
    for batch in CHECKED:
        given = examples(module, batch, context)
        with evaluating(module):
            ours, theirs = module(**given).cpu(), call(given).cpu()
        if not bool(ours.isfinite().all()):
            raise ExportError(f"{where}: the module itself gives values that are not finite")
        if theirs.shape != ours.shape:
            raise ExportError(
                f"{where}: the written file gives shape {tuple(theirs.shape)} and the module "
                f"{tuple(ours.shape)}; no file was kept"
            )
        worst = max(worst, _apart(theirs.to(ours), ours))
    if not worst <= tolerance:
        raise ExportError(
            f"{where}: the written file differs from the module by {worst:.3g}, more than "
            f"{tolerance:.3g}; no file was kept"
        )
    return worst


def one_line(error: BaseException) -> str:
    """Return the line that says most of another package's error: of a chain, of the first one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {text}"[:LONGEST]


@contextlib.contextmanager
def evaluating(module: Exportable) -> Iterator[None]:
    """Run in evaluation mode, without gradients; leave every module in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _apart(theirs: Tensor, ours: Tensor) -> float:
    if not ours.is_floating_point():
        return float((theirs != ours).double().mean())
    return float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1.0))


def _conditions(
    module: Exportable, batch: int, context: Tensor | None, generator: Generator
) -> Tensor | None:
    shape = module.context_shape
    if shape is None:
        if context is not None:
            raise DomainError("export: the module takes no context, but one was given to trace it")
        return None
    if context is None:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        return torch.randn((batch, *shape), generator=generator).to(device, module.dtype)
    expect_trailing("export", "context", context, (len(context), *shape))
    rows = torch.arange(batch, device=context.device) % len(context)
    return context[rows]
