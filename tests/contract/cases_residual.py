"""Residual layers and the recipes made of them.

They are not `traceable` as a whole: one direction iterates until every sample has arrived. The
other compiles, vmaps and exports; `tests/transport/test_residual.py` holds that.
"""

import math
from functools import partial

from case import TransportCase

from cflow import recipes
from cflow.nets import Contraction, LipschitzConvNet, LipschitzDenseNet, LipschitzMLP
from cflow.transport import FixedPoint, Inverse, ResidualLayer, Transport

TIGHT = FixedPoint(tolerance=1e-13)

Case = partial(TransportCase, traceable=False, compiled=False)


def mlp(context: int = 0, *, order: float = 2.0, learn_order: bool = False) -> LipschitzMLP:
    return LipschitzMLP(
        3,
        context=context,
        hidden_features=(8, 8),
        coefficient=0.9,
        order=order,
        learn_order=learn_order,
    )


def layer(net: Contraction, event_dim: int = 1) -> ResidualLayer:
    return ResidualLayer(net, inverse=TIGHT, event_dim=event_dim)


def recipe() -> Transport:
    flow = recipes.residual(
        3, 2, transforms=2, hidden_features=(8,), coefficient=0.7, inverse=TIGHT, fast="sample"
    )
    return flow.transport


def dense_recipe() -> Transport:
    flow = recipes.invertible_densenet(
        3, 2, transforms=2, depth=2, growth=4, coefficient=0.7, inverse=TIGHT
    )
    return flow.transport


CASES = [
    Case("residual", lambda: layer(mlp())),
    Case("residual, context", lambda: layer(mlp(2)), context=(2,)),
    Case("inverse residual", lambda: Inverse(layer(mlp(2))), context=(2,)),
    Case("residual, maximum norm", lambda: layer(mlp(order=math.inf))),
    Case("residual, learned order", lambda: layer(mlp(order=3.0, learn_order=True))),
    Case(
        "residual, image",
        lambda: layer(LipschitzConvNet(2, context=2, hidden_channels=(4, 4)), 3),
        event=(2, 4, 4),
        context=(2,),
    ),
    Case(
        "residual, dense",
        lambda: layer(LipschitzDenseNet(3, context=2, depth=2, growth=4, coefficient=0.9)),
        context=(2,),
    ),
    Case(
        "residual, dense, lipswish",
        lambda: layer(LipschitzDenseNet(3, depth=2, growth=3, concatenated=False, coefficient=0.9)),
    ),
    Case("recipe residual", recipe, context=(2,)),
    Case("recipe invertible_densenet", dense_recipe, context=(2,)),
]
