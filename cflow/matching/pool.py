"""Pairs of a pool larger than the batch, solved ahead of the training that uses them.

    chunk k:  targets kP .. (k+1)P - 1 of the shuffled data,  P sources,  pairs = coupling(x0, x1)
    batches:  the chunks one after another, cut to the size of a batch

Minibatch transport is biased towards the independent coupling, and less so the larger the set that
is solved; a pool buys that without a larger batch. Chunk k follows from the seed and k alone.
Source: Pooladian et al. (2023), Multisample flow matching, arXiv 2304.14772, sections 3 and 4; Tong
et al. (2024), arXiv 2302.00482, section 3.2, for minibatch couplings.
"""

from collections import abc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from cflow.errors import (
    DomainError,
    ShapeError,
    SolverError,
    expect_finite,
    expect_floating,
    expect_positive,
)
from cflow.matching.ahead import ahead
from cflow.matching.batch import precise
from cflow.matching.coupling import Coupling, PairedCoupling, Pairs
from cflow.matching.shuffle import Shuffle, hashed
from cflow.matching.source import Law, draw_sources

__all__ = ["PairPool"]

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class PairPool:
    """Give batches `(x0, x1, *contexts)` of pairs without end.

    `Trainer.fit` takes it in place of data. Its pairs are made, so the loss keeps them, with
    `matching(field, path, PairedCoupling(), x1, x0=x0, context=c)`. Every pair of a chunk is used
    once, and every target once an epoch, whatever divides what: a batch may begin in one chunk and
    end in the next. Pairs with weights, or fewer than there are targets (partial transport), are
    repeated so that a chunk has `pool` of them, each as often as its weight says, to within one.

    The batches follow from seed and batch number, not from the workers. To be exact about it, the
    last digits of a cost may depend on torch's number of threads, which workers share with all.

    Args:
        data: Targets `(m, *event)`, or a tuple of targets and contexts, any number of them; the
            coupling sees the first context.
        coupling: How the sources and targets of a chunk are paired.
        source: Where sources come from: a base, a function `(n, generator) -> (n, *event)`, given
            points `(n, *event)`, which are shuffled, a tuple of such points and their contexts for
            the coupling to see, or None for standard normal noise.
        pool: Points that are paired together.
        workers: Threads that solve ahead of the training, where cores are free; with 0 the training
            waits for each chunk.
        whole: Hand the coupling all targets, in their order, instead of a part of them: what a
            coupling fitted to the whole data set wants.

    Raises:
        ShapeError: Tensors are empty or differ in length.
        DomainError: Points are not finite, or an option is out of range.

    Example:
        >>> from cflow.matching import OTCoupling
        >>> pool = PairPool((torch.randn(100, 2), torch.arange(100)), OTCoupling(), pool=50)
        >>> x0, x1, label = next(pool.batches(20, seed=0))
        >>> x0.shape, x1.shape, label.shape
        (torch.Size([20, 2]), torch.Size([20, 2]), torch.Size([20]))
    """

    data: Tensor | tuple[Tensor, ...]
    coupling: Coupling
    source: Law | Tensor | tuple[Tensor, Tensor] = field(default=None, kw_only=True)
    pool: int = field(default=1024, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    whole: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        expect_positive("PairPool", pool=self.pool)
        if self.workers < 0:
            raise DomainError(f"PairPool: workers must be 0 or more, got {self.workers}")
        if isinstance(self.coupling, PairedCoupling):
            raise DomainError(
                "PairPool: PairedCoupling needs no solve, and shuffling would part its pairs; give "
                "the tuple (x0, x1) to the trainer itself"
            )
        _expect_rows("data", self._tensors)
        if self._given:
            _expect_rows("source", self._given)

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._tensors[0])

    def batches(self, batch: int, *, seed: int, start: int = 0) -> abc.Generator[Batch, None, None]:
        """Give batches without end, from batch number `start` on; `close` ends the threads.

        Args:
            batch: Pairs in a batch.
            seed: Decides everything that is random.
            start: Batches that have been given before.

        Returns:
            Tuples of sources, targets and contexts, `(batch, ...)` each; no gradients.

        Raises:
            DomainError: The batch is empty, or the start negative.
            ShapeError: The source gives points of another shape.
            SolverError: A plan did not converge, or left no pair.
        """
        expect_positive("PairPool.batches", batch=batch)
        if start < 0:
            raise DomainError(f"PairPool.batches: start must be 0 or more, got {start}")
        first, skip = divmod(start * batch, self.pool)
        targets = Shuffle(len(self), f"{seed} targets")
        sources = Shuffle(len(self._given[0]), f"{seed} sources") if self._given else None
        make = partial(self._chunk, seed, targets, sources)
        with closing(ahead(make, start=first, workers=self.workers)) as chunks:
            yield from _cut(chunks, batch, skip)

    @property
    def _tensors(self) -> Batch:
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def _given(self) -> Batch:
        """Points that are given as sources, and their contexts; empty where sources are drawn."""
        if isinstance(self.source, Tensor):
            return (self.source,)
        return self.source if isinstance(self.source, tuple) else ()

    @torch.no_grad()
    def _chunk(self, seed: int, targets: Shuffle, sources: Shuffle | None, index: int) -> Batch:
        """Pair one pool; called by the workers."""
        tensors = self._tensors
        generator = Generator(tensors[0].device).manual_seed(hashed(f"{seed} pairs {index}"))
        if not self.whole:
            rows = targets.rows(index * self.pool, self.pool)
            tensors = tuple(t[rows.to(t.device)] for t in tensors)
        x1, context = tensors[0], tensors[1] if len(tensors) > 1 else None
        x0, own = self._sources(sources, index, x1, generator)
        pairs = self.coupling(x0, x1, context, source_context=own, generator=generator)
        i, j = _even(pairs, self.pool, generator)
        return x0[i], *(t[j.to(t.device)] for t in tensors)

    def _sources(
        self, shuffle: Shuffle | None, index: int, x1: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        if shuffle is None:
            law: Any = self.source
            return draw_sources("PairPool", law, self.pool, like=x1, generator=generator), None
        rows = shuffle.rows(index * self.pool, self.pool)
        points, *own = (t[rows.to(t.device)] for t in self._given)
        return points.to(x1), own[0] if own else None


def _even(pairs: Pairs, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return `count` pairs in random order, each as often as its weight says, to within one.

    Where all weigh the same and there are `count`, that is once.
    """
    i, j, weight = pairs
    if not len(j):
        raise SolverError("PairPool: the coupling left no pair in a pool; see its mass")
    device, order = j.device, torch.randperm(count, generator=generator, device=j.device)
    if weight is not None:
        # Equally spaced marks on the running sum of the weights: systematic sampling.
        total = weight.to(precise(device)).cumsum(0)
        shift = torch.rand((), generator=generator, device=device, dtype=total.dtype)
        marks = (order + shift) * (total[-1] / count)
        order = torch.searchsorted(total, marks, right=True).clamp_(max=len(j) - 1)
    elif len(j) != count:
        shift = torch.randint(len(j), (), generator=generator, device=device)
        order = (order * len(j) // count + shift) % len(j)
    return i[order], j[order]


def _cut(chunks: Iterator[Batch], batch: int, skip: int) -> Iterator[Batch]:
    """Cut chunks that follow one another into batches, after `skip` rows of the first."""
    parts: list[Batch] = []
    held = 0
    for chunk in chunks:
        at, size, skip = skip, len(chunk[0]), 0
        while at < size:
            take = min(batch - held, size - at)
            parts.append(tuple(t[at : at + take] for t in chunk))
            held, at = held + take, at + take
            if held == batch:
                whole = len(parts) == 1
                yield parts[0] if whole else tuple(map(torch.cat, zip(*parts, strict=True)))
                parts, held = [], 0


def _expect_rows(name: str, tensors: Batch) -> None:
    where = "PairPool"
    if not tensors or any(t.dim() < 1 or len(t) != len(tensors[0]) for t in tensors):
        raise ShapeError(
            f"{where}: the tensors of {name} need one leading axis of one length, got "
            f"{[tuple(t.shape) for t in tensors]}"
        )
    if not len(tensors[0]):
        raise ShapeError(f"{where}: {name} is empty")
    expect_floating(where, tensors[0])
    for position, tensor in enumerate(tensors):
        expect_finite(where, name if position == 0 else f"{name}[{position}]", tensor)
