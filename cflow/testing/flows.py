"""The contract of a flow: its transport's, and a density that integrates to one.

integral of exp(log_prob(x)) dx = 1    over a box, by the midpoint rule
"""

import itertools

import torch
from torch import Tensor

from cflow.flow import Flow
from cflow.testing.report import Finding, Report, judged, run_checks
from cflow.testing.transports import check_transport

__all__ = ["check_flow"]


def check_flow(
    flow: Flow,
    *,
    box: float = 12.0,
    cells: int = 400,
    mass: float = 1e-2,
    far: float | None = 1e4,
    seed: int = 0,
) -> Report:
    """Hold a flow to its contract: everything of `check_transport`, and the mass of its density.

    Args:
        flow: A flow of exact likelihood; copies of it are run.
        box: Half-width of the box that is integrated over, around the origin, in data units.
        cells: Cells along each axis of the grid, in one or two dimensions.
        mass: Largest |integral - 1|: the midpoint rule and the mass outside the box.
        far: As for `check_transport`.
        seed: Seed of every draw.

    Returns:
        The findings; the mass is skipped for more than two dimensions.

    Raises:
        DomainError: The likelihood is not exact.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> check_flow(Flow(Gaussian(1), Affine(scale=2.0))).passed
        True
    """
    report = check_transport(
        flow.transport, shape=flow.base.event_shape, context=flow.context_shape, far=far, seed=seed
    )
    more = run_checks([("mass", lambda: _mass(flow, box, cells, mass))])
    return Report(report.findings + more.findings)


def _mass(flow: Flow, box: float, cells: int, bound: float) -> Finding:
    size = torch.Size(flow.event_shape).numel()
    if not 1 <= size <= 2:
        return Finding("mass", "skipped", message=f"the grid is for 1 or 2 numbers, not {size}")
    like = next(itertools.chain(flow.parameters(), flow.buffers()), torch.zeros(()))
    step = 2 * box / cells
    axis = (torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5) * step - box
    grid = torch.stack(torch.meshgrid([axis] * size, indexing="ij"), -1)
    x = grid.reshape(-1, *flow.event_shape)
    context: Tensor | None = None
    if flow.context_shape is not None:
        context = torch.zeros(flow.context_shape, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        total = flow.log_prob(x, context).double().exp().sum() * step**size
    wrong = "the density does not integrate to one (or its mass lies outside the box)"
    return judged("mass", float((total - 1).abs()), bound, wrong)
