"""Unbalanced optimal transport: mass may vanish and appear, at a price.

    min_P <C, P> + reg KL(P | a b^T) + penalty KL(P 1 | a) + penalty KL(P^T 1 | b)

A point whose partners are all farther than about the penalty keeps little mass, so that outliers
and clusters of other sizes do not drag pairs across the plane. As the penalty grows the plan
becomes the entropic one.
Source: Chizat et al. (2018), Scaling algorithms for unbalanced optimal transport problems, arXiv
1607.05816; Eyring et al. (2024), Unbalancedness in neural Monge maps improves unpaired domain
translation, arXiv 2311.15100, for its use as a coupling.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.errors import SolverError, expect_positive
from cflow.matching.batch import spelled
from cflow.matching.plan import PlanCoupling
from cflow.matching.sinkhorn import Sinkhorn

__all__ = ["UnbalancedCoupling"]


@dataclass(frozen=True)
class UnbalancedCoupling(PlanCoupling):
    """Pair by the unbalanced entropic plan; each pair carries the mass of its target.

    Each target has one pair, its source drawn from its column, and `Pairs.weight` is the mass that
    arrives at the target over the mean mass: the weighted mean of a loss is its expectation over
    the plan, on the scale that it has without weights. The mass itself is `plan(...).sum()`. With
    `replace=True` targets are drawn by their mass instead, and no weights are needed.

    Args:
        reg: Weight of the entropy, in units of the cost.
        penalty: Weight of the marginals, in units of the cost.
        tolerance: Share of the mass that the next update may still move.
        max_iterations: Iterations after which the solve gives up.
        fallback: Where it gave up, warn and use the last plan instead of raising.
        cost: As for every coupling that solves for a plan, and so are the next two.
        context_weight: Weight of the distance between contexts; `math.inf` solves class by class,
            where a class may have another mass on each side, or none on one.
        replace: Draw pairs from the whole plan, with replacement.

    Raises:
        DomainError: An argument is not positive.
        SolverError: The solve did not reach its tolerance, or no mass is worth its transport.

    Example:
        >>> import torch
        >>> x0, x1 = torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])
        >>> UnbalancedCoupling(reg=0.5, penalty=1.0)(x0, x1).weight
        tensor([1.3215, 0.6785])
    """

    reg: float
    penalty: float
    tolerance: float = 1e-5
    max_iterations: int = 10_000
    fallback: bool = False

    conserves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive(
            "UnbalancedCoupling",
            reg=self.reg,
            penalty=self.penalty,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def _solve(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        a = spelled(a, cost.shape[0], cost.device)
        b = spelled(b, cost.shape[1], cost.device)
        sinkhorn = Sinkhorn(self.reg, self.penalty, self.tolerance, self.max_iterations)
        plan, error, iterations = sinkhorn(cost, a, b)
        if error <= self.tolerance:
            return plan
        trouble = (
            f"UnbalancedCoupling: the next update would still move {error:.2g} of the mass after "
            f"{iterations} iterations at reg={self.reg:g}, penalty={self.penalty:g} (mean cost "
            f"{cost.mean().item():.3g}), wanted {self.tolerance:g}"
        )
        if not self.fallback:
            raise SolverError(
                f"{trouble}; raise reg, max_iterations or the tolerance, or pass fallback=True"
            )
        warnings.warn(f"{trouble}; the last plan is used", stacklevel=4)
        return plan
