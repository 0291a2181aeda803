"""Checks of the law of a flow: its density integrates to one, and its samples have that density.

    grid:        integral of p over a box, by the midpoint rule; chi-squared of samples over cells
    importance:  E_q[(p/q) f] = E_p[f],  q a Student law fitted to other samples,  f = 1, tanh, ...
    integers:    sum over all x of P(x), P(x) = E[exp(log_prob(x))] over the noise of the bound

Tests of samples have a false-alarm rate of 1e-6 each, as far as counts and means are normal.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.flow import Flow
from cflow.testing.report import Finding, judged, skipped

__all__ = ["Law"]

ALARM = 1e-6
"""False-alarm rate of one statistical test."""

BLOCKS = 40
"""Cells of the chi-squared test along each axis of the grid."""

FEWEST = 20.0
"""Expected samples in a cell; rarer cells are taken together."""


@dataclass(frozen=True)
class Law:
    """Hold a flow and what its law is measured with.

    Attributes:
        flow: The flow, as it is.
        context: One condition, or None.
        box: Half-width of the grid's box, around the origin.
        cells: Cells along each axis of the grid.
        mass: Largest |integral - 1| on the grid.
        draws: Samples.
        seed: Seed of every draw.
        tolerance: Of a round trip, in float64.
    """

    flow: Flow
    context: Tensor | None
    box: float
    cells: int
    mass: float
    draws: int
    seed: int
    tolerance: float = 0.0

    @property
    def size(self) -> int:
        """Numbers in one point."""
        return math.prod(self.flow.event_shape)

    def mass_of_grid(self) -> Finding:
        """Sum the density over a grid; the bound holds the midpoint rule and mass outside."""
        if not 1 <= self.size <= 2:
            return skipped(f"the grid is for 1 or 2 numbers, not {self.size}")
        total = float(self._cells().sum())
        wrong = "the density does not integrate to one (or its mass lies outside the box)"
        return judged(abs(total - 1), self.mass, wrong)

    def samples(self) -> Finding:
        """Test samples against the density, by a grid where there can be one."""
        return self._samples_by_grid() if 1 <= self.size <= 2 else self._samples_by_importance()

    def sampled_density(self) -> Finding:
        """Compare `sample_and_log_prob` with `log_prob` of its samples, relative to their size."""
        with torch.no_grad():
            x, value = self.flow.sample_and_log_prob(
                (20,), self.context, generator=self._generator(1)
            )
            again = self.flow.log_prob(x, self.context)
        apart = float((value - again).abs().max() / (1 + again.abs().max()))
        bound = max(1e-6 if x.dtype == torch.float64 else 1e-3, self.tolerance)
        return judged(apart, bound, "sample_and_log_prob and log_prob disagree")

    def integers(self, levels: int, edge: float, repeats: int = 64) -> Finding:
        """Sum the probabilities of all integer points, each the mean of exp(bound) over noise.

        exp(bound) averages to the probability itself (importance sampling), so the sum is one, less
        what rounding takes into the edge levels; six standard errors of the mean are allowed.
        """
        if not levels or levels**self.size > 5000:
            return skipped("give levels, for a domain of at most 5000 points")
        axis = torch.arange(levels)
        grid = torch.stack(torch.meshgrid([axis] * self.size, indexing="ij"), -1)
        x = grid.reshape(-1, *self.flow.event_shape).float()
        source = self._generator(0)
        with torch.no_grad():
            totals = [
                self.flow.log_prob(x, self.context, generator=source).double().exp().sum()
                for _ in range(repeats)
            ]
        total = torch.stack(totals)
        allowed = 6 * float(total.std()) / repeats**0.5 + 1e-4
        excess = float(total.mean()) - 1
        if excess < 0:
            allowed += edge
        wrong = f"the probabilities of all integers sum to {1 + excess:.3g}"
        return judged(abs(excess), allowed, wrong)

    def _generator(self, seed: int) -> Generator:
        like = next((t for t in (*self.flow.parameters(), *self.flow.buffers())), torch.zeros(()))
        return Generator(like.device).manual_seed(self.seed + seed)

    def _draw(self, seed: int) -> Tensor:
        """Draw samples as rows."""
        x = self.flow.sample((self.draws,), self.context, generator=self._generator(seed))
        return x.reshape(self.draws, self.size)

    def _density(self, rows: Tensor) -> Tensor:
        """Return log densities of rows in float64, computed in the flow's own dtype."""
        x = rows.to(self._like()).reshape(-1, *self.flow.event_shape)
        with torch.no_grad():
            return self.flow.log_prob(x, self.context).double()

    def _like(self) -> Tensor:
        return self.flow.base.sample((1,), self.context, generator=self._generator(0))

    def _cells(self) -> Tensor:
        """Return the probability of every cell of the grid, `(cells,) * size`."""
        step = 2 * self.box / self.cells
        axis = (torch.arange(self.cells, dtype=torch.float64) + 0.5) * step - self.box
        grid = torch.stack(torch.meshgrid([axis] * self.size, indexing="ij"), -1)
        log_p = self._density(grid.reshape(-1, self.size))
        return (log_p.exp() * step**self.size).cpu().reshape([self.cells] * self.size)

    def _samples_by_grid(self) -> Finding:
        block = torch.arange(self.cells) * BLOCKS // self.cells
        index = torch.zeros([self.cells] * self.size, dtype=torch.long)
        for axis in range(self.size):
            index = index * BLOCKS + block.reshape(
                [-1 if a == axis else 1 for a in range(self.size)]
            )
        count = BLOCKS**self.size
        p = torch.zeros(count, dtype=torch.float64)
        p.index_add_(0, index.flatten(), self._cells().flatten())
        cell = ((self._draw(1).double().cpu() + self.box) * self.cells / (2 * self.box)).floor()
        inside = ((cell >= 0) & (cell < self.cells)).all(1)
        seen = index[tuple(cell[inside].long().T)].bincount(minlength=count).double()
        expected = self.draws * p
        kept = expected >= FEWEST
        rest = self.draws * (1 - p[kept].sum()).clamp(min=0)
        terms = (seen[kept] - expected[kept]).square() / expected[kept]
        others = (self.draws - seen[kept].sum() - rest).square() / rest.clamp(min=FEWEST)
        measured = float(terms.sum() + others)
        wrong = "samples are not distributed as the density says"
        return judged(measured, _chi_squared(int(kept.sum())), wrong)

    def _samples_by_importance(self) -> Finding:
        rows, fitted = self._draw(1).double().cpu(), self._draw(2).double().cpu()
        mean = fitted.mean(0)
        tiny = 1e-12 * torch.eye(self.size, dtype=torch.float64)
        factor = torch.linalg.cholesky(fitted.T.cov().reshape(tiny.shape) + tiny)
        # A Student law of 5 degrees of freedom: its tails are wider than those of most flows.
        source = Generator().manual_seed(self.seed + 3)
        normal = torch.randn(self.draws, self.size + 5, generator=source, dtype=torch.float64)
        u = normal[:, 5:] / (normal[:, :5].square().mean(1, keepdim=True)).sqrt()
        log_q = (
            math.lgamma((5 + self.size) / 2)
            - math.lgamma(2.5)
            - 0.5 * self.size * math.log(5 * math.pi)
            - float(factor.diagonal().log().sum())
            - 0.5 * (5 + self.size) * (1 + u.square().sum(1) / 5).log()
        )
        w = (self._density(mean + u @ factor.T).cpu() - log_q).exp()
        effective = float(w.sum().square() / w.square().sum())
        if not effective >= self.draws / 20:
            return skipped(f"no proposal found for the density ({effective:.0f} effective draws)")
        v = torch.linalg.solve_triangular(factor, (rows - mean).T, upper=False).T
        weighed, plain = w[:, None] * _features(u), _features(v)
        error = ((weighed.var(0) + plain.var(0)) / self.draws).sqrt()
        measured = float(((weighed.mean(0) - plain.mean(0)) / error).abs().max())
        bound = -float(torch.special.ndtri(torch.tensor(ALARM / (2 * plain.shape[1]))))
        return judged(measured, bound, "samples are not distributed as the density says")


def _features(u: Tensor) -> Tensor:
    """Return bounded functions whose means tell laws apart; the first is 1, with the mass."""
    square = u.square()
    ones, joint = torch.ones_like(u[:, :1]), (-0.5 * square.mean(1, keepdim=True)).exp()
    return torch.cat([ones, joint, u.tanh(), (-0.5 * square).exp()], 1)


def _chi_squared(freedom: int) -> float:
    """Return the value that is exceeded with probability `ALARM` (Wilson and Hilferty, 1931)."""
    z = -float(torch.special.ndtri(torch.tensor(ALARM, dtype=torch.float64)))
    share = 2 / (9 * max(freedom, 1))
    return max(freedom, 1) * (1 - share + z * share**0.5) ** 3
