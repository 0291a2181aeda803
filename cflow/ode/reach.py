"""Which tensors a result depends on: the leaves of its graph.

Adjoints that recompute a solve in their backward pass must hand every tensor that the field reads
to autograd. Walking the graph of one evaluation finds them, wherever a closure hides them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.errors import DomainError
from cflow.ode.problem import Problem, Span

__all__ = ["cut", "floating", "inputs_of", "refuse_second_order"]


def inputs_of(problem: Problem, span: Span) -> list[Tensor]:
    """List every tensor that may want a gradient of a solve.

    Returns:
        t0 and t1, one time for each sample; the leaves of the state; the floating tensors in args;
        and the parameters: those that the caller named, and the leaves that one evaluation of the
        field at the start reaches.
    """
    device, dtype = problem.leaves[0].device, problem.time_dtype
    times = [
        torch.as_tensor(t, dtype=dtype, device=device).expand(problem.batch)
        for t in (span.t0, span.t1)
    ]
    named = [p for p in problem.parameters if p.requires_grad]
    plain = cut(problem)
    with torch.enable_grad():
        slopes = problem.f(times[0].detach(), plain.leaves, plain.args)
    known = {id(p) for p in named}
    found = [p for p in _leaves(slopes, named) if id(p) not in known]
    flat = pytree.tree_leaves(problem.args)
    return [*times, *problem.leaves, *(flat[k] for k in floating(flat)), *named, *found]


def cut(problem: Problem) -> Problem:
    """Return the problem with state and args cut from the caller's graph."""
    args = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, problem.args)
    return replace(problem, leaves=[leaf.detach() for leaf in problem.leaves], args=args)


def floating(flat: Sequence[Any]) -> list[int]:
    """Say which of flat args are floating tensors, the only ones that can want gradients."""
    return [k for k, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]


def refuse_second_order(name: str) -> None:
    """Raise where a backward pass is itself being differentiated."""
    if torch.is_grad_enabled():
        raise DomainError(
            f"{name}: its gradient cannot be differentiated again (create_graph=True); use "
            "Direct() or Checkpoint()"
        )


def _leaves(outputs: Sequence[Tensor], named: Iterable[Tensor]) -> list[Tensor]:
    """Walk back from outputs to the leaves of their graph, not past the named tensors."""
    stop = {p.grad_fn for p in named if p.grad_fn is not None}
    waiting = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen: set[Any] = set()
    found: list[Tensor] = []
    while waiting:
        node = waiting.pop()
        if node in seen or node in stop:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found
