"""N-gram models of a text, to hold bounds and samples against.

p(c | h) = (count(h, c) + strength p(c | shorter h)) / (count(h) + strength)
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

STRENGTH = 4.0  # counts that the shorter history is worth


class NGrams:
    """Count all histories of a text up to an order, and give characters their probabilities."""

    def __init__(self, tokens: Tensor, vocabulary: int, order: int) -> None:
        self.vocabulary, self.order = vocabulary, order
        x = tokens.numpy()
        self.counts = [
            np.unique(self._codes(x, n), return_counts=True) for n in range(1, order + 1)
        ]

    def nats(self, tokens: Tensor) -> float:
        """Return the cross-entropy of a text, or of rows of texts, in nats per character."""
        rows = tokens.numpy()
        rows = rows[None] if rows.ndim == 1 else rows
        total = sum(float(np.log(self._chances(row)).sum()) for row in rows)
        return -total / rows.size

    def seen(self, tokens: Tensor) -> float:
        """Return the share of n-grams of the highest order, in rows of text, that were counted."""
        codes = np.concatenate([self._codes(row, self.order) for row in tokens.numpy()])
        return float(np.isin(codes, self.counts[-1][0]).mean())

    def _chances(self, x: Any) -> Any:
        p = np.full(len(x), 1 / self.vocabulary)
        below = np.full(len(x), float(self.counts[0][1].sum()))  # of the empty history
        for n in range(1, self.order + 1):
            codes = self._codes(x, n)
            counted = self._count(codes, n)
            if n > 1:
                below = self._count(self._codes(x, n - 1)[:-1], n - 1)
                below = np.concatenate([np.zeros(n - 1), below])
            found = np.concatenate([np.zeros(n - 1), counted])
            p = (found + STRENGTH * p) / (below + STRENGTH)
        return p

    def _count(self, codes: Any, n: int) -> Any:
        known, counts = self.counts[n - 1]
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[place] == codes, counts[place], 0).astype(float)

    def _codes(self, x: Any, n: int) -> Any:
        """Number the n-grams of a text, in the order of their last characters."""
        codes = np.zeros(max(0, len(x) - n + 1), dtype=np.int64)
        for k in range(n):
            codes = codes * self.vocabulary + x[k : len(x) - n + 1 + k]
        return codes


def apart(one: Tensor, other: Tensor, vocabulary: int, n: int) -> float:
    """Return the total variation between the laws of n-grams in two sets of rows."""
    codes = []
    for rows in (one, other):
        grams = rows.unfold(1, n, 1).reshape(-1, n).numpy()
        codes.append(sum(grams[:, k] * vocabulary ** (n - 1 - k) for k in range(n)))
    names, place = np.unique(np.concatenate(codes), return_inverse=True)
    p, q = (
        np.bincount(part, minlength=len(names)) / len(part)
        for part in np.split(place, [len(codes[0])])
    )
    assert math.isclose(p.sum(), 1.0, rel_tol=1e-9)
    return float(0.5 * np.abs(p - q).sum())
