"""Invertible DenseNets: residual flows whose contractions are densely connected.

Source: Perugachi-Diaz et al. (2021), Invertible DenseNets with concatenated LipSwish, arXiv
2102.02694.
"""

from cflow.base import Gaussian
from cflow.flow import Flow
from cflow.nets import Contraction, LipschitzDenseNet
from cflow.recipes.orientation import Fast
from cflow.recipes.recipe import recipe
from cflow.recipes.residual import residual_chain
from cflow.transport import FixedPoint, LogDet

__all__ = ["invertible_densenet"]


@recipe
def invertible_densenet(
    features: int,
    context: int = 0,
    *,
    transforms: int = 10,
    depth: int = 3,
    growth: int = 16,
    concatenated: bool = True,
    coefficient: float = 0.9,
    logdet: LogDet | None = None,
    inverse: FixedPoint | None = None,
    fast: Fast = "density",
) -> Flow:
    """Build a flow on vectors of densely connected residual layers, with ActNorm after each.

    Call `flow.initialize(batch)` before training to set the ActNorms.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow.
        transforms: Number of residual layers.
        depth: Dense layers in each network.
        growth: Features that each dense layer adds.
        concatenated: Activate by the concatenated LipSwish instead of LipSwish.
        coefficient: Lipschitz constant of each network, in (0, 1).
        logdet: How log-determinants are computed; as for `residual`.
        inverse: How the slow direction is solved.
        fast: What takes one pass a layer; the other takes a fixed-point iteration.

    Raises:
        DomainError: No features or transforms, an odd growth for pairs, or a coefficient out of
            range.

    References:
        Perugachi-Diaz et al. (2021), arXiv 2102.02694, section 4.1.

    Example:
        >>> flow = invertible_densenet(features=2, transforms=2, growth=8)
        >>> flow.sample(3).shape
        torch.Size([3, 2])
    """

    def net() -> Contraction:
        return LipschitzDenseNet(
            features,
            context=context,
            depth=depth,
            growth=growth,
            concatenated=concatenated,
            coefficient=coefficient,
        )

    chain = residual_chain("invertible_densenet", net, features, transforms, logdet, inverse, fast)
    return Flow(Gaussian(features), chain, context_shape=(context,) if context else None)
