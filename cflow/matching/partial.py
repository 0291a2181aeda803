"""Partial optimal transport: only a share of the mass travels, the cheapest share.

    min_P sum_ij C_ij P_ij,    P >= 0,  P 1 <= a,  P^T 1 <= b,  sum P = mass

One more source and one more target, free to reach, take what stays behind; a high price between
those two keeps them from trading with each other. The larger problem is solved exactly.
Source: Chapel, Alaya and Gasso (2020), Partial optimal transport with applications on
positive-unlabeled learning, arXiv 2002.08276, proposition 1; Caffarelli and McCann (2010), Free
boundaries in optimal transport and Monge-Ampere obstacle problems.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.matching.batch import spelled
from cflow.matching.exact import network_simplex
from cflow.matching.plan import PlanCoupling

__all__ = ["PartialCoupling"]


@dataclass(frozen=True)
class PartialCoupling(PlanCoupling):
    """Pair by the exact plan that moves a given share of the mass; the rest has no pairs.

    Between n sources and n targets of uniform mass, a mass of k / n pairs k of them, each once.
    Where a target is served in part, `Pairs.weight` carries its share over the mean share.

    Args:
        mass: Share that travels, in (0, 1]; 1 is the plan of `OTCoupling`.
        cost: As for every coupling that solves for a plan, and so are the next two.
        context_weight: Weight of the distance between contexts; with `math.inf` the same share of
            each class travels, so that p(context) is kept.
        replace: Draw as many pairs as there are targets from the whole plan, with replacement.

    Raises:
        DomainError: The mass lies outside (0, 1].
        SolverError: The simplex did not end.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[9.0], [1.0]])
        >>> PartialCoupling(mass=0.5)(x0, x1)
        Pairs(i=tensor([1]), j=tensor([1]), weight=None)
    """

    mass: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mass <= 1:
            raise DomainError(f"PartialCoupling: mass must lie in (0, 1], got {self.mass!r}")

    def _solve(self, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        n, m = cost.shape
        p = spelled(a, n, cost.device).cpu().double().numpy()
        q = spelled(b, m, cost.device).cpu().double().numpy()
        c = cost.cpu().double().numpy()
        rest = (1 - self.mass) * p.sum()
        wide = np.zeros((n + 1, m + 1))
        wide[:n, :m] = c
        wide[n, m] = 2 * np.abs(c).max() + 1e-3 * np.ptp(c) or 1.0  # dearer than any detour
        plan = network_simplex("PartialCoupling", wide, np.append(p, rest), np.append(q, rest))
        return torch.from_numpy(plan[:n, :m].copy())
