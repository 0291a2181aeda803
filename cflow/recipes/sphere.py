"""Flows on unit vectors made of layers: exponential maps, or heights and longitudes.

Both are joined by Moebius transformations, which move mass across the whole sphere at once.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, sections 2.2
and 2.3.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from cflow.base import ManifoldUniform
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.manifold import Sphere
from cflow.nets import MLP
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    Chain,
    CircularSplineMap,
    CylindricalLayer,
    ExponentialMapSphere,
    MoebiusSphere,
    Permutation,
    RationalQuadraticMap,
    Transport,
)

__all__ = ["sphere_flow"]

Kind: TypeAlias = Literal["exponential", "cylindrical"]


@recipe
def sphere_flow(
    features: int = 3,
    context: int = 0,
    *,
    kind: Kind | None = None,
    transforms: int = 8,
    units: int = 16,
    hidden_features: Sequence[int] = (64, 64),
    bins: int = 16,
    fast: Fast = "density",
) -> Flow:
    """Build a flow on unit vectors; it starts as the uniform law, or near it.

    Densities are per area of the sphere S^n, in nats.

    Args:
        features: Length n + 1 of a vector, at least 2.
        context: Length of the context vector; 0 for an unconditional flow.
        kind: Which layers: "cylindrical" ones are splines of height and longitude on S^2, with a
            closed form in either direction, whose axis goes round from layer to layer; they fit
            sharp densities far better. "exponential" ones work in any dimension and have smooth
            densities. None for cylindrical ones where there are 3 features.
        transforms: Number of layers, each with a Moebius transformation.
        units: Centres of each exponential map.
        hidden_features: Widths of the hidden layers of each conditioner.
        bins: Pieces of each spline of the kind "cylindrical".
        fast: Which direction is the closed form.

    Raises:
        DomainError: Too few features, or no transform, or an unknown kind.

    Example:
        >>> import torch
        >>> flow = sphere_flow(3, transforms=2)
        >>> flow.log_prob(torch.tensor([[0.0, 0.6, 0.8]]))  # -log(4 pi) before training
        tensor([-2.5310], grad_fn=<AddBackward0>)
    """
    kind = kind or ("cylindrical" if features == 3 else "exponential")
    if kind not in Kind.__args__:
        raise DomainError(f"sphere_flow: kind must be among {Kind.__args__}, got {kind!r}")
    if features < 2 or transforms < 1 or (kind == "cylindrical" and features != 3):
        raise DomainError(
            "sphere_flow: needs 2 features at least, exactly 3 for the kind 'cylindrical', and 1 "
            f"transform, got features={features}, transforms={transforms}"
        )

    def steer(outputs: int) -> MLP | None:
        if not context:
            return None
        return MLP(context, outputs, hidden_features=hidden_features, zero_last=True)

    parts: list[Transport] = []
    for k in range(transforms):
        if kind == "exponential":
            given = steer(units * (features + 2))
            layer: Transport = ExponentialMapSphere(features, units=units, conditioner=given)
        else:
            height = RationalQuadraticMap(bins=bins, bound=1.0, tails="none")
            longitude = CircularSplineMap(bins=bins)
            net = MLP(
                1,
                longitude.parameters,
                context=context,
                hidden_features=hidden_features,
                zero_last=True,
            )
            layer = CylindricalLayer(
                net,
                height=height,
                longitude=longitude,
                height_conditioner=steer(height.parameters),
            )
        parts += [oriented(layer, fast), MoebiusSphere(features, conditioner=steer(features))]
        if kind == "cylindrical" and k + 1 < transforms:
            parts.append(Permutation([1, 2, 0]))
    base = ManifoldUniform(Sphere(), features)
    return Flow(base, Chain(*parts), context_shape=(context,) if context else None)
