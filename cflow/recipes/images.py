"""A flow on grey levels: any flow on vectors, with the way to integer images as part of it.

vector --standardise--> logits --reshape--> image --sigmoid--> [0, 1] --floor--> 0..levels-1
"""

import math
from collections.abc import Sequence

from cflow.errors import ShapeError
from cflow.flow import Flow
from cflow.recipes.recipe import recipe
from cflow.transport import Chain, Dequantize, Inverse, Logit, Reshape, Standardize

__all__ = ["images"]


@recipe
def images(flow: Flow, shape: Sequence[int], *, levels: int = 256, alpha: float = 0.05) -> Flow:
    """Extend a flow on vectors to integer images, densities in the images' own units.

    The first part of the resulting chain is the transport of `flow`, the rest is preprocessing; its
    likelihood is the uniform dequantisation bound. Call `initialize` with training images first.

    Args:
        flow: A flow on vectors with as many features as the image has entries.
        shape: Shape of one image, such as (28, 28).
        levels: Number of grey levels; images hold integers 0 .. levels-1.
        alpha: Margin of the logit.

    Raises:
        ShapeError: The flow has another number of features.

    Example:
        >>> from cflow.recipes import realnvp
        >>> images(realnvp(16, transforms=2), (4, 4), levels=17).sample(3).shape
        torch.Size([3, 4, 4])
    """
    features = math.prod(shape)
    if flow.event_shape != (features,):
        raise ShapeError(
            f"images: shape {tuple(shape)} has {features} entries, so the flow must have event "
            f"shape ({features},), got {flow.event_shape}"
        )
    preprocessing = (
        Standardize((features,)),
        Reshape((features,), shape),
        Inverse(Logit(alpha)),
        Dequantize(levels),
    )
    chain = Chain(flow.transport, *preprocessing)
    return Flow(flow.base, chain, context_shape=flow.context_shape)
