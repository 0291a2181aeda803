"""The contract of a flow: its transport's, and that samples and density are of one law."""

import copy

import torch
from torch import Generator, Tensor

from cflow.flow import Flow
from cflow.testing.demands import Demands
from cflow.testing.law import Law
from cflow.testing.report import Check, Report, run_checks
from cflow.testing.transports import check_transport

__all__ = ["check_flow"]


def check_flow(
    flow: Flow,
    *,
    classes: int = 0,
    levels: int = 0,
    adjacency: Tensor | None = None,
    demands: Demands | None = None,
    box: float = 12.0,
    cells: int = 400,
    mass: float = 1e-2,
    edge: float = 0.1,
    draws: int = 10_000,
) -> Report:
    """Hold a flow to its contract: everything of `check_transport`, and its law.

    The law is that of the flow as it is handed in, at one random condition: hand in one that is
    trained, or perturb its parameters, since a fresh flow is often the base. A likelihood that is
    an estimate has no density to test: hand the flow in with an exact one as well.

    Args:
        flow: The flow; copies of it are run.
        classes: Number of classes where the context is integer labels, else 0.
        levels: Number of levels of integer data, 0 for others; all integer points are summed over
            where they are few.
        adjacency: As for `check_transport`.
        demands: As for `check_transport`.
        box: Half-width of the box that is integrated over, around the origin, in data units.
        cells: Cells along each axis of the grid, in one or two dimensions.
        mass: Largest |integral - 1|: the midpoint rule and the mass outside the box.
        edge: Largest probability that rounding may take into the edge levels of integer data.
        draws: Samples that are tested against the density; the rate of false alarms is 1e-6.

    Returns:
        The findings; `print(report)` shows them as a table.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> check_flow(Flow(Gaussian(1), Affine(scale=2.0))).passed
        True
    """
    demands = Demands() if demands is None else demands
    flow = copy.deepcopy(flow).eval()
    report = check_transport(
        flow.transport,
        shape=flow.base.event_shape,
        context=flow.context_shape,
        classes=classes,
        adjacency=adjacency,
        demands=demands,
    )
    condition = _condition(flow, classes, demands.seed)
    law = Law(flow, condition, box, cells, mass, draws, demands.seed, demands.round_trip)
    checks: list[Check] = []
    if flow.likelihood == "exact":
        checks = [
            Check("mass", "the density integrates to one over the box", law.mass_of_grid),
            Check("samples", "samples are distributed as the density says", law.samples),
            Check("sampled density", "samples come with their density", law.sampled_density),
        ]
    if flow.likelihood == "bound":
        claim = "the probabilities of all integers sum to no more than one"
        checks = [Check("integers", claim, lambda: law.integers(levels, edge))]
    return Report(report.findings + run_checks(checks).findings)


def _condition(flow: Flow, classes: int, seed: int) -> Tensor | None:
    if flow.context_shape is None:
        return None
    source = Generator().manual_seed(seed)
    if classes:
        return torch.randint(classes, flow.context_shape, generator=source)
    like = next(iter((*flow.parameters(), *flow.buffers())), torch.zeros(()))
    return torch.randn(flow.context_shape, generator=source).to(like)
