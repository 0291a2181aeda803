"""What a solver kernel sees: a checked initial value problem and the span of time to cross.

Trees are flattened once; a field on a tensor, or a tuple of tensors, is called without any tree in
between.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import DomainError, ShapeError

__all__ = ["Problem", "Span", "Time", "select_rows"]

Time: TypeAlias = float | Tensor
"""A time: a number, a 0-d tensor, or one per sample `(batch,)` (tensors carry gradients)."""


class Tree(NamedTuple):
    """Say how leaves make up a tree; a tensor and a tuple of tensors cost next to nothing.

    Attributes:
        spec: The structure.
        plain: `Tensor` or `tuple` where the tree is no more than that, else None.
    """

    spec: pytree.TreeSpec
    plain: type | None

    @staticmethod
    def take(tree: Any) -> tuple[list[Any], "Tree"]:  # noqa: ANN401
        """Take a tree apart."""
        leaves, spec = pytree.tree_flatten(tree)
        if isinstance(tree, Tensor):
            return leaves, Tree(spec, Tensor)
        return leaves, Tree(spec, tuple if _tensors(tree) else None)

    def join(self, leaves: list[Tensor]) -> Any:  # noqa: ANN401
        """Give the structure to leaves."""
        if self.plain is Tensor:
            return leaves[0]
        return tuple(leaves) if self.plain is tuple else pytree.tree_unflatten(leaves, self.spec)

    def leaves(self, tree: Any) -> list[Any] | None:  # noqa: ANN401
        """Return the leaves of a tree of this structure, None for one of another."""
        if self.plain is Tensor and isinstance(tree, Tensor):
            return [tree]
        if self.plain is tuple and _tensors(tree) and len(tree) == self.spec.num_leaves:
            return list(tree)
        leaves, spec = pytree.tree_flatten(tree)
        return leaves if spec == self.spec else None


@dataclass(frozen=True)
class Problem:
    """Hold a checked initial value problem with its state flattened.

    Attributes:
        field: `field(t, y, *args)` on trees.
        leaves: Tensors of the start, each `(batch, ...)`.
        args: Trees for the field, whose tensors carry the batch axis.
        project: Maps leaves back onto their constraint, or None.
        structure: How the leaves make up the caller's tree.
        parameters: Tensors that the field reads besides, as far as the caller named them.
    """

    field: Callable[..., Any]
    leaves: list[Tensor]
    args: tuple[Any, ...]
    project: Callable[[list[Tensor]], list[Tensor]] | None
    structure: Tree
    parameters: tuple[Tensor, ...]

    @staticmethod
    def check(
        f: Callable[..., Any],
        y0: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        project: Callable[[Any], Any] | None,
        parameters: Iterable[Tensor],
    ) -> "Problem":
        """Flatten and check what a caller hands to `Solver.solve`."""
        leaves, structure = Tree.take(y0)
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves):
            raise ShapeError(
                "solve: y0 must be a tree of tensors with a leading batch axis, got "
                f"{[tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]}"
            )
        if not all(leaf.is_floating_point() for leaf in leaves):
            raise DomainError(
                f"solve: y0 must be floating, got {[leaf.dtype for leaf in leaves]}; call .float()"
            )
        batch = leaves[0].shape[0]
        for leaf in (*leaves, *pytree.tree_leaves(args)):
            if isinstance(leaf, Tensor) and (leaf.dim() == 0 or leaf.shape[0] != batch):
                raise ShapeError(
                    f"solve: tensors in y0 and args must share the batch axis of length {batch}, "
                    f"got shape {tuple(leaf.shape)}; put what all samples share into f itself"
                )

        def flat_project(flat: list[Tensor]) -> list[Tensor]:
            assert project is not None
            after = structure.leaves(project(structure.join(flat)))
            if after is None:
                raise ShapeError("solve: project must return the structure of the state")
            return after

        back = None if project is None else flat_project
        return Problem(f, leaves, args, back, structure, tuple(parameters))

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

    def f(self, t: Tensor, leaves: list[Tensor], args: tuple[Any, ...]) -> list[Tensor]:
        """Evaluate the field on flat leaves; t holds one time for each row."""
        dy = self.field(t, self.tree(leaves), *args)
        slopes = self.structure.leaves(dy)
        if slopes is None or any(
            not isinstance(s, Tensor) or s.shape != leaf.shape
            for s, leaf in zip(slopes, leaves, strict=True)
        ):
            found = pytree.tree_leaves(dy)
            raise ShapeError(
                "solve: the field must return the structure and shapes of the state, expected "
                f"{[tuple(leaf.shape) for leaf in leaves]}, got "
                f"{[tuple(s.shape) if isinstance(s, Tensor) else s for s in found]}"
                f"{_at(t)}"
            )
        for s, leaf in zip(slopes, leaves, strict=True):
            if s.dtype != leaf.dtype:
                raise DomainError(
                    f"solve: the field must return the dtypes of the state, expected {leaf.dtype}, "
                    f"got {s.dtype}{_at(t)}; cast its result, or y0"
                )
        return slopes

    def tree(self, leaves: list[Tensor]) -> Any:  # noqa: ANN401
        """Give the caller's structure back to flat leaves."""
        return self.structure.join(leaves)


@dataclass(frozen=True)
class Span:
    """Hold the way through time: from t0 to t1, what to keep and where to stop.

    Attributes:
        t0: Start.
        t1: End.
        save: Times whose states are wanted, in the order of travel, or None.
        stops: Times strictly between t0 and t1 that steps must hit, in the order of travel.
        dense: Whether all steps are kept.
        empty: Whether t0 and t1 are one and the same number.
    """

    t0: Time
    t1: Time
    save: tuple[float, ...] | None
    stops: tuple[float, ...]
    dense: bool
    empty: bool

    @staticmethod
    def check(
        problem: Problem,
        t0: Time,
        t1: Time,
        save_at: Sequence[float] | Tensor | None,
        stop_at: Sequence[float] | Tensor,
        *,
        dense: bool,
    ) -> "Span":
        """Check the times that a caller hands to `Solver.solve`."""
        for name, t in (("t0", t0), ("t1", t1)):
            if isinstance(t, Tensor):
                if t.dim() and tuple(t.shape) != (problem.batch,):
                    raise ShapeError(
                        f"solve: {name} must be a number, a tensor () or one time per sample "
                        f"({problem.batch},), got shape {tuple(t.shape)}"
                    )
            elif not abs(t) < float("inf"):
                raise DomainError(f"solve: {name} must be finite, got {t}")
        tensors = isinstance(t0, Tensor) or isinstance(t1, Tensor)
        if tensors and (save_at is not None or len(stop_at)):
            raise DomainError("solve: save_at and stop_at need t0 and t1 as numbers, got a tensor")
        save = None if save_at is None else _ordered("save_at", t0, t1, save_at)
        stops = (
            tuple(s for s in _ordered("stop_at", t0, t1, stop_at) if s not in (t0, t1))
            if len(stop_at)
            else ()
        )
        return Span(t0, t1, save, stops, dense, empty=not tensors and bool(t0 == t1))

    def piece(self, t0: Time, t1: Time) -> "Span":
        """Return a part of the span that keeps nothing on the way."""
        low, high = (t0, t1) if t1 >= t0 else (t1, t0)
        stops = tuple(s for s in self.stops if low < s < high)
        return Span(t0, t1, None, stops, dense=False, empty=False)


def _tensors(tree: Any) -> bool:  # noqa: ANN401
    """Say whether a tree is a tuple of tensors and nothing else."""
    return type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree)


def select_rows(tree: Any, rows: Tensor) -> Any:  # noqa: ANN401
    """Take rows of every tensor in a tree; whatever else is in it stays."""
    return pytree.tree_map(
        lambda leaf: leaf.index_select(0, rows) if isinstance(leaf, Tensor) else leaf, tree
    )


def _ordered(name: str, t0: Any, t1: Any, times: Sequence[float] | Tensor) -> tuple[float, ...]:  # noqa: ANN401
    listed: list[float] = times.tolist() if isinstance(times, Tensor) else list(times)
    sign = 1.0 if t1 >= t0 else -1.0
    if not listed or any(not sign * (b - a) >= 0 for a, b in pairwise([t0, *listed, t1])):
        raise DomainError(
            f"solve: {name} must run from t0={t0:g} to t1={t1:g} without turning back, got {listed}"
        )
    return tuple(listed)


def _at(t: Tensor) -> str:
    return "" if torch.compiler.is_compiling() or not len(t) else f" at t={t[0].item():.6g}"
