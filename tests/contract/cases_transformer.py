"""Transformer layers and the recipe made of them; labels, which are integers, have own tests."""

from case import TransportCase

from cflow import recipes
from cflow.nets import CausalTransformer
from cflow.transport import (
    AdditiveMap,
    AffineMap,
    Inverse,
    Patches,
    TransformerLayer,
    UnivariateMap,
)


def transformer(
    context: int = 0, *, reverse: bool = False, univariate: UnivariateMap | None = None
) -> TransformerLayer:
    univariate = AffineMap() if univariate is None else univariate
    net = CausalTransformer(
        3, 2, 2 * univariate.parameters, width=8, layers=2, heads=2, expansion=2, context=context
    )
    return TransformerLayer(net, univariate, reverse=reverse)


CASES = [
    TransportCase(
        "transformer, context, reversed",
        lambda: transformer(2, reverse=True),
        event=(3, 2),
        context=(2,),
    ),
    TransportCase("transformer", transformer, event=(3, 2), compiled=False),
    TransportCase(
        "inverse transformer",
        lambda: Inverse(transformer(2)),
        event=(3, 2),
        context=(2,),
        compiled=False,
    ),
    TransportCase(
        "transformer, additive",
        lambda: transformer(univariate=AdditiveMap()),
        event=(3, 2),
        compiled=False,
    ),
    TransportCase("patches", lambda: Patches((2, 4, 4), 2), event=(4, 8), compiled=False),
    TransportCase(
        "recipe tarflow",
        lambda: (
            recipes.tarflow(
                (4, 4), context=2, patch=2, width=8, blocks=2, layers=1, heads=2, learned_base=True
            ).transport
        ),
        event=(4, 4),
        context=(2,),
        compiled=False,
    ),
]
