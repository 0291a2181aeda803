"""Sinkhorn's iteration in the log domain, for plans with an entropy and, if wanted, soft marginals.

    min_P <C, P> + reg KL(P | a b^T) + penalty KL(P 1 | a) + penalty KL(P^T 1 | b)
    P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg)
    f_i <- - lambda reg log sum_j b_j exp((g_j - C_ij) / reg),   lambda = penalty / (penalty + reg)

and g likewise. An infinite penalty, lambda = 1, makes the marginals a and b exact. Nothing
underflows: potentials are kept as logarithms, and updated by matrix products with the current plan
only as long as the scalings stay in range. A large reg comes first and falls to the wanted one, and
updates are over-relaxed by the factor that the observed rate eta suggests, 2 / (1 + sqrt(1 - eta)),
which takes about the square root of the iterations where convergence is slow.
Source: Cuturi (2013), Sinkhorn distances, arXiv 1306.0895; Chizat et al. (2018), Scaling algorithms
for unbalanced optimal transport problems, arXiv 1607.05816, for lambda; Schmitzer (2019),
Stabilized sparse scaling algorithms for entropy regularized transport problems, arXiv 1610.06519,
for absorbing the scalings and for the falling reg; Lehmann et al. (2022), A note on overrelaxation
in the Sinkhorn algorithm, arXiv 2012.12562; Sejourne et al. (2022), Faster unbalanced optimal
transport, arXiv 2201.00730, for the constant that potentials trade.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Sinkhorn", "SinkhornPlan"]

CHECK = 10  # iterations between two looks at the error
ABSORB = 1000  # iterations by matrix products before the scalings go into the potentials
TRADE = 50  # the same with soft marginals, where potentials trade a constant in between
RANGE = 1e100  # beyond which a scaling is absorbed at once
WAIT = 50  # iterations after which the observed rate of convergence sets the relaxation
FALL = 4.0  # factor by which reg falls from stage to stage


class SinkhornPlan(NamedTuple):
    """Hold a plan `(n, m)`, the error of its marginals, and the iterations that it took."""

    plan: Tensor
    error: float
    iterations: int


@dataclass(frozen=True)
class Sinkhorn:
    """Iterate until the next update would move no more than `tolerance` of the mass.

    With exact marginals that is sum_i |sum_j P_ij - a_i| over the total mass; the other marginal
    holds to rounding.

    Args:
        reg: Weight of the entropy, in units of the cost.
        penalty: Weight of the marginals, in units of the cost; infinite where they are exact.
        tolerance: Error at which the iteration stops.
        max_iterations: Iterations after which it stops anyway.

    Example:
        >>> cost, half = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.5, 0.5])
        >>> Sinkhorn(1.0)(cost, half, half).plan.sum(0)
        tensor([0.5000, 0.5000])
    """

    reg: float
    penalty: float = float("inf")
    tolerance: float = 1e-6
    max_iterations: int = 10_000

    def __call__(self, cost: Tensor, a: Tensor, b: Tensor) -> SinkhornPlan:
        """Return the plan for costs `(n, m)` and masses `(n,)`, `(m,)`, which may hold zeros."""
        rows, columns = a > 0, b > 0
        if bool(rows.all()) and bool(columns.all()):
            return self._run(cost, a, b)
        index = torch.nonzero(rows), torch.nonzero(columns)[:, 0]
        part = self._run(cost[index], a[rows], b[columns])
        plan = torch.zeros_like(cost)
        plan[index] = part.plan
        return SinkhornPlan(plan, part.error, part.iterations)

    def _run(self, cost: Tensor, a: Tensor, b: Tensor) -> SinkhornPlan:
        floor = cost.min()
        cost = cost - floor if self.penalty == float("inf") else cost
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        reg, used = max(self.reg, float(cost.max() - cost.min())), 0
        while True:
            last = reg <= self.reg
            tolerance = self.tolerance if last else max(self.tolerance, 1e-2)
            result, f, g = self._stage(cost, a, b, f, g, max(reg, self.reg), tolerance, used)
            used = result.iterations
            if last:
                return result
            # out of iterations on the way down: look once at the wanted reg, for its own error
            reg = self.reg if used >= self.max_iterations else max(reg / FALL, self.reg)

    def _stage(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        reg: float,
        tolerance: float,
        used: int,
    ) -> tuple[SinkhornPlan, Tensor, Tensor]:
        """Iterate at one reg; also return the potentials."""
        lam = 1.0 if self.penalty == float("inf") else self.penalty / (self.penalty + reg)
        log_a, log_b = a.log(), b.log()
        while True:
            before = f
            f = -lam * reg * torch.logsumexp(log_b + (g - cost) / reg, 1)
            g = -lam * reg * torch.logsumexp((log_a + f / reg)[:, None] - cost / reg, 0)
            if lam < 1.0:  # move on the constant that both can trade, which updates alone do slowly
                half = self.penalty / 2
                trade = half * torch.logsumexp(log_a - f / self.penalty, 0)
                trade = trade - half * torch.logsumexp(log_b - g / self.penalty, 0)
                f, g = f + trade, g - trade
            plan = torch.exp((log_a + f / reg)[:, None] + (log_b + g / reg) - cost / reg)
            used += 1
            soft = torch.exp((lam - 1) * f / reg), torch.exp((lam - 1) * g / reg)
            u, v, error, steps = self._scale(plan, a, b, soft, lam, tolerance, used)
            if error == float("inf"):  # masses too small for numbers: the potentials know more
                error = (f - before).abs().max().item() / reg
            used += steps
            plan = u[:, None] * plan * v
            f, g = f + reg * u.log(), g + reg * v.log()
            if error <= tolerance or used >= self.max_iterations:
                return SinkhornPlan(plan, error, used), f, g

    def _scale(
        self,
        plan: Tensor,
        a: Tensor,
        b: Tensor,
        soft: tuple[Tensor, Tensor],
        lam: float,
        tolerance: float,
        used: int,
    ) -> tuple[Tensor, Tensor, float, int]:
        """Scale rows and columns of a plan; stop at the tolerance, or while all is in range."""
        u, v = torch.ones_like(a), torch.ones_like(b)
        good, error, k = (u, v), float("inf"), 0
        omega, worst = 1.0, float("inf")
        most = ABSORB if lam == 1.0 else TRADE
        for k in range(most + 1):
            look = k % CHECK == 0
            following = (b / (plan.T @ u)).pow(lam) * soft[1]
            v = following if look or omega == 1.0 else v * (following / v).pow(omega)
            row = plan @ v
            following = (a / row).pow(lam) * soft[0]
            if look:  # v has just been updated in full, so all error lies in the rows
                moved = (row * (following - u).abs()).sum() / (row * u).sum()
                size = torch.stack([u.max(), v.max(), 1 / u.min(), 1 / v.min()]).max()
                if not bool((size < RANGE) & torch.isfinite(moved)):
                    return *good, error, k
                last, error = error, moved.item()
                good = u, v
                if error <= tolerance or k == most or used + k >= self.max_iterations:
                    break
                if omega > 1.0 and error > worst:
                    omega = 1.0  # the relaxation does not help here
                elif omega == 1.0 and k >= WAIT and worst == float("inf") and error < last:
                    rate = (error / last) ** (1 / CHECK)
                    omega, worst = 2 / (1 + (1 - rate) ** 0.5), 10 * error
            u = following if omega == 1.0 else u * (following / u).pow(omega)
        return *good, error, k
