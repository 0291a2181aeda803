"""The samples of an adaptive solve that are still under way: all that one of them owns, row by row.

What enters the graph is tensors; clocks and counters are plain numbers on the host, so a step costs
one transfer in either direction and nothing else waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cflow.ode.problem import select_rows

__all__ = ["Rows"]


@dataclass
class Rows:
    """Hold rows of a solve.

    Attributes:
        carry: Tensors that the method carries, each `(rows, ...)`.
        args: Trees for the field, with the same rows.
        index: Numbers of the samples in the batch.
        t: Time that each has reached.
        h: Step size that it will try next, signed.
        size: Norm of its last accepted error.
        nfe: Evaluations of the field.
        accepted: Accepted steps.
        rejected: Rejected steps.
        status: Its `Status`.
        saved: How many of the times to save it has passed.
    """

    carry: list[Tensor]
    args: tuple[Any, ...]
    index: np.ndarray
    t: np.ndarray
    h: np.ndarray
    size: np.ndarray
    nfe: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    status: np.ndarray
    saved: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def select(self, mask: np.ndarray) -> "Rows":
        """Keep the rows where mask holds."""
        rows = torch.from_numpy(np.flatnonzero(mask)).to(self.carry[0].device)
        numbers = {name: getattr(self, name)[mask] for name in NUMBERS}
        carry = [leaf.index_select(0, rows) for leaf in self.carry]
        return Rows(carry, select_rows(self.args, rows), **numbers)

    @staticmethod
    def join(parts: Sequence["Rows"], args: tuple[Any, ...]) -> "Rows":
        """Put parts together in the order of their numbers; `args` belong to all of them."""
        if len(parts) == 1:
            return replace(parts[0], args=args)
        numbers = {name: np.concatenate([getattr(p, name) for p in parts]) for name in NUMBERS}
        order = np.argsort(numbers["index"])
        numbers = {name: value[order] for name, value in numbers.items()}
        rows = torch.from_numpy(order).to(parts[0].carry[0].device)
        columns = zip(*(part.carry for part in parts), strict=True)
        carry = [torch.cat(list(column)).index_select(0, rows) for column in columns]
        return Rows(carry, args, **numbers)


NUMBERS = [f.name for f in fields(Rows) if f.name not in ("carry", "args")]
