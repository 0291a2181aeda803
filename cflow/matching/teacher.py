"""Teachers: flows that make pairs, the ends of their ODE, without being changed by it.

    made: x0 ~ base,  x1 = push(x0);        from data: x1 ~ data,  x0 = pull(x1)

Parts before the ODE are applied to the draw of the base, and parts after it (preprocessing) to data
on its way in: pairs lie where the field lives.
Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, section 2; Lee et al. (2024),
Improving the training of rectified flows, arXiv 2405.20320, for pairs from data.
"""

import copy
from collections.abc import Generator as Iteration
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_finite, expect_positive, expect_trailing
from cflow.flow import Flow
from cflow.matching.shuffle import Shuffle, hashed
from cflow.state import State
from cflow.transport.around import around_ode
from cflow.typing import Data

__all__ = ["Teacher", "TeacherPairs", "evaluating"]

Tensors: TypeAlias = tuple[Tensor, ...]


class Teacher:
    """Make pairs with a flow, and nothing else: no gradients, and its mode as it was afterwards.

    Args:
        where: Name of the caller, for errors.
        flow: A flow with exactly one ODE, by itself or in a chain; it is not copied.
        context: Conditions to choose from, `(m, *context_shape)`, where the flow takes any.
        data: Points to choose from, `(m, *event_shape)`, where pairs are to come from data.
    """

    def __init__(
        self, where: str, flow: Flow, *, context: Tensor | None = None, data: Data | None = None
    ) -> None:
        self.where, self.flow, self.context, self.data = where, flow, context, data
        self.around = around_ode(where, flow.transport)
        self.device = next((t.device for t in flow.state_dict().values()), torch.device("cpu"))
        if (context is None) != (flow.context_shape is None):
            raise DomainError(
                f"{where}: this flow takes {'no' if flow.context_shape is None else 'a'} context, "
                f"got {'none' if context is None else tuple(context.shape)}; give one condition "
                "for each pair where it takes any"
            )
        if context is not None:
            _expect_rows(where, "context", context, flow.context_shape or ())
        if data is not None:
            _expect_rows(where, "data", data, flow.event_shape)
            expect_finite(where, "data", data)
        if context is not None and data is not None and len(context) != len(data):
            raise ShapeError(
                f"{where}: {len(data)} points of data need as many conditions, got {len(context)}"
            )

    @property
    def choices(self) -> int | None:
        """How many conditions or points there are to choose from; None where there are neither."""
        given = self.context if self.data is None else self.data
        return None if given is None else len(given)

    def pairs(self, n: int, rows: slice | Tensor, generator: Generator) -> Tensors:
        """Make n pairs, for the given rows of context and data.

        Returns:
            Starts and ends `(n, *event)`, and conditions where there are any.

        Raises:
            DomainError: A pair is not finite.
            SolverError: The solve failed.
        """
        before, ode, after = self.around
        context = None if self.context is None else self._rows(self.context, rows)
        with torch.no_grad(), evaluating(self.flow):
            if self.data is None:
                x0 = self.flow.base.sample((n,), context, generator=generator)
                x0 = before.push(State(x0), context, generator=generator).x
                x1 = ode.push(State(x0), context, generator=generator).x
            else:
                state = State(self._rows(self.data, rows))
                x1 = after.pull(state, context, generator=generator).x
                x0 = ode.pull(State(x1), context, generator=generator).x
        expect_finite(self.where, "x0", x0)
        expect_finite(self.where, "x1", x1)
        return (x0, x1) if context is None else (x0, x1, context)

    def _rows(self, tensor: Tensor, rows: slice | Tensor) -> Tensor:
        rows = rows.to(tensor.device) if isinstance(rows, Tensor) else rows
        return tensor[rows].to(self.device)


class TeacherPairs:
    """Make fresh pairs for every batch, by a frozen copy of a flow: an online teacher.

    `Trainer.fit` takes it in place of data; its pairs are made, so the loss keeps them, with
    `PairedCoupling`. Nothing is stored and no pair comes twice, at the price of a solve for each
    batch; `reflow_pairs` pays for each pair once.

    Args:
        flow: A flow with exactly one ODE, by itself or in a chain. It is copied, so training it
            further does not reach the teacher; `flow.with_solver(...)` sets how it solves.
        n: Pairs that make an epoch.
        context: Conditions that are used in turn, shuffled, `(m, *context_shape)`.
        data: Points `(m, *event_shape)` of the data that are pulled back in turn, shuffled, instead
            of pushing noise; a context is then one for each point.

    Raises:
        DomainError: There is not exactly one ODE, n is not positive, or the flow wants a context or
            takes none.
        ShapeError: Context or data have another shape.

    Example:
        >>> from cflow import recipes
        >>> source = TeacherPairs(recipes.cnf(2), 1000)
        >>> x0, x1 = next(source.batches(8, seed=0))
        >>> x1.shape
        torch.Size([8, 2])
    """

    def __init__(
        self, flow: Flow, n: int, *, context: Tensor | None = None, data: Data | None = None
    ) -> None:
        expect_positive("TeacherPairs", n=n)
        frozen = copy.deepcopy(flow).eval().requires_grad_(requires_grad=False)
        self.n = n
        self._teacher = Teacher("TeacherPairs", frozen, context=context, data=data)

    def __len__(self) -> int:
        return self.n

    def batches(self, batch: int, *, seed: int, start: int = 0) -> Iterator[Tensors]:
        """Give batches `(x0, x1)` or `(x0, x1, context)` without end, from number `start` on.

        Batch number k follows from its size, the seed and k alone.

        Raises:
            DomainError: The batch is empty, the start negative, or a pair not finite.
            SolverError: A solve of the teacher failed.
        """
        expect_positive("TeacherPairs.batches", batch=batch)
        if start < 0:
            raise DomainError(f"TeacherPairs.batches: start must be 0 or more, got {start}")
        choices = self._teacher.choices
        shuffle = None if choices is None else Shuffle(choices, f"{seed} teacher rows")
        for k in count(start):
            generator = Generator(self._teacher.device).manual_seed(hashed(f"{seed} teacher {k}"))
            rows = slice(0) if shuffle is None else shuffle.rows(k * batch, batch)
            yield self._teacher.pairs(batch, rows, generator)


@contextmanager
def evaluating(flow: nn.Module) -> Iteration[None]:
    """Put a flow into evaluation mode, and each of its modules back into its own."""
    modes = [(module, module.training) for module in flow.modules()]
    flow.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _expect_rows(where: str, name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    expect_trailing(where, name, given, shape)
    if given.dim() != len(shape) + 1 or not len(given):
        raise ShapeError(
            f"{where}: {name} must have one leading axis before the shape {shape}, and a row at "
            f"least, got {tuple(given.shape)}"
        )
