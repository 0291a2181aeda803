"""Residual flows: the identity plus a contraction, again and again, zero solver steps.

Source: Chen et al. (2019), Residual flows for invertible generative modeling, arXiv 1906.02735.
"""

from collections.abc import Callable, Sequence

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import Contraction, LipschitzMLP
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    ActNorm,
    Chain,
    ExactLogDet,
    FixedPoint,
    Geometric,
    LogDet,
    ResidualLayer,
    RussianRoulette,
    Transport,
)

__all__ = ["residual", "residual_chain"]

SMALL = 8
"""Features up to which the whole Jacobian is computed where nothing else is asked for."""


@recipe
def residual(
    features: int,
    context: int = 0,
    *,
    transforms: int = 16,
    hidden_features: Sequence[int] = (128, 128, 128),
    coefficient: float = 0.9,
    order: float = 2.0,
    learn_order: bool = False,
    logdet: LogDet | None = None,
    inverse: FixedPoint | None = None,
    fast: Fast = "density",
) -> Flow:
    """Build a flow on vectors of contractive residual layers, with ActNorm after each.

    Call `flow.initialize(batch)` before training to set the ActNorms. The paper's flows for points
    in the plane are `residual(2, transforms=100, hidden_features=(128,) * 4, coefficient=0.9,
    logdet=RussianRoulette(Geometric(0.5)))`, trained for 50,000 steps of 500 points with Adam at
    1e-3 and a weight decay of 1e-5; it trains images with `RussianRoulette(Poisson(2.0),
    exact_terms=2)` and evaluates them with 20 exact terms.

    Args:
        features: Coordinates of a point.
        context: Length of the context vector; 0 for an unconditional flow. It enters each network
            by free weights: only the dependence on the point is bounded.
        transforms: Number of residual layers.
        hidden_features: Widths of each network's hidden layers.
        coefficient: Lipschitz constant of each network, in (0, 1).
        order: p of the norm in which the networks contract.
        learn_order: Let each network train its own p.
        logdet: How log-determinants are computed; by default exactly for up to 8 features, beyond
            by a geometric roulette after 4 exact terms. Change it later with
            `transport.with_logdet`.
        inverse: How the slow direction is solved.
        fast: What takes one pass a layer; the other takes a fixed-point iteration.

    Raises:
        DomainError: No features or transforms, or a coefficient or order out of range.

    References:
        Chen et al. (2019), arXiv 1906.02735, appendix E.

    Example:
        >>> flow = residual(features=2, transforms=2, hidden_features=(16,))
        >>> flow.sample(3).shape, flow.likelihood
        (torch.Size([3, 2]), 'exact')
    """

    def net() -> Contraction:
        return LipschitzMLP(
            features,
            context=context,
            hidden_features=hidden_features,
            coefficient=coefficient,
            order=order,
            learn_order=learn_order,
        )

    chain = residual_chain("residual", net, features, transforms, logdet, inverse, fast)
    return Flow(Gaussian(features), chain, context_shape=(context,) if context else None)


def residual_chain(
    where: str,
    net: Callable[[], Contraction],
    features: int,
    transforms: int,
    logdet: LogDet | None,
    inverse: FixedPoint | None,
    fast: Fast,
) -> Chain:
    """Return residual layers made of networks from `net`, with ActNorm after each."""
    if features < 1 or transforms < 1:
        raise DomainError(
            f"{where}: needs 1 feature and 1 transform at least, got features={features}, "
            f"transforms={transforms}"
        )
    if logdet is None:
        roulette = RussianRoulette(Geometric(0.5), exact_terms=4)
        logdet = ExactLogDet() if features <= SMALL else roulette
    parts: list[Transport] = []
    for _ in range(transforms):
        layer = ResidualLayer(net(), logdet=logdet, inverse=inverse)
        parts += [oriented(layer, fast), ActNorm((features,))]
    return Chain(*parts)
