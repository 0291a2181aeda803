"""Batches that can be drawn again: the order of every epoch follows from the seed alone.

So a training that resumes at step k continues with the very batch an uninterrupted one would see.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cflow.errors import DomainError, ShapeError, expect_finite

__all__ = ["BatchSource", "TrainingData", "batches", "check_data", "in_order", "size"]


@runtime_checkable
class BatchSource(Protocol):
    """Data that makes its own batches, such as `cflow.matching.PairPool`."""

    def __len__(self) -> int:
        """Return the number of examples, which make an epoch."""
        ...

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Give batches without end, from batch number `start` on.

        Batch number k must follow from the size, the seed and k alone, so that a training that
        resumes sees what it would have seen. An iterator that holds threads ends them on `close`.
        """
        ...


TrainingData: TypeAlias = Tensor | tuple[Tensor, ...] | Dataset[Any] | BatchSource
"""Points, points with contexts, a map-style dataset of either, or a source of batches."""

IN_ORDER_SEED = 20_250_103  # of a source's batches where they have to be the same every time


def size(data: TrainingData) -> int:
    """Return the number of examples."""
    return len(data[0]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]


def check_data(where: str, data: TrainingData) -> None:
    """Refuse empty, ragged or non-finite tensors.

    Raises:
        ShapeError: There is no example, or tensors differ in length.
        DomainError: A value is NaN or infinite.
    """
    tensors = data if isinstance(data, tuple) else (data,) if isinstance(data, Tensor) else ()
    if any(t.dim() < 1 or len(t) != size(data) for t in tensors):
        raise ShapeError(
            f"{where}: tensors need one leading axis of one length, got "
            f"{[tuple(t.shape) for t in tensors]}"
        )
    if size(data) < 1:
        raise ShapeError(f"{where}: the data is empty")
    for position, tensor in enumerate(tensors):
        expect_finite(where, "data" if position == 0 else f"data[{position}]", tensor)


def batches(
    data: TrainingData, batch: int, *, seed: int, start: int = 0, workers: int = 0
) -> Generator[tuple[Tensor, ...], None, None]:
    """Draw batches without end, each epoch in a fresh order, from batch number `start` on.

    Args:
        data: The examples; the last few of an epoch that fill no batch wait for the next one. A
            source of batches has its own way.
        batch: Examples in a batch; all of them where there are fewer.
        seed: Decides the order.
        start: Batches that have been drawn before.
        workers: Processes that load a dataset; tensors are indexed at once.

    Raises:
        DomainError: The batch is empty, a dataset holds a value that is not finite, or a source
            comes to an end.

    Example:
        >>> first = list(zip(range(3), batches(torch.arange(4), 2, seed=0)))
        >>> again = next(batches(torch.arange(4), 2, seed=0, start=2))
        >>> torch.equal(first[2][1][0], again[0])
        True
    """
    if batch < 1:
        raise DomainError(f"batches: batch must be at least 1, got {batch}")
    if isinstance(data, BatchSource):
        yield from data.batches(batch, seed=seed, start=start)
        raise DomainError(
            f"batches: {type(data).__name__}.batches came to an end; a source must go on, epoch "
            "after epoch"
        )
    order = _order(size(data), batch, seed, start)
    if isinstance(data, Tensor | tuple):
        tensors = data if isinstance(data, tuple) else (data,)
        for index in order:
            yield tuple(t[index.to(t.device)] for t in tensors)
        return
    sampler: Iterator[Sequence[int]] = (index.tolist() for index in order)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, generator=generator)  # type: ignore[arg-type]
    for item in loader:
        parts = tuple(item) if isinstance(item, list | tuple) else (item,)
        for position, part in enumerate(parts):
            expect_finite("batches", f"part {position} of a batch", part)
        yield parts


def in_order(data: TrainingData, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """Give every example once, in order, the last batch as long as it comes.

    A source of batches gives those of about one epoch, the same every time.

    Example:
        >>> [len(x) for x, in in_order(torch.arange(5), 2)]
        [2, 2, 1]
    """
    if isinstance(data, Tensor | tuple):
        tensors = data if isinstance(data, tuple) else (data,)
        for k in range(0, size(data), batch):
            yield tuple(t[k : k + batch] for t in tensors)
        return
    if isinstance(data, BatchSource):
        with closing(batches(data, batch, seed=IN_ORDER_SEED)) as source:
            yield from islice(source, max(1, round(len(data) / batch)))
        return
    for item in DataLoader(data, batch_size=batch):
        yield tuple(item) if isinstance(item, list | tuple) else (item,)


def _order(count: int, batch: int, seed: int, start: int) -> Iterator[Tensor]:
    batch = min(batch, count)
    per_epoch = count // batch
    position = start
    while True:
        epoch, first = divmod(position, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        permutation = torch.randperm(count, generator=generator)
        for k in range(first, per_epoch):
            yield permutation[k * batch : (k + 1) * batch]
        position = (epoch + 1) * per_epoch
