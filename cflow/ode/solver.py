"""The contract of a solver, and the one loop over time that stands below every one of them.

    y' = f(t, y, *args),    y(t0) = y0,    wanted: y(t1)

`y0` and `args` are trees of tensors with one leading batch axis; `f` sees `t` as `(batch,)`.
`t1 < t0` runs backward. This package imports nothing but `errors`, and can be used alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import DomainError, ShapeError

__all__ = ["Problem", "Solution", "Solver", "Status", "Time", "finite_rows", "march"]

Time: TypeAlias = float | Tensor
"""A time: a number, a 0-d tensor, or one per sample `(batch,)` (tensors carry gradients)."""

Y = TypeVar("Y")


class Status(IntEnum):
    """Say how the solve of one sample ended."""

    DONE = 0
    STEPS_EXHAUSTED = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3


class Solution(NamedTuple):
    """Hold the result of a solve and what it took, per sample.

    Attributes:
        y: The tree at t1, or, with `save_at`, at each saved time (a new leading axis).
        ts: Times that `y` belongs to: `(saved,)` with `save_at`, else t1 itself.
        nfe: Evaluations of f for each sample, `(batch,)`.
        accepted: Accepted steps, `(batch,)`.
        rejected: Rejected steps, `(batch,)`; zero for fixed steps.
        status: One `Status` each, `(batch,)`.
    """

    y: Any
    ts: Time
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor


@dataclass(frozen=True)
class Problem:
    """Hold a checked initial value problem with its trees flattened, as solver kernels see it."""

    field: Callable[..., Any]
    leaves: list[Tensor]
    args: list[Any]
    project: Callable[[list[Tensor]], list[Tensor]] | None
    y_spec: pytree.TreeSpec
    args_spec: pytree.TreeSpec

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.leaves[0].shape[0]

    @property
    def time_dtype(self) -> torch.dtype:
        """The dtype of time: that of the widest leaf, and never below float32."""
        dtype = torch.float32
        for leaf in self.leaves:
            dtype = torch.promote_types(dtype, leaf.dtype)
        return dtype

    def f(self, t: Time, leaves: list[Tensor], args: list[Any]) -> list[Tensor]:
        """Evaluate the field on flat leaves, t broadcast to one time per row."""
        x = leaves[0]
        if not isinstance(t, Tensor):
            t = torch.full((x.shape[0],), t, dtype=self.time_dtype, device=x.device)
        elif t.dim() == 0:
            t = t.expand(x.shape[0])
        y = pytree.tree_unflatten(leaves, self.y_spec)
        dy = self.field(t, y, *pytree.tree_unflatten(args, self.args_spec))
        slopes, spec = pytree.tree_flatten(dy)
        if spec != self.y_spec or any(
            s.shape != leaf.shape for s, leaf in zip(slopes, leaves, strict=True)
        ):
            raise ShapeError(
                "solve: the field must return the structure and shapes of the state, expected "
                f"{[tuple(leaf.shape) for leaf in leaves]}, got "
                f"{[tuple(s.shape) for s in slopes]}"
            )
        return slopes

    def tree(self, leaves: list[Tensor]) -> Any:  # noqa: ANN401
        """Give the caller's structure back to flat leaves."""
        return pytree.tree_unflatten(leaves, self.y_spec)


class Solver(ABC):
    """Integrate an initial value problem; concrete solvers are frozen dataclasses of options.

    Attributes:
        per_sample: Whether a sample's result is independent of its batch mates.
        adaptive: Whether the step size follows an error estimate.
    """

    per_sample: ClassVar[bool]
    adaptive: ClassVar[bool]

    def solve(
        self,
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        t0: Time,
        t1: Time,
        *,
        args: tuple[Any, ...] = (),
        project: Callable[[Any], Any] | None = None,
        save_at: Sequence[float] | Tensor | None = None,
    ) -> Solution:
        """Solve y' = f(t, y, *args) from t0 to t1, forward or backward.

        Args:
            f: `f(t, y, *args)` with `t` of shape `(batch,)`, returning the structure of `y`.
            y0: Tree of tensors, each `(batch, ...)`.
            t0: Start: a number, or a tensor `()` or `(batch,)` (then gradients reach it).
            t1: End, likewise.
            args: Trees handed on to f. Tensors in them carry the batch axis, because samples
                that are done leave the batch together with their rows; what all samples share
                belongs into f itself.
            project: Maps a state back onto its constraint; applied after every step.
            save_at: Times to keep, running from t0 to t1; needs numbers for t0 and t1.

        Returns:
            The solution, with per-sample counts and status.

        Raises:
            ShapeError: A leaf lacks the batch axis, or f returns other shapes.
            DomainError: Times are not finite, or `save_at` does not run from t0 to t1.
            SolverError: A solver that throws ran into a status other than DONE.

        Example:
            >>> from cflow.ode import RK4
            >>> y = RK4(steps=20).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y
            >>> round(y.item(), 4)
            0.3679
        """
        problem = _problem(f, y0, args, project)
        stops = _stops(t0, t1, save_at)
        return self._solve(problem, stops, save=save_at is not None)

    @abstractmethod
    def _solve(self, problem: Problem, stops: Sequence[Time], *, save: bool) -> Solution:
        """Solve from stops[0] to stops[-1]; with `save`, return the states at stops[1:-1]."""


def march(
    step: Callable[[Time, Time, Y], Y],
    y: Y,
    grid: Iterable[Time],
    *,
    visit: Callable[[Time, Y], None] | None = None,
) -> Y:
    """Carry y along a time grid: the only loop over time in the package.

    Args:
        step: `step(t, t_next, y) -> y_next`; a Runge-Kutta step, an adaptive stretch, or a jump.
        y: Start, anything that `step` accepts.
        grid: Times in the order of travel, the start first.
        visit: Called as `visit(t, y)` at every time of the grid, the start included.

    Returns:
        The state at the last time.

    Example:
        >>> march(lambda t, t_next, y: y + (t_next - t), 0.0, [0.0, 0.5, 2.0])
        2.0
    """
    times = iter(grid)
    t = next(times)
    if visit is not None:
        visit(t, y)
    for t_next in times:
        y = step(t, t_next, y)
        t = t_next
        if visit is not None:
            visit(t, y)
    return y


def finite_rows(leaves: Sequence[Tensor]) -> Tensor:
    """Say for each sample whether all its entries are finite, `(batch,)`."""
    flags = [torch.isfinite(leaf)[..., None].flatten(1).all(1) for leaf in leaves]
    return torch.stack(flags).all(0)


def _problem(
    f: Callable[..., Any],
    y0: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    project: Callable[[Any], Any] | None,
) -> Problem:
    leaves, y_spec = pytree.tree_flatten(y0)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves):
        raise ShapeError(
            "solve: y0 must be a tree of tensors with a leading batch axis, got "
            f"{[tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]}"
        )
    if not all(leaf.is_floating_point() for leaf in leaves):
        raise DomainError(
            f"solve: y0 must be floating, got {[leaf.dtype for leaf in leaves]}; call .float()"
        )
    flat_args, args_spec = pytree.tree_flatten(args)
    batch = leaves[0].shape[0]
    for leaf in (*leaves, *flat_args):
        if isinstance(leaf, Tensor) and (leaf.dim() == 0 or leaf.shape[0] != batch):
            raise ShapeError(
                f"solve: tensors in y0 and args must share the batch axis of length {batch}, got "
                f"shape {tuple(leaf.shape)}; put what all samples share into f itself"
            )

    def flat_project(flat: list[Tensor]) -> list[Tensor]:
        assert project is not None
        return pytree.tree_leaves(project(pytree.tree_unflatten(flat, y_spec)))

    flat = flat_project if project is not None else None
    return Problem(f, leaves, flat_args, flat, y_spec, args_spec)


def _stops(t0: Time, t1: Time, save_at: Sequence[float] | Tensor | None) -> list[Time]:
    for name, t in (("t0", t0), ("t1", t1)):
        if not isinstance(t, Tensor) and not abs(t) < float("inf"):
            raise DomainError(f"solve: {name} must be finite, got {t}")
    if save_at is None:
        return [t0, t1]
    if isinstance(t0, Tensor) or isinstance(t1, Tensor):
        raise DomainError("solve: save_at needs t0 and t1 as numbers, got a tensor")
    saved: list[float] = save_at.tolist() if isinstance(save_at, Tensor) else list(save_at)
    sign = 1.0 if t1 >= t0 else -1.0
    path = [t0, *saved, t1]
    if not saved or any(sign * (b - a) < 0 for a, b in pairwise(path)):
        raise DomainError(
            f"solve: save_at must run from t0={t0:g} to t1={t1:g} without turning back, got {saved}"
        )
    return list(path)
