"""Endless orders and streams of numbers that follow from a name alone."""

from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Generator, Tensor

__all__ = ["Shuffle", "hashed"]


class Shuffle:
    """The rows of a data set in an endless order: one permutation of all after another."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self.permutation = lru_cache(maxsize=2)(self._permute)  # neighbours share an epoch

    def rows(self, first: int, count: int) -> Tensor:
        """Return the rows at positions first .. first + count - 1."""
        epoch, at = divmod(first, self.size)
        parts: list[Tensor] = []
        while count > 0:
            parts.append(self.permutation(epoch)[at : at + count])
            count, epoch, at = count - len(parts[-1]), epoch + 1, 0
        return torch.cat(parts)

    def _permute(self, epoch: int) -> Tensor:
        generator = Generator().manual_seed(hashed(f"{self.name} {epoch}"))
        return torch.randperm(self.size, generator=generator)


def hashed(name: str) -> int:
    """Turn a name into a seed: streams of neighbouring names have nothing in common.

    Nor have they with the stream of the seed itself, from which a trainer draws times.
    """
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
