"""How straight the paths of a flow are, how far they carry, and how quality depends on steps.

    cost C = E |x1 - x0|^2,   energy K = E int |v|^2 dt,   straightness S = E int |x1 - x0 - v|^2 dt

    K = C + S,    S = 0 where every path is straight at constant speed: then one step is exact

A round of reflow cannot raise C, nor that of any other convex cost (theorem 3.5 of the source), and
S falls over the rounds; a trained field comes near to what is proved of an exact one.
Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.flow import Flow
from cflow.manifold import Euclidean
from cflow.ode import Euler
from cflow.samples.batches import draw
from cflow.samples.options import expect_count
from cflow.state import State
from cflow.transport.around import around_ode
from cflow.typing import Batch, Points

__all__ = ["PathMeasures", "by_steps", "path_measures"]

T = TypeVar("T")


@dataclass(frozen=True)
class PathMeasures:
    """Hold what was measured for each path, in squared units of the points at the data end.

    Attributes:
        costs: |x1 - x0|^2, `(n,)`.
        energies: int |v|^2 dt, `(n,)`.
        bends: int |x1 - x0 - v|^2 dt, `(n,)`.
    """

    costs: Batch
    energies: Batch
    bends: Batch

    @property
    def transport_cost(self) -> Tensor:
        """The mean cost C, `()`."""
        return self.costs.mean()

    @property
    def energy(self) -> Tensor:
        """The mean energy K, `()`; no less than the cost."""
        return self.energies.mean()

    @property
    def straightness(self) -> Tensor:
        """The mean S, `()`: 0 for straight paths. It is the energy less the cost."""
        return self.bends.mean()

    @property
    def standard_errors(self) -> dict[str, float]:
        """Standard errors of the three means, by their names."""
        named = (self.costs, self.energies, self.bends)
        names = ("transport_cost", "energy", "straightness")
        return {
            name: (values.std() / len(values) ** 0.5).item()
            for name, values in zip(names, named, strict=True)
        }


def path_measures(
    flow: Flow,
    x0: Points | int,
    *,
    steps: int = 100,
    context: Tensor | None = None,
    batch: int = 1024,
    generator: Generator | None = None,
) -> PathMeasures:
    """Follow the ODE of a flow by Euler's method and measure its paths, without gradients.

    The integrals are those of the polygon that the steps make, so that K = C + S to rounding for
    any number of steps.

    Args:
        flow: A flow, in evaluation mode, with exactly one ODE, by itself or in a chain.
        x0: Points where the ODE starts, `(n, *event)`, or a number of draws of the base, which the
            parts before the ODE are applied to.
        steps: Euler steps.
        context: Conditions `(n, *context_shape)`, where the flow takes any.
        batch: Points that are followed together.
        generator: Source of the draws.

    Returns:
        The three measures of each path, with their means and standard errors.

    Raises:
        DomainError: There is not exactly one ODE, it runs on a manifold, a number is not positive,
            or the flow wants a context or takes none.
        ShapeError: Points or context have another shape.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.field import FunctionField
        >>> from cflow.transport import ODE
        >>> shift = FunctionField(lambda t, x, context: torch.ones_like(x))
        >>> measures = path_measures(Flow(Gaussian(2), ODE(shift)), torch.zeros(5, 2), steps=4)
        >>> measures.transport_cost, measures.straightness
        (tensor(2.), tensor(0.))
    """
    expect_count("path_measures", steps=steps, batch=batch)
    before, ode, _ = around_ode("path_measures", flow.transport)
    if not isinstance(ode.manifold, Euclidean):
        raise DomainError(
            "path_measures: straight is what lines in flat space are, got an ODE on "
            f"{type(ode.manifold).__name__}"
        )
    if (context is None) != (flow.context_shape is None):
        raise DomainError(
            "path_measures: give a context where the flow takes one, and only there, got "
            f"{None if context is None else tuple(context.shape)}"
        )
    n = x0 if isinstance(x0, int) else len(x0)
    expect_count("path_measures", n=n)
    if context is not None:
        expect_trailing("path_measures", "context", context, flow.context_shape or ())
        if len(context) != n:
            raise ShapeError(
                f"path_measures: give one condition for each of the {n} paths, got {len(context)}"
            )
    with torch.no_grad():
        if isinstance(x0, int):
            x0 = flow.base.sample((n,), context, generator=generator)
            x0 = before.push(State(x0), context, generator=generator).x
        parts = [
            _follow(ode.field, x0[k : k + batch], _rows(context, k, batch), steps)
            for k in range(0, n, batch)
        ]
    return PathMeasures(*(torch.cat(part) for part in zip(*parts, strict=True)))


def by_steps(
    flow: Flow,
    measure: Callable[[Tensor], T],
    *,
    n: int,
    steps: Sequence[int] = (1, 2, 4, 8, 100),
    context: Tensor | None = None,
    batch: int = 1024,
    generator: Generator | None = None,
    progress: bool = False,
) -> dict[int, T]:
    """Measure samples drawn with few steps and with many, from the same noise: quality by steps.

    Args:
        flow: A flow with an ODE, or one that leaps.
        measure: Of samples `(n, *event_shape)`: a distance from data, say.
        n: Samples of each drawing.
        steps: Numbers of Euler steps.
        context: One condition for all samples, or one for each, `(n, *context_shape)`.
        batch: Samples that are carried together.
        generator: Source of the noise.
        progress: Show bars where there is a terminal.

    Returns:
        What `measure` gives, by the number of steps.

    Raises:
        DomainError: As for `draw`, or no number of steps is given.

    Example:
        >>> from cflow import recipes
        >>> by_steps(recipes.cnf(2), lambda x: tuple(x.shape), n=10, steps=(1, 2))
        {1: (10, 2), 2: (10, 2)}
    """
    expect_count("by_steps", n=n, **{f"steps[{k}]": s for k, s in enumerate(steps)})
    if not steps:
        raise DomainError("by_steps: give one number of steps at least, got none")
    state = flow.state_dict().values()
    device = next((t.device for t in state), torch.device("cpu"))
    if generator is not None:
        device = generator.device
    seed = int(torch.randint(2**62, (), device=device, generator=generator))

    def drawn(count: int) -> Tensor:
        again = Generator(device).manual_seed(seed)
        carrier = flow.with_solver(Euler(count))
        return draw(carrier, n, context, batch=batch, generator=again, progress=progress)

    return {count: measure(drawn(count)) for count in steps}


def _follow(
    field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x0: Tensor,
    context: Tensor | None,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cost, energy and bend of each path, `(n,)`.

    The mean velocity of a polygon is x1 - x0, so the bend is the variance of v over the steps. It
    is summed as one (Welford): the difference of energy and cost would lose the digits of a path
    that is nearly straight.
    """
    x, mean, spread = x0, torch.zeros_like(x0), torch.zeros_like(x0)
    for k in range(steps):
        t = x0.new_full((len(x0),), k / steps)
        v = field(t, x, context)
        away = v - mean
        mean = mean + away / (k + 1)
        spread = spread + away * (v - mean)
        x = x + v / steps
    cost = mean.square().reshape(len(x0), -1).sum(1)
    bend = spread.reshape(len(x0), -1).sum(1) / steps
    return cost, cost + bend, bend


def _rows(context: Tensor | None, first: int, count: int) -> Tensor | None:
    return None if context is None else context[first : first + count]
