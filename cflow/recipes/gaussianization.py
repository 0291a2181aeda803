"""Gaussianization flows: marginal maps of mixtures, and rotations between them.

Each layer moves every feature by the quantile of a normal law at a mixture's distribution function,
with parameters of its own and no conditioner, then turns the space by Householder reflections.
Source: Meng et al. (2020), Gaussianization flows, arXiv 2003.01941.
"""

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import MLP
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    Chain,
    Elementwise,
    GaussianisationMap,
    HouseholderLinear,
    Transport,
)

__all__ = ["gaussianization"]


@recipe
def gaussianization(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    units: int = 16,
    hidden_features: tuple[int, ...] = (64, 64),
    fast: Fast = "density",
) -> Flow:
    """Build a Gaussianization flow on vectors; it starts as rotations.

    The other direction has no closed form: each number is found by a bracketed Newton iteration.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector, which moves the mixtures' parameters through a
            perceptron; 0 for an unconditional flow.
        transforms: Number of layers.
        units: Components of each mixture.
        hidden_features: Widths of the perceptrons, where there is a context.
        fast: Which direction is in closed form.

    Raises:
        DomainError: No feature or no transform.

    Example:
        >>> gaussianization(features=3, transforms=2, units=4).sample(2).shape
        torch.Size([2, 3])
    """
    if features < 1 or transforms < 1:
        raise DomainError(
            f"gaussianization: needs 1 feature and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
        )
    univariate = GaussianisationMap(units)
    parts: list[Transport] = []
    for k in range(transforms):
        conditioner = None
        if context:
            outputs = features * univariate.parameters
            conditioner = MLP(context, outputs, hidden_features=hidden_features, zero_last=True)
        margins = Elementwise(univariate, (features,), conditioner=conditioner)
        parts.append(oriented(margins, fast))
        if features > 1 and k + 1 < transforms:
            parts.append(HouseholderLinear(features))
    context_shape = (context,) if context else None
    return Flow(Gaussian(features), Chain(*parts), context_shape=context_shape)
