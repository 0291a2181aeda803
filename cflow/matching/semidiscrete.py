"""Semi-discrete transport: from a law to a whole data set, each source by itself.

    j(x) = argmin_j c(x, y_j) - g_j,    g = argmax_g  E_x min_j [c(x, y_j) - g_j] + sum_j b_j g_j

The gradient in g_j is b_j minus the mass of the cell of y_j, the sources that go to it: at the
maximum every cell has its mass. Once fitted, there is no batch to solve and no bias of a batch:
a pair costs one look at all targets. With epsilon > 0 the minimum is a soft one, and sources draw

    P(j | x)  ~  b_j exp((g_j - c(x, y_j)) / epsilon)

Source: Genevay et al. (2016), Stochastic optimization for large-scale optimal transport, arXiv
1605.08527, section 4 and algorithm 2; Mousavi-Hosseini et al. (2025), Flow matching with
semidiscrete couplings, arXiv 2509.25519, for its use here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from cflow.errors import (
    DomainError,
    ShapeError,
    SolverError,
    expect_finite,
    expect_floating,
    expect_positive,
)
from cflow.matching.batch import Masses, expect_masses, expect_points, noise, precise, spelled
from cflow.matching.cost import Cost, SquaredEuclidean, cost_matrix
from cflow.matching.coupling import Coupling, Pairs
from cflow.matching.source import Law, draw_sources
from cflow.typing import Points

__all__ = ["SemiDiscreteCoupling", "fit_semidiscrete"]

BLOCK = 2**22  # costs held at once, 32 MiB of them
BOUND = 3.0  # on the share by which a cell is found too light or heavy in the first half
RATE = 0.3  # of the second half, in units of the lead of the best target over the next
OFTEN = 8  # steps between looks at that lead
EVALUATED = 20_000  # sources, at least, on which the cells are weighed


@dataclass(frozen=True, eq=False)
class SemiDiscreteCoupling(Coupling):
    """Send each source to its target in the data set that the potential was fitted to.

    Made by `fit_semidiscrete`. A call takes any number of sources and, as x1, the whole data set;
    it returns one pair for each source, so any context follows by `context[pairs.j]`. In a training
    let a `PairPool(..., whole=True)` make the batches.

    Args:
        data: Targets, `(m, *event)`.
        potential: Dual potential g of the targets, `(m,)`, in units of cost.
        cost: The cost it was fitted for.
        epsilon: Width of the soft draw, in units of cost; 0 for the argmin.
        mass: Masses b of the targets, `(m,)`, summing to one; None is uniform.
        imbalance: How far the cells were from their masses at the end of the fit; see
            `fit_semidiscrete`.

    Raises:
        ShapeError: The potential is not one number for each target.
        DomainError: It is not finite, or epsilon is negative.

    Example:
        >>> data = torch.tensor([[0.0], [1.0]])
        >>> coupling = SemiDiscreteCoupling(data, torch.tensor([0.0, 0.5]))
        >>> coupling(torch.tensor([[0.1], [0.4], [0.9]]), data).j
        tensor([0, 1, 1])
    """

    data: Tensor
    potential: Tensor
    cost: Cost = field(default_factory=SquaredEuclidean, kw_only=True)
    epsilon: float = field(default=0.0, kw_only=True)
    mass: Tensor | None = field(default=None, kw_only=True)
    imbalance: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.potential.shape != self.data.shape[:1]:
            raise ShapeError(
                "SemiDiscreteCoupling: the potential must be one number for each target, shape "
                f"{tuple(self.data.shape[:1])}, got {tuple(self.potential.shape)}"
            )
        expect_finite("SemiDiscreteCoupling", "potential", self.potential)
        if not 0 <= self.epsilon < float("inf"):
            raise DomainError(
                f"SemiDiscreteCoupling: epsilon must be 0 or more and finite, got {self.epsilon}"
            )

    @torch.no_grad()
    def __call__(
        self,
        x0: Points,
        x1: Points,
        context: Tensor | None = None,
        *,
        source_context: Tensor | None = None,
        weights: Masses | None = None,
        generator: Generator | None = None,
    ) -> Pairs:
        """Return one pair for each source; x1 is the data set of the fit, in its order.

        Raises:
            ShapeError: Event shapes differ, or contexts are not one for each point.
            DomainError: x1 is another data set, masses are given, or points are not finite.
        """
        where = "SemiDiscreteCoupling"
        expect_points(where, x0, x1, context, source_context)
        if weights is not None and any(w is not None for w in weights):
            raise DomainError(f"{where}: masses belong to the fit; give them to fit_semidiscrete")
        if x1 is not self.data and not (
            x1.shape == self.data.shape and torch.equal(x1, self.data.to(x1))
        ):
            raise DomainError(
                f"{where}: x1 must be the data that the potential was fitted to, all "
                f"{len(self.data)} targets in their order, got {len(x1)} other points; in a "
                "PairPool set whole=True"
            )
        if self.epsilon:
            u = noise(torch.rand, len(x0), generator, x1.device, precise(x1.device))
            drawn = []
            for rows, share in self._shares(x0):
                total = share.cumsum(1)
                drawn.append(torch.searchsorted(total, u[rows, None] * total[:, -1:], right=True))
            j = torch.cat(drawn)[:, 0].clamp_(max=len(x1) - 1)
        else:
            j = torch.cat([s.argmax(1) for _, s in _scores(self, x0)])
        return Pairs(torch.arange(len(x0), device=x1.device), j)

    @torch.no_grad()
    def cells(
        self, source: Law = None, *, draws: int = EVALUATED, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weigh the cells: the mass of the sources that go to each target, and its variance.

        Args:
            source: The law of the sources, as for `fit_semidiscrete`.
            draws: Sources drawn, two or more.
            generator: Source of the randomness.

        Returns:
            Masses `(m,)`, which sum to one, and the squared standard error of each, `(m,)`.

        Example:
            >>> data = torch.tensor([[-1.0], [1.0]])
            >>> mass, variance = SemiDiscreteCoupling(data, torch.zeros(2)).cells(draws=100_000)
            >>> bool((mass - 0.5).abs().max() < 0.01)
            True
        """
        if draws < 2:
            raise DomainError(f"SemiDiscreteCoupling.cells: draws must be 2 or more, got {draws}")
        first = torch.zeros(len(self.data), dtype=precise(self.data.device)).to(self.data.device)
        second = first.clone()
        step = max(1, BLOCK // len(self.data))
        for k in range(0, draws, step):
            n = min(step, draws - k)
            x0 = draw_sources(
                "SemiDiscreteCoupling.cells", source, n, like=self.data, generator=generator
            )
            for _, share in self._shares(x0):
                first += share.sum(0)
                second += share.square().sum(0)
        mass = first / draws
        return mass, (second / draws - mass.square()).clamp(min=0) / (draws - 1)

    def _shares(self, x0: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Give P(j | x) for blocks of sources."""
        b = spelled(self.mass, len(self.data), self.data.device)
        for rows, score in _scores(self, x0):
            yield rows, _share(score, b, self.epsilon)


def fit_semidiscrete(
    data: Points,
    source: Law = None,
    *,
    cost: Cost | None = None,
    epsilon: float = 0.0,
    mass: Tensor | None = None,
    steps: int = 2000,
    batch: int = 512,
    tolerance: float = 0.2,
    generator: Generator | None = None,
) -> SemiDiscreteCoupling:
    """Fit the potential of a data set by averaged stochastic gradient ascent.

    A step costs `batch` times m costs. In the first half the minimum is soft, its width falling
    from the spread of the costs to the lead of the best target over the next one, which moves mass
    over long ways; the second half ascends at the width that was asked for, with steps that fall as
    1 / sqrt(k), and averages. Gradients are taken in units of the mass of the cell.

    The figure of convergence is the imbalance, the relative root-mean-square deviation of the
    cells' masses p from those of the targets, sqrt(sum_j (p_j - b_j)^2 / b_j), weighed on fresh
    sources and freed of their sampling noise.

    Args:
        data: Targets, `(m, *event)`.
        source: A base, a function `(n, generator) -> (n, *event)`, or None for standard normal.
        cost: Callable `(x0, x1) -> (n, m)`; squared Euclidean by default.
        epsilon: Entropic smoothing, in units of cost.
        mass: Masses of the targets, `(m,)`, positive and summing to one; uniform by default.
        steps: Steps of the ascent.
        batch: Sources in a step.
        tolerance: The largest imbalance that is accepted; `math.inf` accepts any.
        generator: Source of the randomness.

    Returns:
        The coupling, with its `imbalance`.

    Raises:
        ShapeError: There is no target, or the source gives points of another shape.
        DomainError: Points, costs or masses are out of range, or an option is.
        SolverError: The imbalance is above the tolerance.

    References:
        Genevay et al. (2016), arXiv 1605.08527, algorithm 2.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> coupling = fit_semidiscrete(torch.tensor([[0.0], [3.0]]), steps=400, generator=g)
        >>> j = coupling(torch.tensor([[-0.5], [0.5]]), coupling.data).j  # halves of the normal
        >>> j.tolist(), coupling.imbalance < 0.1
        ([0, 1], True)
    """
    where = "fit_semidiscrete"
    expect_positive(where, steps=steps, batch=batch)
    if not 0 <= epsilon < float("inf"):
        raise DomainError(f"{where}: epsilon must be 0 or more and finite, got {epsilon}")
    expect_floating(where, data)
    if data.dim() < 1 or not len(data):
        raise ShapeError(f"{where}: the data is empty, got shape {tuple(data.shape)}")
    expect_finite(where, "data", data)
    data = data.detach()
    _, b = expect_masses(where, (None, mass), data, data)
    if b is not None and not bool((b > 0).all()):
        raise DomainError(f"{where}: a target has no mass; drop the targets that have none")
    cost = SquaredEuclidean() if cost is None else cost
    size = max(EVALUATED, 5 * len(data))
    with torch.no_grad():
        g = _ascend(data, source, cost, epsilon, b, steps, batch, generator)
        fitted = SemiDiscreteCoupling(data, g, cost=cost, epsilon=epsilon, mass=b)
        p, variance = fitted.cells(source, draws=size, generator=generator)
    b = spelled(b, len(data), data.device)
    squares = ((p - b).square() - variance) / b
    imbalance = max(0.0, squares.sum().item()) ** 0.5
    if not imbalance <= tolerance:
        raise SolverError(
            f"{where}: the fit did not converge, the cells' masses deviate from the targets' by "
            f"{imbalance:.3g} (relative, root mean square) after {steps} steps of {batch} sources, "
            f"above the tolerance {tolerance:g}; take more of either, or epsilon > 0; equal "
            "targets cannot share a cell: join them and give their mass"
        )
    return SemiDiscreteCoupling(
        data, g, cost=cost, epsilon=epsilon, mass=fitted.mass, imbalance=imbalance
    )


def _ascend(
    data: Tensor,
    source: Law,
    cost: Cost,
    epsilon: float,
    b: Tensor | None,
    steps: int,
    batch: int,
    generator: Generator | None,
) -> Tensor:
    """Return the averaged potential, its mean zero."""
    b = spelled(b, len(data), data.device)
    g = torch.zeros_like(b)
    if len(data) == 1:
        return g
    rate = (batch * b).clamp(max=1.0)  # a batch tells little of a cell that it seldom meets
    tiny = torch.finfo(g.dtype).tiny ** 0.5  # equal targets have no lead at all
    width = lead = last = 0.0
    half, average, taken = steps // 2, g, 0
    for k in range(steps):
        x0 = draw_sources("fit_semidiscrete", source, batch, like=data, generator=generator)
        c = cost_matrix("fit_semidiscrete", cost, x0, data)
        score = g - c
        if k % OFTEN == 0:
            best = score.topk(2).values
            found = max(tiny, (best[:, 0] - best[:, 1]).mean().item())
            lead = (lead + found) / 2 if k else found
            last = max(epsilon, RATE * lead)
        if k < half:
            if not k:
                width = max(last, c.std(1).mean().item())
            width *= (last / width) ** (1 / (half - k))
            p = _share(score, b, width).mean(0)
            g = g + width * rate * (1 - p / b).clamp(-BOUND, BOUND)
        else:
            p = _share(score, b, epsilon).mean(0)
            g = g + last * rate / (1 + k - half) ** 0.5 * (1 - p / b)
            if 4 * (k - half) >= steps - half:  # the first steps still remember the start
                taken += 1
                average = g if taken == 1 else average + (g - average) / taken
    g = average if taken else g
    return g - g.mean()


def _scores(coupling: SemiDiscreteCoupling, x0: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give g - c for blocks of sources."""
    step = max(1, BLOCK // len(coupling.data))
    for k in range(0, len(x0), step):
        rows = slice(k, k + step)
        c = cost_matrix("SemiDiscreteCoupling", coupling.cost, x0[rows], coupling.data)
        yield rows, coupling.potential.to(c) - c


def _share(score: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """Return P(j | x), `(n, m)`: one-hot at the maximum where epsilon is 0."""
    if epsilon:
        return (score / epsilon + b.log()).softmax(1)
    return torch.zeros_like(score).scatter_(1, score.argmax(1, keepdim=True), 1.0)
