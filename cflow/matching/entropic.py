"""Entropic optimal transport between two batches.

    min_P <C, P> + reg KL(P | a b^T),    P 1 = a,  P^T 1 = b

Small reg comes near the exact plan, large reg near the independent one. With the squared Euclidean
cost and reg = 2 sigma^2 it is the static Schroedinger bridge of a Brownian motion of variance
sigma^2, which is what SF2M trains on.
Source: Cuturi (2013), Sinkhorn distances, arXiv 1306.0895; Tong et al. (2024), Simulation-free
Schroedinger bridges via score and flow matching, arXiv 2307.03672, section 3; Altschuler et al.
(2017), Near-linear time approximation algorithms for optimal transport, arXiv 1705.09634.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import SolverError, expect_positive
from cflow.matching.batch import spelled
from cflow.matching.plan import PlanCoupling
from cflow.matching.sinkhorn import Sinkhorn

__all__ = ["EntropicCoupling"]


@dataclass(frozen=True)
class EntropicCoupling(PlanCoupling):
    """Pair by the entropic plan: one source for each target, drawn from its column.

    Solved in the log domain in float64, on the device of the points.

    Args:
        reg: Weight of the entropy, in units of the cost (of squared lengths, by default).
        tolerance: Largest sum of |sum_j P_ij - a_i| over the sources; the marginal of the targets
            holds to rounding.
        max_iterations: Iterations after which the solve gives up.
        fallback: Where it gave up, warn and pull the last plan onto its marginals (Altschuler et
            al., algorithm 2) instead of raising: a plan with exact marginals, near the entropic.
        cost: As for every coupling that solves for a plan, and so are the next two.
        context_weight: Weight of the distance between contexts; `math.inf` solves class by class.
        replace: Draw pairs from the whole plan, with replacement.

    Raises:
        DomainError: reg, tolerance or max_iterations is not positive.
        SolverError: The marginals did not reach the tolerance; never with `fallback`.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
        >>> EntropicCoupling(reg=1.0).plan(x0, x1)
        tensor([[0.1345, 0.3655],
                [0.3655, 0.1345]], dtype=torch.float64)
    """

    reg: float
    tolerance: float = 1e-5
    max_iterations: int = 10_000
    fallback: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive(
            "EntropicCoupling",
            reg=self.reg,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def _solve(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        a = spelled(a, cost.shape[0], cost.device)
        b = spelled(b, cost.shape[1], cost.device)
        sinkhorn = Sinkhorn(self.reg, tolerance=self.tolerance, max_iterations=self.max_iterations)
        plan, error, iterations = sinkhorn(cost, a, b)
        if error <= self.tolerance:
            return plan
        trouble = (
            f"EntropicCoupling: the marginals are off by {error:.2g} after {iterations} "
            f"iterations at reg={self.reg:g} (mean cost {cost.mean().item():.3g}), wanted "
            f"{self.tolerance:g}"
        )
        if not self.fallback:
            raise SolverError(
                f"{trouble}; raise reg, max_iterations or the tolerance, take OTCoupling, or pass "
                "fallback=True"
            )
        warnings.warn(f"{trouble}; the last plan is pulled onto its marginals", stacklevel=4)
        return _rounded(plan, a, b)


def _rounded(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a plan near the given one whose marginals are a and b."""
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (a / plan.sum(1).clamp(min=tiny)).clamp(max=1)[:, None]
    plan = plan * (b / plan.sum(0).clamp(min=tiny)).clamp(max=1)
    rows, columns = a - plan.sum(1), b - plan.sum(0)
    return plan + rows.clamp(min=0)[:, None] * columns.clamp(min=0) / rows.sum().clamp(min=tiny)
