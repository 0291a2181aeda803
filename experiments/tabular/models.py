"""The models by name: recipes of ours, flows of zuko, and how each is asked for a density."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from cflow import Flow, nll, recipes
from cflow.field import CostSum, Exact, JacobianNorm, KineticEnergy
from cflow.ode import RK4, Dopri5
from cflow.transport import ExactLogDet, ResidualLayer, with_logdet

TIGHT = 1e-6  # tolerance of the test likelihood of continuous flows
HIDDEN = (128, 128)


@dataclass(frozen=True)
class Build:
    """Name a recipe, or a flow of zuko's, and its options."""

    function: str
    options: dict[str, Any] = field(default_factory=dict)
    library: Literal["cflow", "zuko"] = "cflow"


# Continuous flows have two hidden layers each; ffjord and the peer train on Hutchinson's estimate.
# Fixed steps and loose tolerances serve training only: the test likelihood is solved anew, tightly.
# MAF and NSF have the same transforms, conditioners, orders, bins and box as zuko's.
MODELS: dict[str, Build] = {
    "cnf": Build("cnf", dict(hidden_features=HIDDEN, frequencies=3, solver=RK4(4))),
    "ffjord": Build(
        "ffjord",
        dict(
            hidden_features=HIDDEN,
            layer="concat",
            activation="tanh",
            batch_norm=False,
            solver=RK4(4),
        ),
    ),
    "exact_cnf": Build("exact_cnf", dict(hidden_features=HIDDEN, frequencies=2, solver=RK4(4))),
    "zuko_cnf": Build(
        "CNF", dict(hidden_features=HIDDEN, atol=1e-3, rtol=1e-3, exact=False), "zuko"
    ),
    "zuko_cnf_loose": Build(
        "CNF", dict(hidden_features=HIDDEN, atol=1e-2, rtol=1e-2, exact=False), "zuko"
    ),
    "realnvp": Build(
        "realnvp", dict(transforms=6, hidden_features=(64, 64), bound=2.0, dropout=0.2)
    ),
    "nice": Build("nice", dict(transforms=6, hidden_features=HIDDEN)),
    "maf": Build("maf", dict(transforms=5, hidden_features=HIDDEN)),
    "zuko_maf": Build("MAF", dict(transforms=5, hidden_features=HIDDEN), "zuko"),
    "iaf": Build("iaf", dict(transforms=5, hidden_features=HIDDEN)),
    "nsf": Build("nsf", dict(transforms=5, hidden_features=HIDDEN, bins=8)),
    "zuko_nsf": Build("NSF", dict(transforms=5, hidden_features=HIDDEN, bins=8), "zuko"),
    "nsf_dropout": Build(
        "nsf", dict(transforms=5, hidden_features=HIDDEN, bins=8, dropout=0.3, residual=True)
    ),
    "nsf_coupling": Build(
        "nsf", dict(kind="coupling", transforms=6, hidden_features=HIDDEN, normalize=True)
    ),
    "naf": Build("naf", dict(transforms=3, hidden_features=HIDDEN)),
    "bernstein": Build("bernstein", dict(transforms=3, hidden_features=HIDDEN)),
    "gaussianization": Build("gaussianization", dict(transforms=6)),
    "residual": Build("residual", dict(transforms=6, hidden_features=(64, 64))),
    "invertible_densenet": Build("invertible_densenet", dict(transforms=6)),
}


def build(name: str, train: Tensor, cost: float) -> nn.Module:
    """Build a model; continuous flows of ours are held smooth, the less the more data there is.

    Finlay et al. (2020), arXiv 2002.02798: kinetic energy, and the Jacobian's norm where it is had
    for nothing, beside Hutchinson's estimate.
    """
    features, weight, made = train.shape[1], cost / len(train), MODELS[name]
    if made.library == "zuko":
        import zuko

        return getattr(zuko.flows, made.function)(features, **made.options)
    costs: dict[str, dict[str, Any]] = {
        "ffjord": dict(cost=CostSum((KineticEnergy(weight), JacobianNorm(weight)))),
        "exact_cnf": dict(cost=KineticEnergy(5 * weight)),  # alone, it has to do for both
    }
    function = getattr(recipes, made.function)
    return function(features, **made.options, **costs.get(name, {}))


def exact(flow: Flow, tolerance: float) -> Flow:
    """Return the flow with estimated traces and log-determinants exact, and ODEs solved tightly."""
    tight = flow.with_solver(Dopri5(tolerance, tolerance), divergence=Exact())
    transport = tight.transport
    if any(isinstance(part, ResidualLayer) for part in transport.modules()):
        transport = with_logdet(transport, ExactLogDet())
    result = Flow(flow.base, transport, context_shape=flow.context_shape)
    result.train(flow.training)
    return result


def negative_log_prob(model: nn.Module, x: Tensor, *, generator: Generator) -> Tensor:
    """Return the loss of one batch, whichever library the model is from.

    Validation is exact, so that the weights that are kept owe nothing to the luck of an estimate;
    nor to the error of four fixed steps.
    """
    if isinstance(model, Flow):
        return nll(model if model.training else exact(model, 1e-4), x, generator=generator)
    part = zuko_ode(model)
    if part is None:
        return -model().log_prob(x)
    estimated = not part.exact
    part.exact = part.exact or not model.training
    try:
        return -model().log_prob(x)
    finally:
        part.exact = not estimated


def zuko_ode(model: nn.Module) -> Any:
    """Return the part of a zuko CNF that holds network, tolerances and trace, or None."""
    import zuko

    kind = zuko.flows.FFJTransform
    return next((part for part in model.modules() if isinstance(part, kind)), None)


@torch.no_grad()
def log_prob(model: nn.Module, x: Tensor) -> Tensor:
    """Return the log-likelihood of each row in float64: exact divergence, tight tolerances."""
    model = model.double().eval()
    if isinstance(model, Flow):
        flow = exact(model, TIGHT)
        return torch.cat([flow.log_prob(part) for part in x.split(256)])
    part = zuko_ode(model)
    if part is not None:
        part.atol, part.rtol, part.exact = TIGHT, TIGHT, True
    return torch.cat([model().log_prob(part) for part in x.split(256)])


@torch.no_grad()
def count_evaluations(model: nn.Module, x: Tensor) -> float:
    """Return the evaluations that one solve of the trained flow takes, as it was trained."""
    if isinstance(model, Flow):
        state, _ = model.pull_state(x, generator=Generator().manual_seed(0))
        return float(torch.as_tensor(state.nfe, dtype=torch.float64).mean())
    part = zuko_ode(model)
    if part is None:
        return 0.0
    calls = []
    handle = part.ode.register_forward_hook(lambda *_: calls.append(1))
    model().log_prob(x)
    handle.remove()
    return float(len(calls))
