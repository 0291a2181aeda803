"""Cases of linear layers and of couplings on vectors."""

from case import TransportCase

from cflow.nets import MLP
from cflow.transport import (
    AdditiveMap,
    AffineMap,
    Chain,
    CouplingLayer,
    HouseholderLinear,
    Inverse,
    LULinear,
    QRLinear,
    Rotation,
    SVDLinear,
    Transport,
    masks,
)


def frozen(context: int = 0) -> CouplingLayer:
    """Moves the frozen half as well, by constants."""
    net = MLP(3, 4, context=context, hidden_features=(8,))
    return CouplingLayer(masks.halves(5), net, AffineMap(2.0), frozen_univariate=AffineMap())


def mixed() -> Transport:
    return Chain(LULinear(4, permutation=[2, 0, 3, 1]), Inverse(QRLinear(4)), SVDLinear(4))


CASES = [
    TransportCase(
        "coupling, additive, between matrices",
        lambda: Chain(
            LULinear(4),
            CouplingLayer(masks.alternating(4), MLP(2, 2, hidden_features=(8,)), AdditiveMap()),
        ),
        event=(4,),
        compiled=False,
    ),
    TransportCase("coupling, frozen map", frozen, event=(5,), compiled=False),
    TransportCase(
        "coupling, frozen map, context",
        lambda: frozen(2),
        event=(5,),
        context=(2,),
        compiled=False,
    ),
    TransportCase(
        "lu linear",
        lambda: LULinear(5, start="orthogonal"),
        event=(5,),
        compiled=False,
        round_trip=1e-9,
    ),
    TransportCase("qr linear", lambda: QRLinear(3, reflections=3), compiled=False, round_trip=1e-9),
    TransportCase("svd linear", lambda: SVDLinear(3), compiled=False),
    TransportCase("householder linear", lambda: HouseholderLinear(4), event=(4,), compiled=False),
    TransportCase("rotation", lambda: Rotation(4), event=(4,), compiled=False),
    TransportCase("matrices", mixed, event=(4,), round_trip=1e-9),
]
