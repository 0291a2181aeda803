"""The reversible step on a pair of states, built on any explicit Runge-Kutta increment Psi.

    y_{n+1} = lambda y_n + (1 - lambda) z_n + Psi_h(t_n, z_n)
    z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1})

Source: McCallum and Foster (2024), arXiv 2410.11648, equations 2 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.ode.problem import Problem
from cflow.ode.step import Method, Step, Width, combine, stages
from cflow.ode.tableau import Tableau

__all__ = ["Pair"]


@dataclass(frozen=True)
class Pair(Method):
    """Step the pair (y, z) with the increments of a tableau."""

    tableau: Tableau
    coupling: float

    @property
    def nodes(self) -> tuple[float, ...]:  # type: ignore[override]
        """Nodes of the increment ahead, and of the one back (which needs no error estimate)."""
        back = self.back.c
        return (0.0, *self.tableau.c, 1.0, *(1.0 - c for c in back))

    @property
    def back(self) -> Tableau:
        """The tableau without a last stage that only the error estimate reads."""
        full = self.tableau
        if not full.fsal:
            return full
        return Tableau(full.order, full.a[:-1], full.b[:-1], full.c[:-1])

    def start(self, y: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        return [*y, *y]

    def resume(self, carry: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
        return carry

    def state(self, carry: list[Tensor]) -> list[Tensor]:
        return carry[: len(carry) // 2]

    def step(
        self,
        problem: Problem,
        carry: list[Tensor],
        args: tuple[Any, ...],
        times: Sequence[Tensor],
        h: Width,
    ) -> Step:
        count = len(carry) // 2
        y, z = carry[:count], carry[count:]
        ahead, slopes = self.ahead(problem, args, times, h, z)
        y_next = [
            self.coupling * a + (1 - self.coupling) * b + d
            for a, b, d in zip(y, z, ahead, strict=True)
        ]
        back = self.behind(problem, args, times, h, y_next)
        z_next = [a - d for a, d in zip(z, back, strict=True)]
        error = None
        if self.tableau.error is not None:
            with torch.no_grad():
                error = combine(self.tableau.estimate, slopes)
        evaluations = self.tableau.stages + self.back.stages
        return Step([*y_next, *z_next], y, y_next, slopes, error, evaluations)

    def ahead(
        self,
        problem: Problem,
        args: tuple[Any, ...],
        times: Sequence[Tensor],
        h: Width,
        z: list[Tensor],
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return Psi_h(t, z) and its slopes."""
        _, slopes = stages(self.tableau, problem, args, times, h, z)
        return _scaled(combine(self.tableau.result, slopes), h), slopes

    def behind(
        self,
        problem: Problem,
        args: tuple[Any, ...],
        times: Sequence[Tensor],
        h: Width,
        y: list[Tensor],
    ) -> list[Tensor]:
        """Return Psi_{-h}(t_next, y)."""
        minus = [-w for w in h] if isinstance(h, list) else -h
        later = times[self.tableau.stages :]
        _, slopes = stages(self.back, problem, args, later, minus, y)
        return _scaled(combine(self.back.result, slopes), minus)


def _scaled(leaves: list[Tensor], h: Width) -> list[Tensor]:
    if isinstance(h, list):
        return [leaf * width for leaf, width in zip(leaves, h, strict=True)]
    return [leaf * h for leaf in leaves]
