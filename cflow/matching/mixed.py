"""Batches from two sources: made pairs with a share of real ones, say.

Source: Lee et al. (2024), Improving the training of rectified flows, arXiv 2405.20320, where pairs
from data keep a model from drifting towards what its teacher made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.matching.shuffle import Shuffle, hashed

__all__ = ["MixedPairs"]

Tensors: TypeAlias = tuple[Tensor, ...]


@runtime_checkable
class Source(Protocol):
    """What `cflow.train.BatchSource` is, seen from here."""

    def __len__(self) -> int: ...

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[Tensors]:
        """Give batches without end; number k follows from its size, the seed and k alone."""
        ...


@dataclass(frozen=True, eq=False)
class MixedPairs:
    """Take each batch from two sources, `round(share * batch)` rows of it from the second.

    The rows are shuffled within a batch. An epoch is one of the first source. Tensors are used once
    in each pass over them, in a fresh order.

    Args:
        first: A source of batches, or a tuple of tensors.
        second: Another, with tensors of the same shapes, (x0, x1) or (x0, x1, context).
        share: Of the second source, between 0 and 1.

    Raises:
        DomainError: The share is not between 0 and 1.
        ShapeError: Tensors of one source differ in length, or are empty.

    Example:
        >>> made, real = (torch.zeros(90, 2),) * 2, (torch.ones(30, 2),) * 2
        >>> x0, x1 = next(MixedPairs(made, real, share=0.25).batches(20, seed=0))
        >>> x0[:, 0].sum()
        tensor(5.)
    """

    first: Tensors | Source
    second: Tensors | Source
    share: float = field(kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise DomainError(f"MixedPairs: share must lie between 0 and 1, got {self.share}")
        for name in ("first", "second"):
            given = getattr(self, name)
            if isinstance(given, tuple) and (
                not given or not len(given[0]) or any(len(t) != len(given[0]) for t in given)
            ):
                raise ShapeError(
                    f"MixedPairs: the tensors of {name} need one leading axis of one length, got "
                    f"{[tuple(t.shape) for t in given]}"
                )

    def __len__(self) -> int:
        first = len(self.first[0]) if isinstance(self.first, tuple) else len(self.first)
        return max(1, round(first / (1 - self.share)))

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[Tensors]:
        """Give batches without end, from number `start` on.

        Raises:
            DomainError: A batch has no row of one of the sources; or what a source raises.
            ShapeError: The two sources give tensors of different numbers or shapes.
        """
        expect_positive("MixedPairs.batches", batch=batch)
        own = round(self.share * batch)
        if not 0 < own < batch:
            raise DomainError(
                f"MixedPairs.batches: a share of {self.share} leaves {own} rows of {batch} to the "
                "second source; take larger batches or another share"
            )
        parts = (
            _given(self.first, batch - own, seed, start),
            _given(self.second, own, hashed(f"{seed} second") % 2**31, start),
        )
        for k, (a, b) in enumerate(zip(*parts, strict=True), start):
            if [t.shape[1:] for t in a] != [t.shape[1:] for t in b]:
                raise ShapeError(
                    "MixedPairs: both sources must give the same tensors, got rows of "
                    f"{[tuple(t.shape[1:]) for t in a]} and {[tuple(t.shape[1:]) for t in b]}"
                )
            generator = Generator().manual_seed(hashed(f"{seed} mixed {k}"))
            order = torch.randperm(batch, generator=generator)
            yield tuple(
                torch.cat([s, t.to(s)])[order.to(s.device)] for s, t in zip(a, b, strict=True)
            )


def _given(source: Tensors | Source, batch: int, seed: int, start: int) -> Iterator[Tensors]:
    if not isinstance(source, tuple):
        yield from source.batches(batch, seed=seed, start=start)
        return
    shuffle = Shuffle(len(source[0]), f"{seed} mixed")
    first = start * batch
    while True:
        rows = shuffle.rows(first, batch)
        yield tuple(t[rows.to(t.device)] for t in source)
        first += batch
