"""Layers on tori and spheres; mixtures with linear features; a layer and an ODE in one chain."""

import math

import torch
from case import Shape, TransportCase
from torch import Tensor

from cflow.field import FunctionField
from cflow.manifold import Sphere, Torus
from cflow.nets import MLP, Embedded, MaskedMLP, PeriodicFeatures, adjacency_of_order
from cflow.ode import RK4
from cflow.transport import (
    ODE,
    AutoregressiveLayer,
    Chain,
    CircularShiftMap,
    CircularSplineMap,
    CouplingLayer,
    CylindricalLayer,
    Elementwise,
    ExponentialMapSphere,
    FeaturewiseMap,
    Inverse,
    MoebiusMap,
    MoebiusSphere,
    RationalQuadraticMap,
    Transport,
    UnivariateMap,
)

SPLINE = CircularSplineMap(bins=3)


def angles(*shape: int) -> Tensor:
    return 2 * math.pi * torch.rand(shape)


def units(*shape: int) -> Tensor:
    return Sphere().projx(torch.randn(shape))


def circles(map: UnivariateMap, context: int = 0, event: Shape = (3,)) -> Transport:
    size = math.prod(event) * map.parameters
    net = MLP(context, size, hidden_features=(8,)) if context else None
    return Elementwise(map, event, conditioner=net)


def coupled(map: UnivariateMap, context: int = 0) -> Transport:
    seen = PeriodicFeatures(1, frequencies=2)
    net = MLP(seen.outputs, 2 * map.parameters, context=context, hidden_features=(8,))
    return CouplingLayer([True, False, True], Embedded(seen, net), map)


def ordered(
    map: UnivariateMap, flags: tuple[bool, ...] = (True, True, True), context: int = 0
) -> Transport:
    seen, links = PeriodicFeatures(flags, frequencies=2), adjacency_of_order([1, 2, 0])
    net = MaskedMLP(seen.spread(links), map.parameters, context=context, hidden_features=(12,))
    return AutoregressiveLayer(Embedded(seen, net), map, adjacency=links)


def exponential(features: int, context: int = 0) -> Transport:
    net = MLP(context, 3 * (features + 2), hidden_features=(8,)) if context else None
    return ExponentialMapSphere(features, units=3, conditioner=net)


def moebius(features: int, context: int = 0) -> Transport:
    net = MLP(context, features, hidden_features=(8,)) if context else None
    return MoebiusSphere(features, conditioner=net)


def cylindrical(context: int = 0) -> Transport:
    net = MLP(1, SPLINE.parameters, context=context, hidden_features=(8,))
    return CylindricalLayer(
        net,
        height=RationalQuadraticMap(bins=3, bound=1.0, tails="none"),
        longitude=SPLINE,
        height_conditioner=MLP(context, 10, hidden_features=(8,)) if context else None,
    )


def swirl() -> FunctionField:
    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        turned = torch.stack([x[..., 1], x[..., 2], x[..., 0]], -1)
        return 0.5 * (2 * turned - t[..., None]).sin()

    return FunctionField(velocity)


MIXED = FeaturewiseMap((SPLINE, RationalQuadraticMap(bins=3), SPLINE))
TORUS = dict(points=angles, manifold=Torus())
SPHERE = dict(points=units, manifold=Sphere())

CASES = [
    TransportCase(
        "circular spline, context",
        lambda: circles(SPLINE, 2),
        context=(2,),
        compiled=False,
        **TORUS,
    ),
    TransportCase(
        "Moebius map of atoms",
        lambda: circles(MoebiusMap(3), 0, (2, 2)),
        event=(2, 2),
        compiled=False,
        points=angles,
        manifold=Torus(ndim=2),
    ),
    TransportCase("circular coupling, context", lambda: coupled(SPLINE, 2), context=(2,), **TORUS),
    TransportCase("Moebius coupling", lambda: coupled(MoebiusMap(3)), compiled=False, **TORUS),
    TransportCase("circular autoregressive", lambda: ordered(SPLINE), compiled=False, **TORUS),
    TransportCase(
        "angles and a length, context",
        lambda: ordered(MIXED, (True, False, True), 2),
        context=(2,),
        compiled=False,
        points=angles,
    ),
    TransportCase(
        "turns and a circular spline",
        lambda: Chain(circles(CircularShiftMap()), circles(SPLINE)),
        compiled=False,
        **TORUS,
    ),
    TransportCase("Moebius on S^2, context", lambda: moebius(3, 2), context=(2,), **SPHERE),
    TransportCase("Moebius on S^4", lambda: moebius(5), event=(5,), compiled=False, **SPHERE),
    TransportCase(
        "exponential map on S^2, context",
        lambda: exponential(3, 2),
        context=(2,),
        compiled=False,
        **SPHERE,
    ),
    TransportCase(
        "inverse exponential map on S^1",
        lambda: Inverse(exponential(2)),
        event=(2,),
        compiled=False,
        **SPHERE,
    ),
    TransportCase(
        "exponential map on S^4", lambda: exponential(5), event=(5,), compiled=False, **SPHERE
    ),
    TransportCase(
        "cylindrical on S^2, context",
        lambda: cylindrical(2),
        context=(2,),
        compiled=False,
        **SPHERE,
    ),
    TransportCase(
        "sphere, layers and an ODE",
        lambda: Chain(moebius(3), ODE(swirl(), RK4(6), manifold=Sphere()), exponential(3)),
        round_trip=1e-4,
        jacobian=1e-4,
        compiled=False,
        **SPHERE,
    ),
    TransportCase(
        "torus, layers and an ODE",
        lambda: Chain(coupled(SPLINE), ODE(swirl(), RK4(6), manifold=Torus())),
        round_trip=1e-4,
        jacobian=1e-4,
        compiled=False,
        **TORUS,
    ),
]
