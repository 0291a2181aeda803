"""Log-determinants of x + g(x) for a contraction g with Jacobian J.

    exact:     log det(I + J)
    series:    sum over k of (-1)^(k+1) / k tr J^k
    roulette:  the series cut at a random term N, term k weighed by 1[N >= k] / P(N >= k), and each
               trace estimated from probes e with E[e e'] = 1: unbiased, in value and gradient

The gradient of the log-determinant, tr((I + J)^-1 dJ), has a series of its own, sum (-1)^k J^k dJ
(Neumann). Estimated from the same products, it needs one product e' dJ with a graph, whatever the
number of terms.
Source: Behrmann et al. (2019), arXiv 1811.00995; Chen et al. (2019), Residual flows for invertible
generative modeling, arXiv 1906.02735, theorems 1 and 2, equations 6 and 8.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor
from torch.func import vjp, vmap

from cflow.errors import DomainError, expect_positive
from cflow.field import Hutchinson

__all__ = ["Cutoff", "ExactLogDet", "Geometric", "LogDet", "Poisson", "RussianRoulette"]

Map: TypeAlias = Callable[[Tensor], Tensor]
"""g as a function of x alone."""


class Draw(NamedTuple):
    """Hold the noise of one estimate.

    Attributes:
        probes: Probes `(*batch, probes, *event)`.
        terms: The last term of each sample, `(*batch,)`.
        longest: The largest of those.
    """

    probes: Tensor
    terms: Tensor
    longest: int


class LogDet(ABC):
    """Evaluate g together with log|det(I + dg/dx)|.

    Attributes:
        likelihood: What becomes of a log-likelihood that contains it.
    """

    likelihood: ClassVar[Literal["exact", "estimate"]]

    @abstractmethod
    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Draw | None:
        """Draw the noise that one evaluation needs."""

    @abstractmethod
    def __call__(
        self, g: Map, x: Tensor, batch_dim: int, noise: Draw | None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate g at x and the log-determinant.

        Args:
            g: A contraction that treats samples one by one.
            x: Points `(*batch, *event)`, float32 or wider.
            batch_dim: How many axes of x are batch axes.
            noise: What `draw` drew.

        Returns:
            g(x), and the log-determinants in nats, `(*batch,)`.
        """


@dataclass(frozen=True)
class ExactLogDet(LogDet):
    """Compute the whole Jacobian, one vector-Jacobian product for each entry, and its determinant.

    For D entries memory grows with D^2 and the determinant costs D^3 for each sample: for events of
    some tens of entries. It compiles as one graph and works under `torch.func`.

    Example:
        >>> half = lambda x: x / 2
        >>> ExactLogDet()(half, torch.zeros(1, 3), 1, None)[1]  # 3 log 1.5
        tensor([1.2164])
    """

    likelihood: ClassVar[Literal["exact", "estimate"]] = "exact"

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Draw | None:
        return None

    def __call__(
        self, g: Map, x: Tensor, batch_dim: int, noise: Draw | None
    ) -> tuple[Tensor, Tensor]:
        batch, event = x.shape[:batch_dim], x.shape[batch_dim:]
        size = event.numel()
        value, product, *_ = vjp(g, x)
        units = torch.eye(size, dtype=value.dtype, device=x.device)
        rows = vmap(lambda e: product(e.expand_as(value))[0])(units.reshape(size, *event))
        jacobian = rows.reshape(size, *batch, size).movedim(0, -2)
        return value, torch.linalg.slogdet(units + jacobian).logabsdet


class Cutoff(ABC):
    """The law of a number of terms."""

    @abstractmethod
    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Draw a count for each entry of a tensor."""

    @abstractmethod
    def survival(self, k: int) -> float:
        """Return P(N >= k), for k of 1 or more."""


@dataclass(frozen=True)
class Geometric(Cutoff):
    """N = 1, 2, ... with P(N >= k) = (1 - p)^(k - 1).

    The variance of the roulette is finite while the spectral radius of J is below sqrt(1 - p).

    Attributes:
        p: The chance to stop after each term, in (0, 1).

    Example:
        >>> Geometric(0.5).survival(3)
        0.25
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise DomainError(f"Geometric: p must lie in (0, 1), got {self.p}")

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        return torch.empty_like(like).geometric_(self.p, generator=generator).long()

    def survival(self, k: int) -> float:
        return (1 - self.p) ** (k - 1)


@dataclass(frozen=True)
class Poisson(Cutoff):
    """N = 0, 1, ... by the Poisson law.

    Its tail falls faster than any power of the Jacobian's norm, so late terms weigh without bound:
    the mean is right, but the variance is infinite in theory, by events too rare to be met. Give it
    enough exact terms.

    Attributes:
        rate: The mean of N.

    Example:
        >>> round(Poisson(2.0).survival(1), 4)  # 1 - exp(-2)
        0.8647
    """

    rate: float = 2.0

    def __post_init__(self) -> None:
        expect_positive("Poisson", rate=self.rate)

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        return torch.poisson(torch.full_like(like, self.rate), generator=generator).long()

    def survival(self, k: int) -> float:
        if k < self.rate + 10:  # from either end, so that nothing cancels
            return 1 - sum(self._mass(j) for j in range(k))
        return sum(self._mass(j) for j in range(k, k + 60))

    def _mass(self, j: int) -> float:
        return math.exp(j * math.log(self.rate) - self.rate - math.lgamma(j + 1))


@dataclass(frozen=True)
class RussianRoulette(LogDet):
    """Estimate the log-determinant and its gradient without bias by a series of random length.

    Every sample draws its own length and probes, so samples are independent, repeats within a batch
    among them. The length of the loop is that of the longest series: a data-dependent number, so
    this does not compile as one graph, nor work under `vmap`; evaluate with `ExactLogDet` there
    (`with_logdet`).

    Attributes:
        law: How many terms follow the exact ones.
        exact_terms: Terms that are always there.
        probes: Probes whose mean is taken.
        gradient: "neumann" estimates the gradient by its own series, in memory that does not grow
            with the terms; "series" differentiates the terms of the value, which keeps a graph of
            each. Both are unbiased.
        noise: Entries of a probe: random signs or standard normal.

    Raises:
        DomainError: Fewer than 0 exact terms or 1 probe.

    References:
        Chen et al. (2019), arXiv 1906.02735, sections 3.1 and 3.2.

    Example:
        >>> half, x = lambda x: x / 2, torch.zeros(1, 3)
        >>> roulette = RussianRoulette(exact_terms=12)
        >>> noise = roulette.draw(x, 1, torch.Generator().manual_seed(0))
        >>> roulette(half, x, 1, noise)[1].round(decimals=3)  # 3 log 1.5
        tensor([1.2160])
    """

    law: Cutoff = Geometric(0.5)
    exact_terms: int = 2
    probes: int = 1
    gradient: Literal["neumann", "series"] = "neumann"
    noise: Literal["rademacher", "gaussian"] = "rademacher"
    likelihood: ClassVar[Literal["exact", "estimate"]] = "estimate"

    def __post_init__(self) -> None:
        if self.exact_terms < 0 or self.probes < 1:
            raise DomainError(
                "RussianRoulette: needs 0 exact terms and 1 probe at least, got "
                f"exact_terms={self.exact_terms}, probes={self.probes}"
            )

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Draw | None:
        probes = Hutchinson(self.probes, self.noise).draw(x, batch_dim, generator)
        if probes is None:  # Hutchinson always draws
            raise DomainError("RussianRoulette: no probes were drawn")
        like = torch.empty(x.shape[:batch_dim], dtype=torch.float32, device=x.device)
        terms = self.exact_terms + self.law.draw(like, generator)
        return Draw(probes, terms, int(terms.max()) if terms.numel() else 0)

    def __call__(
        self, g: Map, x: Tensor, batch_dim: int, noise: Draw | None
    ) -> tuple[Tensor, Tensor]:
        if noise is None:
            raise DomainError("RussianRoulette: needs the noise of its draw, got None")
        batch, size = x.shape[:batch_dim], x.shape[batch_dim:].numel()
        value, product, *_ = vjp(g, x)
        probes = noise.probes.to(value.dtype).movedim(batch_dim, 0)  # (probes, *batch, *event)

        def inner(w: Tensor) -> Tensor:
            return (w * probes).reshape(self.probes, *batch, size).sum(-1).mean(0)

        def back(w: Tensor) -> Tensor:
            return product(w[0])[0][None] if self.probes == 1 else vmap(product)(w)[0]

        neumann = self.gradient == "neumann"
        wanted = neumann and torch.is_grad_enabled()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not neumann):
            ladj, power = inner(torch.zeros_like(probes)), probes
            summed = probes  # sum of (-1)^k weight_k J'^k e
            for k in range(1, noise.longest + 1):
                power, sign = back(power), 1.0 if k % 2 else -1.0
                weight = self._weights(k, noise.terms, value.dtype)
                ladj = ladj + sign / k * weight * inner(power)
                if wanted:
                    spread = weight.reshape(*batch, *(1,) * (x.dim() - batch_dim))
                    summed = summed - sign * spread * power
        if not wanted:
            return value, ladj
        slope = inner(back(summed))  # its gradient is that of the log-determinant, its value is not
        return value, ladj + (slope - slope.detach())

    def _weights(self, k: int, terms: Tensor, dtype: torch.dtype) -> Tensor:
        """Return 1[N >= k] / P(N >= k) for each sample."""
        if k <= self.exact_terms:
            return torch.ones_like(terms, dtype=dtype)
        return (terms >= k).to(dtype) / self.law.survival(k - self.exact_terms)
