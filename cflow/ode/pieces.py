"""A solve in pieces, from one saved time to the next.

Schemes that keep nothing between their two ends save this way: each saved time is an end.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.ode.problem import Problem, Span
from cflow.ode.solver import Solution, Status

__all__ = ["in_pieces"]


def in_pieces(problem: Problem, span: Span, solve: Callable[[Problem, Span], Solution]) -> Solution:
    """Solve from saved time to saved time, and gather states and accounts.

    Args:
        problem: What to solve.
        span: A span with `save`.
        solve: Solves a problem over a span that saves nothing.
    """
    assert span.save is not None
    path = [span.t0, *span.save, span.t1]
    device = problem.leaves[0].device
    zero = torch.zeros(problem.batch, dtype=torch.long, device=device)
    nfe, accepted, rejected, status = zero, zero, zero, zero
    reached = torch.full((problem.batch,), float(span.t0), dtype=problem.time_dtype, device=device)
    y, saved = problem.leaves, []
    for start, end in pairwise(path):
        if start != end:
            part = solve(replace(problem, leaves=y), span.piece(start, end))
            going = status == Status.DONE
            y = [_where(going, a, b) for a, b in zip(pytree.tree_leaves(part.y), y, strict=True)]
            nfe, accepted = nfe + part.nfe * going, accepted + part.accepted * going
            rejected = rejected + part.rejected * going
            reached = torch.where(going, part.reached, reached)
            status = torch.where(going, part.status, status)
        saved.append(y)
    out = [torch.stack(column) for column in zip(*saved[:-1], strict=True)]
    ts = torch.tensor(span.save, dtype=problem.time_dtype)
    return Solution(problem.tree(out), ts, nfe, accepted, rejected, status, reached)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    if bool(mask.all()):
        return new
    return torch.where(mask.reshape(-1, *(1,) * (new.dim() - 1)), new, old)
