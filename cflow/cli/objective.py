"""What a training minimises: a likelihood, a velocity's squared error, or an average velocity's.

    nll:       -log p(x)
    matching:  E |v(t, x_t) - (x1 - x0)|^2 / event size,     x1 = rest.pull(x)
    mean-flow: the same for the velocity that a flow map says of itself

On a manifold paths and costs are those of its geodesics, and sources are draws of the base.

The last two need one ODE, or leaps, at the base end of the flow, and nothing trained behind it.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from cflow.base import Gaussian, ManifoldUniform
from cflow.errors import DomainError
from cflow.field import AnalyticField, null_of
from cflow.flow import Flow
from cflow.likelihood import nll
from cflow.manifold import Euclidean, Manifold
from cflow.matching import (
    ContextDropout,
    Cost,
    Coupling,
    GeodesicCost,
    GeodesicPath,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    Path,
    SquaredEuclidean,
    matching,
    mean_flow,
)
from cflow.state import State
from cflow.transport import ODE, Chain, Leap
from cflow.transport.around import links

__all__ = ["Loss", "Pairing", "carrier", "chosen_loss", "loss_of"]

Loss: TypeAlias = Literal["nll", "matching", "mean-flow"]
Pairing: TypeAlias = Literal["ot", "independent"]


def carrier(flow: Flow) -> tuple[ODE | Leap, Chain] | None:
    """Return the ODE or the leaps at the base end, and what follows; None where there is no such.

    Example:
        >>> from cflow import recipes
        >>> ode, rest = carrier(recipes.standardized(recipes.cnf(2)))
        >>> [type(part).__name__ for part in rest]
        ['Standardize']
        >>> carrier(recipes.realnvp(2)) is None
        True
    """
    first, *rest = [*links(flow.transport)] or [Chain()]
    more = any(isinstance(part, ODE | Leap) for link in rest for part in link.modules())
    if not isinstance(first, ODE | Leap) or more:
        return None
    flat = isinstance(first.manifold, Euclidean)
    if not isinstance(flow.base, Gaussian if flat else ManifoldUniform):
        return None
    return first, Chain(*rest)


def chosen_loss(flow: Flow) -> Loss:
    """Return the loss that suits a flow; a field whose likelihood has a closed form follows that.

    Example:
        >>> from cflow import recipes
        >>> [chosen_loss(build(2)) for build in (recipes.cnf, recipes.exact_cnf, recipes.maf)]
        ['matching', 'nll', 'nll']
        >>> chosen_loss(recipes.cnf(2, average=True))
        'mean-flow'
    """
    found = carrier(flow)
    if found is None:
        return "nll"
    if isinstance(found[0], Leap):
        return "mean-flow"
    return "nll" if isinstance(found[0].field, AnalyticField) else "matching"


def loss_of(
    flow: Flow, loss: Loss, *, coupling: Pairing | None = None, context_dropout: float = 0.0
) -> Callable[..., Tensor]:
    """Return the loss as the trainer calls it.

    Args:
        flow: What is trained.
        loss: Which loss.
        coupling: How noise is paired with data; by default by optimal transport, or independently
            where there is a context, which a plan over all points would tie to the noise.
        context_dropout: Share of conditions that training hides, for guidance.

    Raises:
        DomainError: The loss is not one of such a flow, or an option none of such a loss.
    """
    if loss == "nll":
        if coupling is not None or context_dropout:
            raise DomainError("train: coupling and context dropout belong to matching, not to nll")
        return nll
    found = carrier(flow)
    wanted = Leap if loss == "mean-flow" else ODE
    if found is None or not isinstance(found[0], wanted):
        what = "leaps (-a average=True)" if loss == "mean-flow" else "one ODE"
        raise DomainError(
            f"train: --loss {loss} needs a flow with {what} at its base end; leave --loss out"
        )
    if context_dropout and flow.context_shape is None:
        raise DomainError("train: context dropout hides contexts, but there is none")
    space = found[0].manifold
    path: Path = LinearPath()
    cost: Cost = SquaredEuclidean()
    if isinstance(space, Manifold) and not isinstance(space, Euclidean):
        path, cost = GeodesicPath(space), GeodesicCost(space)
    pairs: dict[str, Coupling] = {
        "ot": OTCoupling(cost=cost),
        "independent": IndependentCoupling(),
    }
    coupled = pairs[coupling or ("ot" if flow.context_shape is None else "independent")]
    hidden = ContextDropout(context_dropout, null_of(found[0])) if context_dropout else None

    def velocity_error(
        model: Flow, x: Tensor, context: Tensor | None = None, *, generator: Generator
    ) -> Tensor:
        found = carrier(model)  # of this model: the trainer validates a copy
        assert found is not None
        part, rest = found
        with torch.no_grad():  # what follows is fixed: shrunk data would be easy to match
            x1 = rest.pull(State(x), context, generator=generator).x
        error = (
            partial(mean_flow, part.flow_map)
            if isinstance(part, Leap)
            else partial(matching, part.field)
        )
        x0 = None
        if isinstance(path, GeodesicPath):
            x0 = model.base.sample((len(x1),), generator=generator)
        return error(path, coupled, x1, x0=x0, context=context, dropout=hidden, generator=generator)

    return velocity_error
