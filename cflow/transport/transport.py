"""The contract of a transport: push from the base to the data, pull back, and keep the account.

Each call adds to `state.ladj` the log|det d(out)/d(in)| of the direction just run, so a pull
followed by a push ends at zero. A `Layer` does it in zero solver steps: its authors write two maps
on tensors and never see a `State`. A `Chain` is a transport, in push order; `Inverse` swaps the
directions (IAF is the inverse of MAF).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias, overload

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_floating
from cflow.state import State

__all__ = ["Chain", "Inverse", "Layer", "Likelihood", "Shape", "Stochastic", "Transport"]

Likelihood: TypeAlias = Literal["exact", "estimate", "bound"]
Shape: TypeAlias = tuple[int, ...]


class Transport(nn.Module, ABC):
    """Carry states between the base (t = 0) and the data (t = 1)."""

    @abstractmethod
    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        """Carry a state from the base side to the data side.

        Args:
            state: Points `(*batch, *event)`, with `ladj` where the density is wanted.
            context: Condition `(*batch, *context)`, with the same batch axes as the points.
            generator: Source of every random number that is drawn on the way.

        Returns:
            The state on the data side; its `ladj`, if tracked, has grown by log|det| of this map.
        """

    @abstractmethod
    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        """Carry a state from the data side to the base side; arguments as for `push`."""

    @property
    @abstractmethod
    def likelihood(self) -> Likelihood:
        """What a log-likelihood through this transport is: exact, an estimate, or a bound."""

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """Return the event shape after `push` for an event shape before it."""


class Layer(Transport):
    """A bijection in closed form; authors write `_push` and `_pull`.

    Args:
        event_dim: Trailing axes that the map mixes: 0 for an elementwise map (whose `_push` then
            returns one log-derivative for each entry), 1 for vectors, 3 for images.
        out_shape: Event shape after `push` from the one before, for maps that change it.

    Example:
        >>> class Double(Layer):
        ...     def __init__(self):
        ...         super().__init__(event_dim=0)
        ...     def _push(self, x, context, *, tracked):
        ...         return 2 * x, torch.full_like(x, 2.0).log() if tracked else None
        ...     def _pull(self, y, context, *, tracked):
        ...         return y / 2, torch.full_like(y, 0.5).log() if tracked else None
        >>> Double().push(State(torch.ones(1, 3), ladj=torch.zeros(1))).ladj
        tensor([2.0794])
    """

    def __init__(
        self, *, event_dim: int, out_shape: Callable[[Shape], Shape] | None = None
    ) -> None:
        super().__init__()
        self.event_dim = event_dim
        self._out_shape = out_shape

    @abstractmethod
    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Map x and return log|det dy/dx| where tracked; pure, writes into no argument."""

    @abstractmethod
    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Undo `_push` and return log|det dx/dy| where tracked."""

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        self._check("push", state)
        return _account(state, *self._push(state.x, context, tracked=state.ladj is not None))

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        self._check("pull", state)
        return _account(state, *self._pull(state.x, context, tracked=state.ladj is not None))

    @property
    def likelihood(self) -> Likelihood:
        return "exact"

    def out_shape(self, shape: Shape) -> Shape:
        return shape if self._out_shape is None else self._out_shape(shape)

    def _check(self, method: str, state: State) -> None:
        where = f"{type(self).__name__}.{method}"
        expect_floating(where, state.x)
        if state.x.dim() < self.event_dim:
            raise ShapeError(
                f"{where}: points need at least {self.event_dim} axes, got {tuple(state.x.shape)}"
            )


class Stochastic(Transport):
    """A layer whose pull draws noise and whose push forgets it, such as dequantisation.

    It turns the likelihood into a bound, E[log p(pull(x, noise)) + ladj] <= log p(x), and is exempt
    from round trips. Authors write `noise`, `_push` and `_pull`.

    Args:
        out_shape: Event shape after `push` from the one before, for maps that change it.
    """

    def __init__(self, *, out_shape: Callable[[Shape], Shape] | None = None) -> None:
        super().__init__()
        self._out_shape = out_shape

    @abstractmethod
    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        """Draw the noise that one pull of y needs."""

    @abstractmethod
    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map x to the data, forgetting the noise."""

    @abstractmethod
    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Map data and noise to x; return log|det| less the log density of the noise."""

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        if state.ladj is not None:
            raise DomainError(
                f"{type(self).__name__}.push: a map that forgets its noise has no determinant; "
                "push points only (State(x)) and ask log_prob for the bound at the result"
            )
        return state._replace(x=self._push(state.x, context))

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        noise = self.noise(state.x, generator)
        tracked = state.ladj is not None
        return _account(state, *self._pull(state.x, noise, context, tracked=tracked))

    @property
    def likelihood(self) -> Likelihood:
        return "bound"

    def out_shape(self, shape: Shape) -> Shape:
        return shape if self._out_shape is None else self._out_shape(shape)


class Chain(Transport):
    """Run transports one after the other; they are listed in push order, base side first.

    Example:
        >>> from cflow.transport import Permutation
        >>> chain = Chain(Permutation([1, 0, 2]), Permutation([2, 0, 1]))
        >>> chain.push(State(torch.tensor([[1.0, 2.0, 3.0]]))).x
        tensor([[3., 2., 1.]])
    """

    def __init__(self, *transports: Transport) -> None:
        super().__init__()
        for position, part in enumerate(transports):
            if not isinstance(part, Transport):
                raise DomainError(
                    f"Chain: part {position} must be a Transport, got {type(part).__name__}"
                )
        self.parts = nn.ModuleList(transports)

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        for part in self:
            state = part.push(state, context, generator=generator)
        return state

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        for part in reversed(list(self)):
            state = part.pull(state, context, generator=generator)
        return state

    @property
    def likelihood(self) -> Likelihood:
        kinds = {part.likelihood for part in self}
        return "bound" if "bound" in kinds else "estimate" if "estimate" in kinds else "exact"

    def out_shape(self, shape: Shape) -> Shape:
        for part in self:
            shape = part.out_shape(shape)
        return shape

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Transport]:
        return iter(self.parts)  # type: ignore[arg-type]

    @overload
    def __getitem__(self, index: int) -> Transport: ...
    @overload
    def __getitem__(self, index: slice) -> "Chain": ...
    def __getitem__(self, index: int | slice) -> "Transport | Chain":
        """Return one part, or a shorter chain that shares its parts with this one."""
        parts = list(self)
        return Chain(*parts[index]) if isinstance(index, slice) else parts[index]


class Inverse(Transport):
    """Swap push and pull of a transport that keeps the event shape.

    Example:
        >>> from cflow.transport import Logit
        >>> Inverse(Logit()).push(State(torch.zeros(1, 1))).x
        tensor([[0.5000]])
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self.transport = transport

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self.transport.pull(state, context, generator=generator)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        return self.transport.push(state, context, generator=generator)

    @property
    def likelihood(self) -> Likelihood:
        return self.transport.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        if self.transport.out_shape(shape) != shape:
            raise ShapeError(
                f"Inverse: only transports that keep the event shape can be inverted, got "
                f"{type(self.transport).__name__} with {shape} -> {self.transport.out_shape(shape)}"
            )
        return shape


def _account(state: State, x: Tensor, ladj: Tensor | None) -> State:
    """Replace the points and add a map's log-determinant, summed over the axes of one event.

    Summed in the wider dtype of the two, hence never below float32.
    """
    if state.ladj is None or ladj is None:
        return state._replace(x=x)
    ladj = ladj.to(torch.promote_types(state.ladj.dtype, ladj.dtype))
    if ladj.dim() > state.ladj.dim():
        ladj = ladj.flatten(state.ladj.dim()).sum(-1)
    return state._replace(x=x, ladj=state.ladj.to(ladj.dtype) + ladj)
