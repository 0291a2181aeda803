"""Reflow: pairs made by a trained field, whose straight paths need fewer steps to follow.

    x1 = push(x0),  x0 ~ base;    then match the linear path on the pairs (x0, x1)

`cflow.train.reflow` runs the rounds; this is what one round needs. Distillation to k steps trains
on the times that k Euler steps visit, `StepTimes(k)`.
Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, sections 2 and 3.
"""

import os
from collections.abc import Iterator
from typing import TypeAlias, overload

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.errors import DomainError, ShapeError
from cflow.flow import Flow
from cflow.matching.manifest import digest, digest_of, spoken
from cflow.matching.shuffle import hashed
from cflow.matching.stored import PairWriter, StoredPairs
from cflow.matching.teacher import Teacher
from cflow.typing import Data

__all__ = ["reflow_pairs"]

Tensors: TypeAlias = tuple[Tensor, ...]


@overload
def reflow_pairs(
    flow: Flow,
    n: int,
    *,
    folder: None = None,
    context: Tensor | None = None,
    data: Data | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = False,
) -> Tensors: ...


@overload
def reflow_pairs(
    flow: Flow,
    n: int,
    *,
    folder: str | os.PathLike[str],
    context: Tensor | None = None,
    data: Data | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = False,
) -> StoredPairs: ...


@overload
def reflow_pairs(
    flow: Flow,
    n: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    context: Tensor | None = None,
    data: Data | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = False,
) -> Tensors | StoredPairs: ...


def reflow_pairs(
    flow: Flow,
    n: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    context: Tensor | None = None,
    data: Data | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = False,
) -> Tensors | StoredPairs:
    """Make pairs of points at the two ends of the ODE in a trained flow; no gradients.

    With a folder they are written chunk by chunk, and the same call goes on where an earlier one
    was killed; what it gives is bit by bit what an uninterrupted one gives. Chunk k follows from
    the seed and k alone.

    Args:
        flow: A flow with exactly one ODE, by itself or in a chain, in any mode: it is run in
            evaluation mode. `flow.with_solver(...)` sets the solver that is to be imitated.
        n: Number of pairs.
        folder: Where they are stored; None to have them in memory.
        context: Conditions of the pairs, `(n, *context_shape)`.
        data: Points `(n, *event_shape)` of the data, to pull these back instead of pushing noise:
            pairs with a real end. Parts after the ODE are undone first, with their noise.
        chunk: Pairs that are solved together.
        seed: Decides the noise; seeds that differ have nothing in common.
        progress: Show a bar where there is a terminal.

    Returns:
        Starts and ends `(n, *event)`, and the conditions where there are any, as tensors on the
        device of the flow; with a folder a source of batches of them, for a trainer.

    Raises:
        DomainError: n or chunk is not positive, there is not exactly one ODE, the flow wants a
            context or takes none, or a pair is not finite.
        ShapeError: Context or data are not one for each pair, or of another shape.
        CheckpointError: The folder holds pairs of another teacher, number or seed, or damaged
            files, or cannot be written.
        SolverError: A solve failed.

    References:
        Liu et al. (2023), arXiv 2209.03003; Lee et al. (2024), arXiv 2405.20320, for data.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.field import FunctionField
        >>> from cflow.ode import Euler
        >>> from cflow.transport import ODE
        >>> shift = FunctionField(lambda t, x, context: torch.ones_like(x))
        >>> x0, x1 = reflow_pairs(Flow(Gaussian(2), ODE(shift, Euler(2))), 10)
        >>> torch.allclose(x1, x0 + 1)
        True
    """
    if n < 1 or chunk < 1:
        raise DomainError(f"reflow_pairs: n and chunk must be positive, got n={n}, chunk={chunk}")
    for name, given in (("context", context), ("data", data)):
        if given is not None and len(given) != n:
            raise ShapeError(
                f"reflow_pairs: {name} needs one row for each of the {n} pairs, got "
                f"{tuple(given.shape)}"
            )
    teacher = Teacher("reflow_pairs", flow, context=context, data=data)
    count = -(-n // chunk)

    def make(first: int) -> Iterator[Tensors]:
        """Make the chunks from a given one on."""
        silent = None if progress else True  # None: silent where there is no terminal
        with tqdm(total=n, initial=first * chunk, desc="pairs", disable=silent, leave=False) as bar:
            for k in range(first, count):
                rows = slice(k * chunk, min((k + 1) * chunk, n))
                generator = Generator(teacher.device).manual_seed(hashed(f"{seed} reflow {k}"))
                yield teacher.pairs(rows.stop - rows.start, rows, generator)
                bar.update(rows.stop - rows.start)

    if folder is None:
        return tuple(torch.cat(parts) for parts in zip(*make(0), strict=True))
    asked = {
        "n": n,
        "chunk": chunk,
        "seed": seed,
        "teacher": digest_of(flow),
        "solver": spoken(teacher.around.ode.solver),
        "context": digest(context),
        "data": digest(data),
    }
    writer = PairWriter("reflow_pairs", folder, asked)
    for tensors in make(writer.done):
        writer.write(tensors)
    return StoredPairs(folder)
