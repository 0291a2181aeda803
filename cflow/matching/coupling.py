"""Couplings: which source point travels to which target point.

A coupling returns indices, not points, so that any number of context tensors can follow them.
Source: Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch
optimal transport, arXiv 2302.00482; Pooladian et al. (2023), arXiv 2304.14772.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError, SolverError, expect_finite
from cflow.typing import Points

__all__ = ["Coupling", "IndependentCoupling", "OTCoupling", "PairedCoupling", "Pairs"]


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
        generator: Generator | None = None,
    ) -> Pairs:
        """Return pairs of indices, one for each target.

        Args:
            x0: Source points, `(n, *event)`.
            x1: Target points, `(m, *event)`.
            context: Conditions of the targets, `(m, *context)`.
            generator: Source of the randomness.

        Raises:
            ShapeError: Event shapes differ, or the sizes do where they must not.
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
        generator: Generator | None = None,
    ) -> Pairs:
        _check("IndependentCoupling", x0, x1)
        n, m = len(x0), len(x1)
        j = torch.arange(m, device=x1.device)
        if n == m:
            return Pairs(torch.randperm(n, generator=generator, device=x1.device), j)
        return Pairs(torch.randint(n, (m,), generator=generator, device=x1.device), j)


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
        generator: Generator | None = None,
    ) -> Pairs:
        _check("PairedCoupling", x0, x1)
        if len(x0) != len(x1):
            raise ShapeError(
                f"PairedCoupling: needs as many sources as targets, got {len(x0)} and {len(x1)}"
            )
        index = torch.arange(len(x1), device=x1.device)
        return Pairs(index, index)


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
        generator: Generator | None = None,
    ) -> Pairs:
        import ot  # POT is slow to import, and only this class needs it

        _check("OTCoupling", x0, x1)
        expect_finite("OTCoupling", "x0", x0)
        expect_finite("OTCoupling", "x1", x1)
        with torch.no_grad():
            a, b = x0.flatten(1).cpu().double(), x1.flatten(1).cpu().double()
            cost = torch.cdist(a, b).square().numpy()
        plan, log = ot.emd([], [], cost, numItermax=self.MAX_ITERATIONS, log=True)
        if log["warning"] is not None:
            raise SolverError(
                f"OTCoupling: the plan between {len(x0)} and {len(x1)} points did not converge "
                f"({log['warning']}); use a smaller batch"
            )
        j = torch.arange(len(x1), device=x1.device)
        if len(x0) == len(x1):
            return Pairs(torch.from_numpy(plan.argmax(0)).to(x1.device), j)
        weights = torch.from_numpy(plan.T).to(x1.device, torch.float32)
        return Pairs(torch.multinomial(weights, 1, generator=generator)[:, 0], j)


def _check(where: str, x0: Tensor, x1: Tensor) -> None:
    if x0.dim() < 1 or x1.dim() < 1 or x0.shape[1:] != x1.shape[1:]:
        raise ShapeError(
            f"{where}: source and target points need one batch axis and one event shape, got "
            f"{tuple(x0.shape)} and {tuple(x1.shape)}"
        )
    if not len(x0) or not len(x1):
        raise ShapeError(f"{where}: got {len(x0)} sources and {len(x1)} targets, none may be empty")
