"""The divergence of a field, div v = sum_i dv_i/dx_i: what a log-determinant integrates.

`Exact` pushes every unit tangent through the field (forward mode); `Hutchinson` estimates
E[e' (dv/dx) e] with random probes that are drawn once a solve, so that an adaptive solver sees a
deterministic field.
Source: Hutchinson (1990); Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, section 3.1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, cast

import torch
from torch import Generator, Tensor
from torch.func import jvp, vjp, vmap

from cflow.errors import DomainError

__all__ = ["Divergence", "Exact", "Hutchinson", "Velocity"]

Pair: TypeAlias = tuple[Tensor, Tensor]

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Anything called as `v(t, x, context)`."""


class Divergence(ABC):
    """Evaluate a velocity together with its divergence.

    Attributes:
        likelihood: What becomes of a log-likelihood that integrates it.
    """

    likelihood: ClassVar[Literal["exact", "estimate"]]

    @abstractmethod
    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        """Draw what one solve needs, `(*batch, probes, *event)`, or None."""

    @abstractmethod
    def __call__(
        self, v: Velocity, t: Tensor, x: Tensor, context: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity `(batch, *event)` and its divergence `(batch,)`."""


@dataclass(frozen=True)
class Exact(Divergence):
    """Compute the trace of the Jacobian, one unit tangent for each coordinate of the event.

    Costs about as many field evaluations as the event has coordinates, batched into one call.

    Attributes:
        chunk: Tangents that travel together, to bound memory; None for all at once.

    Example:
        >>> stretch = lambda t, x, context: x * torch.tensor([2.0, 3.0])
        >>> Exact()(stretch, torch.zeros(1), torch.ones(1, 2), None, None)[1]
        tensor([5.])
    """

    chunk: int | None = None
    likelihood: ClassVar[Literal["exact", "estimate"]] = "exact"

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise DomainError(f"Exact: chunk must be at least 1 or None, got {self.chunk}")

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        return None

    def __call__(
        self, v: Velocity, t: Tensor, x: Tensor, context: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        event = x.shape[t.dim() :]
        size = event.numel()
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *event)

        def diagonal(tangent: Tensor) -> tuple[Tensor, Tensor]:
            at = (x,), (tangent.expand_as(x),)
            value, change = cast(Pair, jvp(lambda z: v(t, z, context), *at))
            return value, (change * tangent).flatten(t.dim()).sum(-1)

        if self.chunk is None:
            values, entries = vmap(diagonal)(basis)
            return values[0], entries.sum(0)  # the values are one tensor, expanded
        entries = vmap(lambda tangent: diagonal(tangent)[1], chunk_size=self.chunk)(basis)
        return v(t, x, context), entries.sum(0)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """Estimate the divergence without bias from random probes e with E[e e'] = 1.

    Attributes:
        probes: Independent probes whose mean is taken.
        noise: Entries of a probe: random signs (smallest variance) or standard normal.

    Example:
        >>> stretch = lambda t, x, context: x * torch.tensor([2.0, 3.0])
        >>> x = torch.ones(1, 2)
        >>> probe = Hutchinson().draw(x, 1, torch.Generator().manual_seed(0))
        >>> Hutchinson()(stretch, torch.zeros(1), x, None, probe)[1]
        tensor([5.])
    """

    probes: int = 1
    noise: Literal["rademacher", "gaussian"] = "rademacher"
    likelihood: ClassVar[Literal["exact", "estimate"]] = "estimate"

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise DomainError(f"Hutchinson: probes must be at least 1, got {self.probes}")

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        shape = (*x.shape[:batch_dim], self.probes, *x.shape[batch_dim:])
        if self.noise == "gaussian":
            return torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
        bits = torch.randint(0, 2, shape, device=x.device, generator=generator)
        return bits.to(x.dtype) * 2 - 1

    def __call__(
        self, v: Velocity, t: Tensor, x: Tensor, context: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert noise is not None
        value, pull_back, *_ = vjp(lambda z: v(t, z, context), x)
        probes = noise.movedim(t.dim(), 0)
        products = vmap(lambda probe: pull_back(probe)[0])(probes)
        return value, (products * probes).flatten(t.dim() + 1).sum(-1).mean(0)
