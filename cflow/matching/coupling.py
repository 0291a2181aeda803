"""Couplings: which source point travels to which target point.

A coupling returns indices, not points, so that any number of context tensors can follow them.
Source: Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch
optimal transport, arXiv 2302.00482; Pooladian et al. (2023), arXiv 2304.14772.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, SolverError, expect_finite
from cflow.typing import Points

__all__ = ["Coupling", "IndependentCoupling", "Masses", "OTCoupling", "PairedCoupling", "Pairs"]

Masses: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Masses of the sources and of the targets, each summing to one; None is uniform."""


class Pairs(NamedTuple):
    """Hold pairs: source indices, target indices, and weights where pairs count unequally."""

    i: Tensor
    j: Tensor
    weight: Tensor | None = None


class Coupling(ABC):
    """Pair a batch of source points with a batch of target points."""

    @abstractmethod
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
        """Return pairs of indices, one for each target.

        Args:
            x0: Source points, `(n, *event)`.
            x1: Target points, `(m, *event)`.
            context: Conditions of the targets, `(m, *context)`.
            source_context: Conditions of the sources, `(n, *context)`, where they have their own.
            weights: Masses of sources `(n,)` and of targets `(m,)`, each summing to one, or None
                where they are uniform.
            generator: Source of the randomness.

        Returns:
            One pair for each target, in the order of the targets. `weight` is the mass of the
            target over the mean mass, so that the weighted mean of a loss is its expectation; it
            is None where all count the same.

        Raises:
            ShapeError: Event shapes differ, or the sizes do where they must not.
            DomainError: Masses are negative or do not sum to one.
        """


class IndependentCoupling(Coupling):
    """Pair every target with a source drawn at random, each source once where sizes agree.

    Example:
        >>> i, j, _ = IndependentCoupling()(torch.zeros(4, 2), torch.zeros(4, 2))
        >>> sorted(i.tolist()), j.tolist()
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """

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
        _check("IndependentCoupling", x0, x1, context, source_context)
        n, m, device = len(x0), len(x1), x1.device
        a, b = _masses("IndependentCoupling", weights, n, m)
        j, weight = torch.arange(m, device=device), None if b is None else b * m
        if a is not None:
            i = torch.multinomial(a, m, replacement=True, generator=generator)
        elif n == m:
            i = torch.randperm(n, generator=generator, device=device)
        else:
            i = torch.randint(n, (m,), generator=generator, device=device)
        return Pairs(i, j, weight)


class PairedCoupling(Coupling):
    """Keep the pairs as they come: source k with target k. The coupling of reflow.

    Example:
        >>> PairedCoupling()(torch.zeros(2, 1), torch.zeros(2, 1)).i
        tensor([0, 1])
    """

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
        _check("PairedCoupling", x0, x1, context, source_context)
        n = len(x1)
        if len(x0) != n:
            raise ShapeError(
                f"PairedCoupling: needs as many sources as targets, got {len(x0)} and {n}"
            )
        index = torch.arange(n, device=x1.device)
        a, b = _masses("PairedCoupling", weights, n, n)
        if a is None and b is None:
            return Pairs(index, index)
        uniform = torch.full((n,), 1 / n, dtype=x1.dtype, device=x1.device)
        a, b = (uniform if a is None else a), (uniform if b is None else b)
        if not torch.allclose(a, b, rtol=1e-4, atol=0.0):
            raise DomainError(
                "PairedCoupling: source k goes to target k, so both need one mass; weights differ "
                f"by up to {(a - b).abs().max().item():.3g}; give the same masses to both"
            )
        return Pairs(index, index, b * n)


class OTCoupling(Coupling):
    """Pair by the exact optimal transport plan under the squared Euclidean distance.

    Where sizes agree the plan is a permutation, so every source and every target is used once;
    otherwise one source is drawn for each target from the plan. Solved by POT's network simplex
    on the CPU.

    References:
        Flamary et al. (2021), POT: Python optimal transport.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.1], [0.1]])
        >>> OTCoupling()(x0, x1).i
        tensor([1, 0])
    """

    MAX_ITERATIONS = 10_000_000

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
        import ot  # POT is slow to import, and only this class needs it

        _check("OTCoupling", x0, x1, context, source_context)
        masses = _masses("OTCoupling", weights, len(x0), len(x1))
        expect_finite("OTCoupling", "x0", x0)
        expect_finite("OTCoupling", "x1", x1)
        with torch.no_grad():
            a, b = x0.flatten(1).cpu().double(), x1.flatten(1).cpu().double()
            cost = torch.cdist(a, b).square().numpy()
        p, q = ([] if w is None else w.cpu().double().numpy() for w in masses)
        plan, log = ot.emd(p, q, cost, numItermax=self.MAX_ITERATIONS, log=True)
        if log["warning"] is not None:
            raise SolverError(
                f"OTCoupling: the plan between {len(x0)} and {len(x1)} points did not converge "
                f"({log['warning']}); use a smaller batch"
            )
        j = torch.arange(len(x1), device=x1.device)
        if len(x0) == len(x1) and masses == (None, None):
            return Pairs(torch.from_numpy(plan.argmax(0)).to(x1.device), j)
        columns = torch.from_numpy(plan.T).to(x1.device, torch.float32)
        i = torch.multinomial(columns, 1, generator=generator)[:, 0]
        return Pairs(i, j, None if masses[1] is None else masses[1] * len(x1))


def _check(
    where: str, x0: Tensor, x1: Tensor, context: Tensor | None, source_context: Tensor | None
) -> None:
    if x0.dim() < 1 or x1.dim() < 1 or x0.shape[1:] != x1.shape[1:]:
        raise ShapeError(
            f"{where}: source and target points need one batch axis and one event shape, got "
            f"{tuple(x0.shape)} and {tuple(x1.shape)}"
        )
    if not len(x0) or not len(x1):
        raise ShapeError(f"{where}: got {len(x0)} sources and {len(x1)} targets, none may be empty")
    for name, c, points in (("context", context, x1), ("source_context", source_context, x0)):
        if c is not None and (c.dim() < 1 or len(c) != len(points)):
            side = "target" if points is x1 else "source"
            raise ShapeError(
                f"{where}: {name} must hold one condition for each of the {len(points)} {side}s, "
                f"got shape {tuple(c.shape)}"
            )


def _masses(
    where: str, weights: Masses | None, n: int, m: int
) -> tuple[Tensor | None, Tensor | None]:
    """Check the masses of sources and targets; None where they are uniform."""
    a, b = weights or (None, None)
    for name, mass, size in (("sources", a, n), ("targets", b, m)):
        if mass is None:
            continue
        if mass.shape != (size,):
            raise ShapeError(
                f"{where}: weights of the {size} {name} must have shape ({size},), got "
                f"{tuple(mass.shape)}"
            )
        expect_finite(where, f"weights of the {name}", mass)
        if bool((mass < 0).any()) or abs(mass.double().sum().item() - 1) > 1e-4:
            raise DomainError(
                f"{where}: weights of the {name} must not be negative and must sum to one, got "
                f"least {mass.min().item():.4g} and sum {mass.double().sum().item():.6g}; divide "
                "them by their sum"
            )
    return a, b
