"""The divergence of a field, div v = sum_i dv_i/dx_i: what a log-determinant integrates.

    Exact:       sum_i e_i' J e_i, every unit cotangent pulled back through one evaluation
    Hutchinson:  mean of e' J e over random probes with E[e e'] = 1
    Analytic:    the field's own closed form

On a manifold the sum is over a frame of the tangent space, sum_k e^k J e_k with its dual e^k.
Probes are drawn once a solve, so that an adaptive solver sees a deterministic field. The products
e' J give the squared Frobenius norm |J|_F^2 on the side, which a regulariser may want.
Source: Hutchinson (1990); Grathwohl et al. (2019), FFJORD, arXiv 1810.01367, section 3.1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Generator, Tensor
from torch.func import jvp, vjp, vmap

from cflow.errors import DomainError, expect_positive
from cflow.field.field import AnalyticField
from cflow.typing import Frame

__all__ = ["Analytic", "Divergence", "Exact", "Hutchinson", "Rates", "Velocity"]

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Anything called as `v(t, x, context)`."""

MEBIBYTE = 2**20
NEAR, FAR = 4.0, 1024.0  # MiB: what a CPU's caches hold, and what an accelerator can spare
WIDTH, KEPT = 256, 4  # a cotangent's activations: `KEPT` rows of `WIDTH` or more numbers


class Rates(NamedTuple):
    """Hold a velocity and what belongs to its Jacobian J = dv/dx.

    Attributes:
        v: The velocity, `(*batch, *event)`.
        div: The trace of J, `(*batch,)`, in units of 1 / time.
        frobenius: The squared norm |J|_F^2, `(*batch,)`, where it was asked for.
    """

    v: Tensor
    div: Tensor
    frobenius: Tensor | None = None


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
        self,
        v: Velocity,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        frobenius: bool = False,
        frame: Frame | None = None,
    ) -> Rates:
        """Evaluate v at x and its divergence.

        Args:
            v: The velocity, called as `v(t, x, context)`.
            t: Times `(*batch,)`.
            x: Points `(*batch, *event)`.
            context: Conditions, handed on to v.
            noise: What `draw` drew.
            frobenius: Also return |J|_F^2.
            frame: A basis of the directions to sum over and its dual, `(*batch, dim, *event)` each;
                by default the entries of a point.

        Returns:
            Velocity, divergence, and the squared Frobenius norm where it was asked for.
        """


@dataclass(frozen=True)
class Exact(Divergence):
    """Compute the trace of the Jacobian by one evaluation and a vector-Jacobian product per entry.

    The products of a chunk run as one batch. By default a chunk is as long as `memory` allows,
    counting 4 max(256, entries of the event) numbers for each cotangent of each sample; more is
    slower on a CPU, where a batch beyond the caches costs more than it saves. Chunks bound the
    memory of evaluation. With gradients enabled the graph keeps the activations of all of them.

    Attributes:
        chunk: Cotangents that travel together; None to follow `memory`.
        memory: MiB for the activations of one chunk; None for 4 on a CPU and 1024 elsewhere.

    Raises:
        DomainError: A chunk below 1, memory that is not positive, or both given.

    Example:
        >>> stretch = lambda t, x, context: x * torch.tensor([2.0, 3.0])
        >>> Exact()(stretch, torch.zeros(1), torch.ones(1, 2), None, None).div
        tensor([5.])
    """

    chunk: int | None = None
    memory: float | None = None
    likelihood: ClassVar[Literal["exact", "estimate"]] = "exact"

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise DomainError(f"Exact: chunk must be at least 1 or None, got {self.chunk}")
        if self.memory is not None:
            expect_positive("Exact", memory=self.memory)
        if self.chunk is not None and self.memory is not None:
            raise DomainError(
                f"Exact: give chunk or memory, got chunk={self.chunk} and memory={self.memory}"
            )

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        return None

    def __call__(
        self,
        v: Velocity,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        frobenius: bool = False,
        frame: Frame | None = None,
    ) -> Rates:
        event = x.shape[t.dim() :]
        jacobian = _linearize(v, t, x, context)
        size = event.numel() if frame is None else frame[0].shape[t.dim()]
        entries, squares = [], []
        chunk = self._chunk(x, size, event.numel(), t.numel())
        for first in range(0, size, chunk):
            count = min(chunk, size - first)
            if frame is None:
                units = torch.eye(count, dtype=jacobian.value.dtype, device=x.device)
                if count < size:
                    units = torch.nn.functional.pad(units, (first, size - first - count))
                rows = jacobian.products(units.reshape(count, *event))
                rows = rows.reshape(count, *t.shape, size)  # rows[k] is row first + k of J
                corner = rows[..., first : first + count].diagonal(dim1=0, dim2=-1)
            else:
                given, other = frame if jacobian.forward else frame[::-1]
                part = slice(first, first + count)
                rows = jacobian.products(given.movedim(t.dim(), 0)[part])
                own = other.movedim(t.dim(), 0)[part]
                corner = (rows * own).flatten(t.dim() + 1).sum(-1).movedim(0, -1)
                rows = _along(rows, other, t.dim()) if frobenius else rows
            entries.append(_wide(corner))
            if frobenius:
                squares.append(_wide(rows).square().sum((0, -1)))
        # One sum over contiguous rows, so that its rounding knows neither chunk nor batch.
        div = torch.cat(entries, -1).contiguous().sum(-1)
        return Rates(jacobian.value, div, _total(squares) if frobenius else None)

    def _chunk(self, x: Tensor, size: int, entries: int, batch: int) -> int:
        """Return how many cotangents travel together: near-equal chunks within the budget."""
        if self.chunk is not None:
            return self.chunk
        memory = self.memory
        if memory is None:
            memory = NEAR if x.device.type == "cpu" else FAR
        one = KEPT * max(WIDTH, entries) * x.element_size()  # bytes of one cotangent of one sample
        most = int(min(size, max(1, memory * MEBIBYTE // (one * max(1, batch)))))
        chunks = -(-size // most)
        return -(-size // chunks)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """Estimate the divergence without bias from random probes e with E[e e'] = 1.

    One vector-Jacobian product e' J for each probe gives e' J e, whose mean is the trace, and
    |e' J|^2, whose mean is the squared Frobenius norm.

    Attributes:
        probes: Independent probes whose mean is taken.
        noise: Entries of a probe: random signs (smallest variance) or standard normal.

    Example:
        >>> stretch = lambda t, x, context: x * torch.tensor([2.0, 3.0])
        >>> x = torch.ones(1, 2)
        >>> probe = Hutchinson().draw(x, 1, torch.Generator().manual_seed(0))
        >>> Hutchinson()(stretch, torch.zeros(1), x, None, probe).div
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
        self,
        v: Velocity,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        frobenius: bool = False,
        frame: Frame | None = None,
    ) -> Rates:
        assert noise is not None
        jacobian = _linearize(v, t, x, context)
        probes = noise.movedim(t.dim(), 0)
        size = x.shape[t.dim() :].numel()
        if frame is None:
            products = jacobian.products(probes)
        else:  # as many of the numbers that were drawn as there are tangent directions
            size = frame[0].shape[t.dim()]
            probes = probes.reshape(self.probes, *t.shape, -1)[..., :size]
            vectors, covectors = (_mixed(side, probes, t.dim()) for side in frame)
            products = jacobian.products(vectors if jacobian.forward else covectors)
            products = _along(products, frame[1 if jacobian.forward else 0], t.dim())

        def mean(terms: Tensor) -> Tensor:
            return _wide(terms.reshape(self.probes, *t.shape, size)).sum(-1).mean(0)

        squared = mean(products.square()) if frobenius else None
        return Rates(jacobian.value, mean(products * probes), squared)


@dataclass(frozen=True)
class Analytic(Divergence):
    """Ask the field for its own closed form; the field must be an `AnalyticField`.

    Raises:
        DomainError: When called with another field, with a field that a manifold projects, or for
            the Frobenius norm, which a closed form of the trace does not give.

    Example:
        >>> from cflow.field import TwoLayerField
        >>> field, t, x = TwoLayerField(3), torch.rand(5), torch.randn(5, 3)
        >>> closed, trace = Analytic()(field, t, x, None, None), Exact()(field, t, x, None, None)
        >>> torch.allclose(closed.div, trace.div, atol=1e-5)
        True
    """

    likelihood: ClassVar[Literal["exact", "estimate"]] = "exact"

    def draw(self, x: Tensor, batch_dim: int, generator: Generator | None) -> Tensor | None:
        return None

    def __call__(
        self,
        v: Velocity,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        frobenius: bool = False,
        frame: Frame | None = None,
    ) -> Rates:
        if not isinstance(v, AnalyticField):
            name = type(v).__name__ if isinstance(v, torch.nn.Module) else "a projected field"
            raise DomainError(
                f"Analytic: the field must be an AnalyticField in flat space, got {name}; use "
                "Exact(), or give the field a method with_divergence"
            )
        if frobenius:
            raise DomainError(
                "Analytic: a closed form of the trace has no Frobenius norm, which a cost asks "
                "for; use Exact() or Hutchinson(), or drop the cost"
            )
        return Rates(*v.with_divergence(t, x, context))


class _Jacobian(NamedTuple):
    """Hold v at a point, and the product of J with one direction."""

    value: Tensor
    product: Callable[[Tensor], Tensor]
    forward: bool  # the product is J e, not e' J

    def products(self, directions: Tensor) -> Tensor:
        """Return the products with several directions, on the leading axis."""
        if len(directions) == 1:  # vmap over a single one costs a tenth of the evaluation
            return self.product(directions[0])[None]
        return vmap(self.product)(directions)


def _linearize(v: Velocity, t: Tensor, x: Tensor, context: Tensor | None) -> _Jacobian:
    """Return v at x, and the map from a direction e to e' J: reverse mode, one evaluation for all.

    Where hooks on saved tensors are set, as under checkpointing, the reverse mode of torch.func
    refuses to work, and the map is to J e by forward mode, slower. e' J e and the norm over all
    unit directions are the same; |J e|^2 of a random e is another unbiased estimate of the norm.
    """

    def at(z: Tensor) -> Tensor:
        return v(t, z, context)

    if _has_hooks():
        along = lambda e: cast(Tensor, jvp(at, (x,), (e.expand_as(x),))[1])
        return _Jacobian(at(x), along, forward=True)
    value, pull_back, *_ = vjp(at, x)
    return _Jacobian(value, lambda e: pull_back(e.expand_as(value))[0], forward=False)


def _along(products: Tensor, side: Tensor, batch_dim: int) -> Tensor:
    """Contract products `(count, *batch, *event)` with each vector of one side of a frame."""
    event = tuple(range(batch_dim - products.dim() + 1, 0))
    return (products.unsqueeze(batch_dim + 1) * side).sum(event)


def _mixed(side: Tensor, weights: Tensor, batch_dim: int) -> Tensor:
    """Return weighted sums of the vectors of one side of a frame, `(count, *batch, *event)`."""
    shape = weights.shape + (1,) * (side.dim() - batch_dim - 1)
    return (weights.reshape(shape) * side).sum(batch_dim + 1)


def _has_hooks() -> bool:
    """Say whether hooks on saved tensors are set: torch has no question for it, only a refusal."""
    if torch.compiler.is_compiling():
        return False
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked by cflow"):
            return False
    except RuntimeError:
        return True


def _wide(x: Tensor) -> Tensor:
    """Lift low precision to float32 before a sum: density arithmetic never runs below it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _total(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
