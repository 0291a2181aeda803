"""Ways to invert y = g(x; theta(x)) when theta_i reads only features that come before i.

With x = g^-1(y; theta(x)) as a fixed-point iteration, features of depth k are exact after k + 1
sweeps, from any start: every method here is exact in the end and only some are earlier. They run
without gradients, see `implicit.py`; `unrolled` is the way with gradients through each step.

Source: Song, Meng, Liao and Ermon (2021), Accelerating feedforward computation via parallel
nonlinear equation solving, arXiv 2002.03629, algorithms 1 to 3; Wiggers and Hoogeboom (2020),
Predictive sampling with forecasting autoregressive models, arXiv 2002.09928.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError, SolverError, expect_positive
from cflow.nets import MaskedMLP
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["GaussSeidel", "Inversion", "Jacobi", "Passes", "Triangular", "unrolled"]


@dataclass(frozen=True)
class Triangular:
    """Hold the equation y = g(x; theta(x)) that is solved for x.

    Attributes:
        steer: `steer(x, context) -> theta`, `(*batch, D, parameters)`.
        univariate: The map g of one number.
        depth: For each feature the longest chain of features that leads to it.
        net: The network behind `steer`, where it is a `MaskedMLP`.
    """

    steer: Callable[[Tensor, Tensor | None], Tensor]
    univariate: UnivariateMap
    depth: tuple[int, ...]
    net: MaskedMLP | None = None

    @property
    def levels(self) -> int:
        """How many passes find every feature."""
        return max(self.depth) + 1

    def push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return y and the log-slopes log|dy_i/dx_i|."""
        return in_full_precision(self.univariate.push, x, self.steer(x, context))

    def sweep(self, x: Tensor, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return g^-1(y; theta(x)) and its log-slopes."""
        return in_full_precision(self.univariate.pull, y, self.steer(x, context))


class Inversion(ABC):
    """Say how a pull runs; concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def check(self, levels: int) -> None:
        """Raise `DomainError` if this cannot invert a graph of so many levels."""

    @abstractmethod
    def solve(self, system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x and log|dx_i/dy_i| for y `(rows, D)`, without gradients.

        Raises:
            SolverError: A sample did not come within its tolerance.
        """


def unrolled(system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Invert level by level, one pass of the conditioner each, with gradients through all of them.

    Features not yet known stand at zero meanwhile, so no far value of theirs can do harm.
    """
    depth = torch.tensor(system.depth, device=y.device)
    x = torch.zeros_like(y)
    slopes = x
    for level in range(system.levels):
        found, slopes = system.sweep(x, y, context)
        x = torch.where(depth <= level, found, 0.0)
    return x, slopes


@dataclass(frozen=True)
class Passes(Inversion):
    """Run the whole conditioner once for each level: two passes for a coupling, D for an order.

    Attributes:
        most: The most passes that shall be needed; a deeper graph is refused. None for any.

    Example:
        >>> Passes(most=2).check(levels=2)
    """

    most: int | None = None

    def __post_init__(self) -> None:
        if self.most is not None:
            expect_positive("Passes", most=self.most)

    def check(self, levels: int) -> None:
        if self.most is not None and levels > self.most:
            raise DomainError(
                f"Passes: the graph has {levels} levels and needs as many passes, at most "
                f"{self.most} are allowed; build it with adjacency_of_passes(features, {self.most})"
            )

    def solve(self, system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return unrolled(system, y, context)


@dataclass(frozen=True)
class Jacobi(Inversion):
    """Sweep over all features at once until no feature of a sample moves any more.

    Samples that have settled leave the batch, so that none depends on its batch mates. A sample
    that has not is exact anyway after as many sweeps as the graph has levels.

    Attributes:
        tolerance: Largest change of a settled feature in a sweep, relative to 1 + |x|.
        max_sweeps: Sweeps after which an unsettled sample is an error; None for the levels, which
            always suffice.

    Example:
        >>> Jacobi(tolerance=1e-4).max_sweeps is None
        True
    """

    tolerance: float = 1e-6
    max_sweeps: int | None = None

    def __post_init__(self) -> None:
        _check_options(self)

    def check(self, levels: int) -> None:
        """Any graph will do."""

    def solve(self, system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        everything = torch.ones(y.shape[-1], dtype=torch.bool, device=y.device)
        start = torch.zeros_like(y)
        x = _settle(self, system, start, y, context, everything, system.levels)
        return x, system.sweep(x, y, context)[1]


@dataclass(frozen=True)
class GaussSeidel(Inversion):
    """Settle one block of levels after the other, by Jacobi sweeps inside each.

    Attributes:
        block: Levels in a block.
        tolerance: As for `Jacobi`.
        max_sweeps: Sweeps of one block after which an unsettled sample is an error; None for the
            levels of the block, which always suffice.

    Example:
        >>> GaussSeidel(block=8).tolerance
        1e-06
    """

    block: int = 16
    tolerance: float = 1e-6
    max_sweeps: int | None = None

    def __post_init__(self) -> None:
        _check_options(self)
        expect_positive("GaussSeidel", block=self.block)

    def check(self, levels: int) -> None:
        """Any graph will do."""

    def solve(self, system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        depth, x = torch.tensor(system.depth, device=y.device), torch.zeros_like(y)
        for first in range(0, system.levels, self.block):
            last = min(first + self.block, system.levels)
            inside = (depth >= first) & (depth < last)
            x = _settle(self, system, x, y, context, inside, last - first)
        return x, system.sweep(x, y, context)[1]


def _settle(
    how: Jacobi | GaussSeidel,
    system: Triangular,
    x: Tensor,
    y: Tensor,
    context: Tensor | None,
    moving: Tensor,
    levels: int,
) -> Tensor:
    """Sweep until the moving features have settled in every row; the others stay."""
    x, rows = x.clone(), torch.arange(len(y), device=y.device)
    most = levels if how.max_sweeps is None else how.max_sweeps
    for sweep in range(1, most + 1):
        if not len(rows):
            return x
        given = None if context is None else context[rows]
        old = x[rows]
        new = torch.where(moving, system.sweep(old, y[rows], given)[0], old)
        # An unsettled feature may be thrown out of range; times a zero weight it would stay there.
        x[rows] = torch.where(new.isfinite(), new, 0.0) if sweep < levels else new
        settled = ((new - old).abs() <= how.tolerance * (1 + new.abs())).all(-1)
        rows = rows[~settled]
    if len(rows) and most < levels:
        raise SolverError(
            f"{type(how).__name__}: {len(rows)} of {len(y)} samples did not settle to "
            f"{how.tolerance} within {most} sweeps, sample {int(rows[0])} first; {levels} sweeps "
            "are always enough, max_sweeps=None allows them"
        )
    return x


def _check_options(how: Jacobi | GaussSeidel) -> None:
    name = type(how).__name__
    expect_positive(name, tolerance=how.tolerance)
    if how.max_sweeps is not None:
        expect_positive(name, max_sweeps=how.max_sweeps)
