"""The registry: one line for each transport, and the suite asks of all of them the same things.

A new class joins by one line here.
"""

import torch
from case import TransportCase
from cases_autoregressive import CASES as AUTOREGRESSIVE_CASES
from cases_images import CASES as IMAGE_CASES
from cases_linear import CASES as LINEAR_CASES
from cases_manifold_layers import CASES as MANIFOLD_CASES
from cases_residual import CASES as RESIDUAL_CASES
from cases_transformer import CASES as TRANSFORMER_CASES
from cases_univariate import CASES as UNIVARIATE_CASES
from torch import Tensor, nn

from cflow import recipes
from cflow.field import (
    CostSum,
    Exact,
    Field,
    FourierTime,
    GatedField,
    JacobianNorm,
    KineticEnergy,
    MLPField,
    NetworkFlowMap,
    SpanTime,
    TwoLayerField,
)
from cflow.manifold import Euclidean
from cflow.nets import MLP
from cflow.ode import RK4, Dopri5, Euler, Heun, Midpoint
from cflow.transport import (
    ODE,
    ActNorm,
    Affine,
    Chain,
    CouplingLayer,
    Inverse,
    Leap,
    Logit,
    MovingBatchNorm,
    Permutation,
    Reshape,
    Standardize,
    Transport,
)


class ImageField(Field):
    """Works on grey images (height, width) as they are, by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.tanh(self.net(x[..., None, :, :])[..., 0, :, :]) * (1 + t[..., None, None])


def coupling(features: int = 3, context: int = 0) -> CouplingLayer:
    moved = [k % 2 == 1 for k in range(features)]
    moves = sum(moved)
    return CouplingLayer(moved, MLP(features - moves, 2 * moves, context=context))


def standardize() -> Standardize:
    layer = Standardize((3,))
    layer.fit(3 + 2 * torch.randn(50, 3))
    return layer


def moving() -> Transport:
    """In evaluation mode: in training mode every pull moves the statistics on."""
    layer = MovingBatchNorm((3,))
    layer.fit(3 + 2 * torch.randn(50, 3))
    return layer.eval()


def two_layer(context: int = 0) -> TwoLayerField:
    return TwoLayerField(3, context, hidden_features=(12, 16), frequencies=2)


def ffjord() -> Transport:
    flow = recipes.ffjord(
        3, 2, blocks=2, hidden_features=(12,), solver=RK4(4), divergence=Exact(), steer=0.1
    )
    return flow.transport.eval()


TIGHT = Dopri5(rtol=1e-9, atol=1e-9)


def small(context: int = 0, features: int = 3) -> MLPField:
    return MLPField(features, context, hidden_features=(16, 16), frequencies=2)


def mixed(features: int = 3, context: int = 0) -> Chain:
    return Chain(
        coupling(features, context),
        ActNorm((features,)),
        ODE(small(context, features), Dopri5(rtol=1e-8, atol=1e-8)),
        Inverse(coupling(features, context)),
        Inverse(Logit(0.0)),
    )


def leap(leaps: int = 1, context: int = 0) -> Leap:
    time = SpanTime(FourierTime(2), FourierTime(2))
    net = MLPField(3, context, hidden_features=(16, 16), time=time)
    return Leap(NetworkFlowMap(net), Euler(leaps))


TRANSPORTS = [
    TransportCase("coupling", coupling),
    TransportCase("coupling, context", lambda: coupling(3, 2), context=(2,)),
    TransportCase("actnorm", lambda: ActNorm((3,))),
    TransportCase("actnorm, image", lambda: ActNorm((2, 3)), event=(2, 3)),
    TransportCase("standardize", standardize),
    TransportCase("moving batch norm", moving),
    TransportCase("permutation", lambda: Permutation([2, 0, 1])),
    TransportCase("reshape", lambda: Reshape((4,), (2, 2)), event=(4,)),
    TransportCase("affine", lambda: Affine(torch.tensor([2.0, -0.5, 1.0]), 0.3)),
    TransportCase("logit", lambda: Logit(0.05), points=torch.rand),
    TransportCase("sigmoid", lambda: Inverse(Logit(0.0)), event=(2, 2)),
    TransportCase("inverse coupling", lambda: Inverse(coupling())),
    TransportCase("empty chain", Chain),
    TransportCase("leap", leap, traceable=False),
    TransportCase("leaps, context", lambda: leap(3, 2), context=(2,), traceable=False),
    TransportCase("ode, euler", lambda: ODE(small(), Euler(60)), round_trip=5e-2, jacobian=2e-3),
    TransportCase(
        "ode, midpoint", lambda: ODE(small(), Midpoint(30)), round_trip=5e-5, jacobian=5e-5
    ),
    TransportCase("ode, heun", lambda: ODE(small(), Heun(30)), round_trip=5e-5, jacobian=5e-5),
    TransportCase("ode, rk4", lambda: ODE(small(), RK4(8)), round_trip=1e-6, jacobian=1e-6),
    TransportCase(
        "ode, chunked",
        lambda: ODE(small(), RK4(8), divergence=Exact(chunk=2)),
        round_trip=1e-6,
        jacobian=1e-6,
    ),
    TransportCase(
        "ode, cost",
        lambda: ODE(small(), RK4(8), cost=KineticEnergy()),
        round_trip=1e-6,
        jacobian=1e-6,
    ),
    TransportCase(
        "ode, context", lambda: ODE(small(2), RK4(8)), context=(2,), round_trip=1e-6, jacobian=1e-6
    ),
    TransportCase(
        "ode, image",
        lambda: ODE(ImageField(), RK4(8), manifold=Euclidean(2)),
        event=(2, 2),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    TransportCase(
        "ode, jacobian norm",
        lambda: ODE(small(), RK4(8), cost=CostSum((KineticEnergy(), JacobianNorm(0.1)))),
        round_trip=1e-6,
        jacobian=1e-6,
    ),
    TransportCase(
        "ode, analytic, context",
        lambda: ODE(two_layer(2), RK4(8)),
        context=(2,),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    TransportCase(
        "ode, two layers, exact",
        lambda: ODE(two_layer(), RK4(8), divergence=Exact()),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    TransportCase(
        "ode, gated, context",
        lambda: ODE(GatedField(3, 2, hidden_features=(12, 12)), RK4(4)),
        context=(2,),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    TransportCase(
        "ode, dopri5", lambda: ODE(small(), TIGHT), round_trip=1e-8, jacobian=1e-9, traceable=False
    ),
    TransportCase(
        "ode, dopri5, context",
        lambda: ODE(small(2), TIGHT),
        context=(2,),
        round_trip=1e-8,
        jacobian=1e-9,
        traceable=False,
    ),
    TransportCase("mixed chain", mixed, round_trip=1e-6, jacobian=1e-6, traceable=False),
    TransportCase(
        "mixed chain, context",
        lambda: mixed(3, 2),
        context=(2,),
        round_trip=1e-6,
        jacobian=1e-6,
        traceable=False,
    ),
    TransportCase(
        "recipe realnvp",
        lambda: recipes.realnvp(3, 2, transforms=3, hidden_features=(8,)).transport,
        context=(2,),
    ),
    TransportCase(
        "recipe cnf",
        lambda: recipes.cnf(3, 2, hidden_features=(16,), solver=RK4(16)).transport,
        context=(2,),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    TransportCase("recipe ffjord", ffjord, context=(2,), round_trip=1e-4, jacobian=1e-4),
    TransportCase(
        "recipe exact_cnf",
        lambda: (
            recipes.exact_cnf(
                3, 2, hidden_features=(12, 12), frequencies=2, blocks=2, solver=RK4(12)
            ).transport
        ),
        context=(2,),
        round_trip=1e-5,
        jacobian=1e-5,
    ),
    *AUTOREGRESSIVE_CASES,
    *RESIDUAL_CASES,
    *TRANSFORMER_CASES,
    *IMAGE_CASES,
    *LINEAR_CASES,
    *MANIFOLD_CASES,
    *UNIVARIATE_CASES,
]
