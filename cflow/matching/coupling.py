"""Couplings: which source point travels to which target point.

A coupling returns indices, not points, so that any number of context tensors can follow them.
Source: Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch
optimal transport, arXiv 2302.00482; Pooladian et al. (2023), arXiv 2304.14772.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError
from cflow.matching.batch import (
    Masses,
    expect_masses,
    expect_points,
    noise,
    spelled,
    weighing,
)
from cflow.typing import Data

__all__ = ["Coupling", "IndependentCoupling", "PairedCoupling", "Pairs"]


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
        x0: Data,
        x1: Data,
        context: Tensor | None = None,
        *,
        source_context: Tensor | None = None,
        weights: Masses | None = None,
        generator: Generator | None = None,
    ) -> Pairs:
        """Return pairs of indices, one for each target.

        Args:
            x0: Source points, or tokens, `(n, *event)`.
            x1: Target points, or tokens, `(m, *event)`.
            context: Conditions of the targets, `(m, *context)`.
            source_context: Conditions of the sources, `(n, *context)`, where they have their own.
            weights: Masses of sources `(n,)` and of targets `(m,)`, each summing to one, or None
                where they are uniform.
            generator: Source of the randomness.

        Returns:
            One pair for each target, in the order of the targets; couplings that leave mass behind
            have none for a target without mass. `weight` is the mass of the pair over the mean
            mass, in the dtype of x1 (torch's default one for tokens), so that the weighted mean of
            a loss is its expectation; it is None where all count the same.

        Raises:
            ShapeError: Event shapes differ, or the sizes do where they must not, or contexts or
                masses are not one for each point.
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
        x0: Data,
        x1: Data,
        context: Tensor | None = None,
        *,
        source_context: Tensor | None = None,
        weights: Masses | None = None,
        generator: Generator | None = None,
    ) -> Pairs:
        expect_points("IndependentCoupling", x0, x1, context, source_context)
        n, m, device = len(x0), len(x1), x1.device
        a, b = expect_masses("IndependentCoupling", weights, x0, x1)
        if a is None and n == m:
            i = noise(torch.randperm, n, generator, device)
        else:
            a = spelled(a, n, device)
            u = noise(torch.rand, m, generator, device, a.dtype)
            i = torch.searchsorted(a.cumsum(0), u, right=True).clamp_(max=n - 1)
        return Pairs(i, torch.arange(m, device=device), None if b is None else weighing(b * m, x1))


class PairedCoupling(Coupling):
    """Keep the pairs as they come: source k with target k. The coupling of reflow.

    Example:
        >>> PairedCoupling()(torch.zeros(2, 1), torch.zeros(2, 1)).i
        tensor([0, 1])
    """

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
        expect_points("PairedCoupling", x0, x1, context, source_context)
        n = len(x1)
        if len(x0) != n:
            raise ShapeError(
                f"PairedCoupling: needs as many sources as targets, got {len(x0)} and {n}"
            )
        index = torch.arange(n, device=x1.device)
        a, b = expect_masses("PairedCoupling", weights, x0, x1)
        if a is None and b is None:
            return Pairs(index, index)
        a, b = spelled(a, n, x1.device), spelled(b, n, x1.device)
        if not torch.allclose(a, b, rtol=1e-4, atol=0.0):
            raise DomainError(
                "PairedCoupling: source k goes to target k, so both need one mass; weights differ "
                f"by up to {(a - b).abs().max().item():.3g}; give the same masses to both"
            )
        return Pairs(index, index, weighing(b * n, x1))
