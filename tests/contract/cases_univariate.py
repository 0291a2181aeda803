"""Elementwise layers of every map of one number, and coupling layers of some."""

from case import TransportCase

from cflow.nets import MLP
from cflow.transport import (
    BernsteinMap,
    CouplingLayer,
    Elementwise,
    GaussianisationMap,
    LogisticMixtureMap,
    NeuralMap,
    RationalQuadraticMap,
    Transport,
    UnconstrainedMonotonicMap,
    UnivariateMap,
)


def elementwise(map: UnivariateMap, context: int = 0) -> Transport:
    net = MLP(context, 3 * map.parameters, hidden_features=(8,)) if context else None
    return Elementwise(map, (3,), conditioner=net)


def coupled(map: UnivariateMap, context: int = 0) -> Transport:
    net = MLP(1, 2 * map.parameters, context=context, hidden_features=(8,))
    return CouplingLayer([True, False, True], net, map)


SPLINE = RationalQuadraticMap(bins=4)
CASES = [
    TransportCase("spline", lambda: elementwise(SPLINE), compiled=False),
    TransportCase(
        "spline with context", lambda: elementwise(SPLINE, 2), context=(2,), compiled=False
    ),
    TransportCase("spline coupling", lambda: coupled(SPLINE, 2), context=(2,)),
    TransportCase(
        "circular and linear splines",
        lambda: elementwise(
            RationalQuadraticMap(
                bins=3,
                bound=((-4.0, 4.0), (-6.0, 5.0), (-3.0, 3.0)),
                tails=("circular", "linear", "linear"),
            )
        ),
        compiled=False,
    ),
    TransportCase("bernstein", lambda: elementwise(BernsteinMap(6)), compiled=False),
    TransportCase("logistic mixture", lambda: elementwise(LogisticMixtureMap(3)), compiled=False),
    TransportCase("neural map", lambda: elementwise(NeuralMap(units=3)), compiled=False),
    TransportCase(
        "neural coupling", lambda: coupled(NeuralMap(units=3), 2), context=(2,), compiled=False
    ),
    TransportCase(
        "monotonic map", lambda: elementwise(UnconstrainedMonotonicMap(units=3)), compiled=False
    ),
    TransportCase("gaussianisation", lambda: elementwise(GaussianisationMap(3)), compiled=False),
]
