"""What the conformance kit asks of a transport, and how exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.transport import Transport, initialize

__all__ = ["Demands"]


@dataclass(frozen=True)
class Demands:
    """Say how points are drawn and how exactly they must come back.

    Attributes:
        points: Draws base-side points, called as `points(*size, dtype=, generator=)`.
        round_trip: Bound of |pull(push(x)) - x| and of the open account, in float64. 1e-9 is a
            million roundings, and far below any wrong formula; for adaptive solvers and iterations
            a hundred times their tolerance. Whatever compares two runs of the map follows it.
        jacobian: Bound of |ladj - log|det J||; one that is too wide to see a fault is reported.
        spread: Standard deviation of the noise added to the parameters, which takes them away from
            an initialisation at which wrong formulas may agree with right ones.
        far: Size of far inputs that must stay finite, or None for maps of a bounded support.
        precisions: Lower precisions in which the map must run.
        func: Whether the density must go through `torch.func`; false for loops that depend on data,
            such as adaptive solvers and fixed points.
        trace: Whether the map must compile as one graph and export as well, which takes seconds.
        repeats: Draws behind the mean of an estimate.
        initialize: Sets data-dependent layers, called as `initialize(transport, x, context)`.
        seed: Seed of every draw.

    Example:
        >>> Demands(round_trip=1e-4, jacobian=1e-4, func=False).spread
        0.3
    """

    points: Callable[..., Tensor] = torch.randn
    round_trip: float = 1e-9
    jacobian: float = 1e-8
    spread: float = 0.3
    far: float | None = 1e4
    precisions: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    func: bool = True
    trace: bool = False
    repeats: int = 1000
    initialize: Callable[[Transport, Tensor, Tensor | None], None] = initialize
    seed: int = 0
