"""Couplings that solve for a plan: the mass that goes from each source to each target.

    P in R^(n x m),  P >= 0;    a pair (i, j) is drawn with probability P_ij / sum P

Conditions of the targets skew a plan: sources near the targets of one class go to that class, so at
sampling time, when any source meets any class, the field is asked where it has never been. With a
context weight the cost becomes

    cost(x0, x1) + w |c0 - c1|^2,

where c0 is a condition that the source has, or is dealt at random from those of the targets. Then
sources and contexts stay independent as w grows, and p(context) is kept whatever w is.
Source: Kerrigan et al. (2024), Dynamic conditional optimal transport through simulation-free flows,
arXiv 2404.04240; Chemseddine et al. (2024), Conditional Wasserstein distances with applications in
Bayesian OT flow matching, arXiv 2403.18705; Cheng and Schwing (2025), The curse of conditions,
arXiv 2503.10636.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, SolverError, expect_finite
from cflow.matching.batch import (
    Masses,
    expect_masses,
    expect_points,
    noise,
    precise,
    spelled,
    weighing,
)
from cflow.matching.cost import Cost, SquaredEuclidean, cost_matrix
from cflow.matching.coupling import Coupling, Pairs
from cflow.typing import Data

__all__ = ["PlanCoupling"]


@dataclass(frozen=True, kw_only=True)
class PlanCoupling(Coupling):
    """Solve for a plan, and draw one source for each target from the target's column of it.

    Authors write `_solve`. Where sizes agree and masses are uniform, and the plan is a permutation,
    nothing is left to draw. Targets that the plan leaves without mass get no pair.

    Args:
        cost: Callable `(x0, x1) -> (n, m)`; squared Euclidean by default.
        context_weight: Weight w of the squared distance between contexts, in units of cost over
            squared units of the context. 0 ignores contexts; `math.inf` pairs equal contexts only,
            class by class, and is what class labels want.
        replace: Draw as many pairs as there are targets from the whole plan, with replacement,
            instead of one for each target.
    """

    cost: Cost = field(default_factory=SquaredEuclidean)
    context_weight: float = 0.0
    replace: bool = False

    conserves: ClassVar[bool] = True  # whether all mass of the sources arrives, in each class

    def __post_init__(self) -> None:
        if not self.context_weight >= 0:
            raise DomainError(
                f"{type(self).__name__}: context_weight must be 0 or more, got "
                f"{self.context_weight!r}"
            )

    def __call__(
        self,
        x0: Data,
        x1: Data,
        context: Tensor | None = None,
        *,
        source_context: Tensor | None = None,
        weights: Masses | None = None,
        generator: Generator | None = None,
    ) -> Pairs:
        plan, owner = self._plan(x0, x1, context, source_context, weights, generator)
        if self.replace:
            flat = _draw(plan.reshape(1, -1), len(x1), generator)[0]
            i, j, weight = flat // plan.shape[1], flat % plan.shape[1], None
        elif (i := _permutation(plan)) is not None:
            j, weight = torch.from_numpy(np.arange(len(x1))), None
        else:
            mass = plan.sum(0)
            if not bool(mass.sum() > 0):
                raise SolverError(
                    f"{type(self).__name__}: the plan moves no mass, because every cost is far "
                    "above the penalty; raise the penalty or scale the points"
                )
            j = torch.nonzero(mass > 1e-9 * mass.mean()).flatten()
            mass = mass[j] / mass[j].mean()
            weight = None if bool((mass - 1).abs().max() < 1e-9) else weighing(mass, x1)
            i = _draw(plan.T[j], 1, generator)[:, 0]
        i, j = i.to(x1.device), j.to(x1.device)
        return Pairs(i if owner is None else owner[i], j, weight)

    def plan(
        self,
        x0: Data,
        x1: Data,
        context: Tensor | None = None,
        *,
        source_context: Tensor | None = None,
        weights: Masses | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return the plan, `(n, m)` in float64, on the device of x1; arguments as for a call.

        Example:
            >>> from cflow.matching import OTCoupling
            >>> OTCoupling().plan(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.1], [0.1]]))
            tensor([[0.0000, 0.5000],
                    [0.5000, 0.0000]], dtype=torch.float64)
        """
        plan, owner = self._plan(x0, x1, context, source_context, weights, generator)
        plan = plan.to(x1.device)
        if owner is None:
            return plan
        return plan.new_zeros(len(x0), len(x1)).index_add_(0, owner, plan)

    @abstractmethod
    def _solve(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """Return the plan for finite costs `(n, m)`.

        Masses a and b have one sum, which need not be one (a class is a part of the whole); None is
        uniform with sum one.
        """

    def _plan(
        self,
        x0: Tensor,
        x1: Tensor,
        context: Tensor | None,
        source_context: Tensor | None,
        weights: Masses | None,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return a plan, and the source that owns each of its rows where that is not the row."""
        where = type(self).__name__
        expect_points(where, x0, x1, context, source_context)
        a, b = expect_masses(where, weights, x0, x1)
        if not self.context_weight:
            return self._solve(cost_matrix(where, self.cost, x0, x1), a, b), None
        if context is None:
            raise DomainError(
                f"{where}: context_weight is {self.context_weight:g}, so a context is needed"
            )
        expect_finite(where, "context", context)
        owner = None
        if source_context is None:
            owner, donor, a = _deal(a, b, len(x0), len(x1), generator, x1.device)
            x0, source_context = x0[owner], context[donor]
        elif source_context.shape[1:] != context.shape[1:]:
            raise ShapeError(
                f"{where}: source_context and context need one shape after the batch axis, got "
                f"{tuple(source_context.shape)} and {tuple(context.shape)}"
            )
        expect_finite(where, "source_context", source_context)
        if math.isinf(self.context_weight):
            return self._by_class(x0, x1, context, source_context, a, b), owner
        c = cost_matrix(where, self.cost, x0, x1)
        distance = SquaredEuclidean()(source_context, context)
        return self._solve(c + self.context_weight * distance, a, b), owner

    def _by_class(
        self,
        x0: Tensor,
        x1: Tensor,
        context: Tensor,
        source_context: Tensor,
        a: Tensor | None,
        b: Tensor | None,
    ) -> Tensor:
        """Solve each class alone: conditions that are equal make one class."""
        where, n = type(self).__name__, len(x0)
        labels = torch.cat([source_context, context])
        classes, label = torch.unique(labels, dim=0, return_inverse=True)
        a, b = spelled(a, n, x1.device), spelled(b, len(x1), x1.device)
        plan = a.new_zeros(n, len(x1))
        for k in range(len(classes)):
            rows = torch.nonzero(label[:n] == k).flatten()
            columns = torch.nonzero(label[n:] == k).flatten()
            p, q = a[rows], b[columns]
            if self.conserves:
                given, wanted = p.sum().item(), q.sum().item()
                if abs(given - wanted) > 1e-6:
                    raise DomainError(
                        f"{where}: sources of context {classes[k].tolist()} have mass {given:.6g}, "
                        f"its targets {wanted:.6g}; with context_weight=inf both must agree: give "
                        "no source_context, or a finite weight"
                    )
                p = p * (wanted / given)
            if len(rows) and len(columns):
                c = cost_matrix(where, self.cost, x0[rows], x1[columns])
                plan[rows[:, None], columns] = self._solve(c, p, q).to(plan)
        return plan


def _deal(
    a: Tensor | None,
    b: Tensor | None,
    n: int,
    m: int,
    generator: Generator | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Deal the contexts of the targets to the sources at random, and keep the masses of both.

    Lay the sources in random order, and the targets, side by side on a circle of length one: where
    they overlap, the source has the context of that target. A source that overlaps several is cut.

    Returns:
        For each piece its source, the target whose context it has, and its mass.
    """
    order = noise(torch.randperm, n, generator, torch.device("cpu"))
    if a is None and b is None and n == m:
        return order.to(device), torch.arange(n, device=device), None
    edges = torch.arange(1, n + 1, dtype=torch.float64) / n
    others = torch.arange(1, m + 1, dtype=torch.float64) / m
    turn = torch.zeros(1, dtype=torch.float64)
    if a is not None:  # order alone would favour some overlaps of unequal lengths
        edges = a.cpu().double()[order].cumsum(0)
        turn = noise(torch.rand, 1, generator, order.device, torch.float64)
    if b is not None:
        others = b.cpu().double().cumsum(0)
    cuts = torch.cat([(edges + turn) % 1, others, edges.new_tensor([0.0, 1.0])]).sort()[0]
    mass, middle = cuts.diff(), (cuts[1:] + cuts[:-1]) / 2
    keep = mass > 1e-12  # rounding leaves slivers
    mass, middle = mass[keep], middle[keep]
    piece = torch.searchsorted(edges, (middle - turn) % 1).clamp_(max=n - 1)
    donor = torch.searchsorted(others, middle).clamp_(max=m - 1)
    mass = (mass / mass.sum()).to(device, precise(device))
    return order[piece].to(device), donor.to(device), mass


def _permutation(plan: Tensor) -> Tensor | None:
    """Return the source of each target if the plan is a permutation with equal masses."""
    n, m = plan.shape
    if n != m:
        return None
    # Plans that are permutations come from exact solvers, which run there. NumPy reads them in one
    # thread: waking torch's pool can take longer than a small solve.
    p = plan.cpu().numpy()
    target, rows = p.argmax(1), np.arange(n)
    source = np.full(n, -1)
    source[target] = rows
    if source.min() < 0 or np.abs(p[rows, target] * n - 1).max() > 1e-9:
        return None
    return torch.from_numpy(source)


def _draw(weight: Tensor, count: int, generator: Generator | None) -> Tensor:
    """Draw `count` indices from each row of `(rows, n)` masses, by inverting their running sum."""
    total = weight.cumsum(1)
    shape = (len(weight), count)
    u = noise(torch.rand, shape, generator, weight.device, weight.dtype) * total[:, -1:]
    # an index whose running sum exceeds u, and no earlier one does, has mass of its own
    return torch.searchsorted(total, u, right=True).clamp_(max=weight.shape[1] - 1)
