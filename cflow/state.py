"""What travels through a transport: the points, and whatever is being tracked with them.

A transport takes a `State` and returns a `State`. `ladj=None` means points only: nobody computes a
divergence or a determinant for them. A tracked state starts at `ladj = 0` and every transport adds
the log|det d(out)/d(in)| of the direction it has just run.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["State", "tracked"]


class State(NamedTuple):
    """Hold points and what is tracked with them; a named tuple, hence a pytree everywhere in torch.

    Attributes:
        x: Points, `(*batch, *event)`.
        ladj: Accumulated log absolute determinant in nats, `(*batch,)`, or None for points only.
        cost: Accumulated regulariser, `(*batch,)`, or None when nothing has added one.
        nfe: Field evaluations so far: 0 through layers, `(*batch,)` once an ODE was solved.

    Example:
        >>> State(torch.zeros(3, 2)).ladj is None
        True
    """

    x: Tensor
    ladj: Tensor | None = None
    cost: Tensor | None = None
    nfe: Tensor | int = 0


def tracked(x: Tensor, *, event_dim: int = 1) -> State:
    """Make a state whose log-determinant is tracked, starting at zero.

    Low-precision points get a float32 `ladj`: density arithmetic never runs below float32.

    Args:
        x: Points, `(*batch, *event)`.
        event_dim: How many trailing axes make up one point.

    Returns:
        The state `(x, ladj=0)` with `ladj` of shape `(*batch,)`.

    Example:
        >>> tracked(torch.zeros(5, 2)).ladj.shape
        torch.Size([5])
    """
    batch = x.shape[: x.dim() - event_dim]
    return State(x, ladj=x.new_zeros(batch, dtype=torch.promote_types(x.dtype, torch.float32)))
