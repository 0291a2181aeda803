"""The rows of docs/compatibility.md: every recipe, every layer, every map of one number, all small.

Parameters are drawn away from their initialisation, where many layers are the identity and every
tracer would be right. A new class joins by one line here; tests/test_compatibility.py asks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.field import (
    Exact,
    FourierTime,
    Hutchinson,
    MLPField,
    NetworkFlowMap,
    SpanTime,
)
from cflow.manifold import Rotations, Sphere
from cflow.nets import (
    MLP,
    CausalTransformer,
    ConstantMaps,
    ConvNet,
    Embedded,
    LipschitzMLP,
    MaskedMLP,
    OneHot,
    PeriodicFeatures,
    adjacency_of_order,
    adjacency_of_passes,
)
from cflow.ode import RK4, Dopri5, Euler
from cflow.transport import (
    ODE,
    ActNorm,
    AdditiveMap,
    Affine,
    AffineMap,
    ArgmaxDequantize,
    AutoregressiveLayer,
    BernsteinMap,
    Chain,
    Channelwise,
    CircularShiftMap,
    CircularSplineMap,
    Conditioned,
    CouplingLayer,
    CylindricalLayer,
    Dequantize,
    Elementwise,
    ExactLogDet,
    ExponentialMapSphere,
    FeaturewiseMap,
    GaussianisationMap,
    GaussianNoise,
    GaussSeidel,
    Guidance,
    GuidedTransport,
    HouseholderLinear,
    ImageCouplingLayer,
    Incremental,
    Inverse,
    Inversion,
    Jacobi,
    LabelDropout,
    Leap,
    LogisticMixtureMap,
    Logit,
    LULinear,
    MoebiusMap,
    MoebiusSphere,
    MovingBatchNorm,
    NeuralMap,
    Passes,
    Patches,
    Permutation,
    Poisson,
    QRLinear,
    RationalQuadraticMap,
    Reshape,
    ResidualLayer,
    Rotation,
    RussianRoulette,
    Split,
    Squeeze,
    Standardize,
    SVDLinear,
    TransformerLayer,
    Transport,
    UnconstrainedMonotonicMap,
    UnivariateMap,
    VariationalDequantize,
    invertible_conv1x1,
    masks,
    multiscale,
)

__all__ = ["ROWS", "Row"]

CLASSES = 3
SPREAD = 0.3  # standard deviation of the parameters


@dataclass(frozen=True)
class Row:
    """A line of the table: a small flow, and points of its base side.

    Attributes:
        name: What the line is called; it begins with the name of the recipe or class.
        section: The table that it stands in.
        build: Builds the flow; parameters are drawn anew afterwards.
        points: Draws points of the base side from their shape.
    """

    name: str
    section: str
    build: Callable[[], Flow]
    points: Callable[..., Tensor] = torch.randn

    def make(self) -> Flow:
        """Build the flow away from its initialisation, in evaluation mode."""
        torch.manual_seed(0)
        flow = self.build()
        for parameter in flow.parameters():
            nn.init.normal_(parameter, std=SPREAD)
        return flow.eval()

    def draw(self, flow: Flow, batch: int) -> tuple[Tensor, Tensor | None]:
        """Draw points of the base side and a context: labels where its shape is ()."""
        torch.manual_seed(1)
        x = self.points(batch, *flow.base.event_shape)
        if flow.context_shape is None:
            return x, None
        if flow.context_shape == ():
            return x, torch.randint(0, CLASSES, (batch,))
        return x, torch.randn(batch, *flow.context_shape)


ROULETTE = RussianRoulette(Poisson(2.0), exact_terms=2)
WIDE: dict[str, Any] = dict(transforms=2, hidden_features=(8, 8))
SHORT: dict[str, Any] = dict(
    transforms=1, hidden_features=(8,)
)  # where each search for a root is a long graph
RECIPES: dict[str, Callable[..., Flow]] = {
    "bernstein": lambda **k: recipes.bernstein(2, 2, degree=4, **SHORT, **k),
    "cnf": lambda: recipes.cnf(3, 2, hidden_features=(16,), solver=RK4(2)),
    "cnf, average": lambda: recipes.cnf(3, 2, hidden_features=(16,), average=True, solver=Euler(2)),
    "dit, labels": lambda: recipes.dit(
        (1, 4, 4), CLASSES, width=8, layers=1, heads=2, solver=RK4(2), divergence=Exact()
    ),
    "exact_cnf": lambda: recipes.exact_cnf(
        3, 2, hidden_features=(12, 12), frequencies=2, blocks=2, solver=RK4(2)
    ),
    "ffjord, exact divergence": lambda: recipes.ffjord(
        3, 2, blocks=2, hidden_features=(12,), solver=RK4(2), divergence=Exact()
    ),
    "ffjord, Hutchinson": lambda: recipes.ffjord(
        3, 2, blocks=2, hidden_features=(12,), solver=RK4(2), divergence=Hutchinson()
    ),
    "flowpp": lambda **k: recipes.flowpp(2, 2, units=2, **SHORT, **k),
    "gaussianization": lambda **k: recipes.gaussianization(2, 2, units=3, **SHORT, **k),
    "glow, labels": lambda: recipes.glow(
        (4, 4), CLASSES, scales=2, steps=1, hidden_channels=4, levels=5
    ),
    "iaf": lambda **k: recipes.iaf(3, 2, **WIDE, **k),
    "images": lambda: recipes.images(recipes.realnvp(16, **WIDE), (4, 4), levels=17),
    "invertible_densenet": lambda **k: recipes.invertible_densenet(
        3, 2, transforms=2, depth=2, growth=4, coefficient=0.7, logdet=ExactLogDet(), **k
    ),
    "invertible_densenet, roulette": lambda **k: recipes.invertible_densenet(
        3, 2, transforms=2, depth=2, growth=4, coefficient=0.7, logdet=ROULETTE, **k
    ),
    "maf": lambda **k: recipes.maf(3, 2, normalize=True, **WIDE, **k),
    "naf": lambda **k: recipes.naf(2, 2, units=2, **SHORT, **k),
    "nice": lambda: recipes.nice(3, 2, **WIDE),
    "nsf": lambda **k: recipes.nsf(3, 2, bins=3, mixing="lu", **WIDE, **k),
    "nsf, coupling": lambda **k: recipes.nsf(3, 2, kind="coupling", bins=3, **WIDE, **k),
    "realnvp": lambda: recipes.realnvp(3, 2, **WIDE),
    "residual": lambda **k: recipes.residual(
        3, 2, transforms=2, hidden_features=(8,), coefficient=0.7, logdet=ExactLogDet(), **k
    ),
    "residual, roulette": lambda **k: recipes.residual(
        3, 2, transforms=2, hidden_features=(8,), coefficient=0.7, logdet=ROULETTE, **k
    ),
    "rotation_cnf": lambda: recipes.rotation_cnf(2, hidden_features=(16,), solver=RK4(2)),
    "sphere_cnf": lambda: recipes.sphere_cnf(3, 2, hidden_features=(16,), solver=RK4(2)),
    "torus_cnf": lambda: recipes.torus_cnf(3, 2, hidden_features=(16,), solver=RK4(2)),
    "sphere_flow": lambda **k: recipes.sphere_flow(3, 2, bins=3, **WIDE, **k),
    "sphere_flow, exponential": lambda **k: recipes.sphere_flow(
        3, 2, kind="exponential", units=3, **SHORT, **k
    ),
    "standardized": lambda: recipes.standardized(recipes.realnvp(3, 2, **WIDE)),
    "tarflow, labels": lambda **k: recipes.tarflow(
        (4, 4), CLASSES, patch=2, width=8, blocks=2, layers=1, heads=2, **k
    ),
    "tarflow, labels, grey levels": lambda: recipes.tarflow(
        (4, 4), CLASSES, patch=2, width=8, blocks=2, layers=1, heads=2, levels=5
    ),
    "torus_moebius": lambda **k: recipes.torus_moebius(2, 2, units=2, **SHORT, **k),
    "torus_nsf": lambda **k: recipes.torus_nsf(2, 2, linear=1, bins=3, **WIDE, **k),
    "torus_nsf, coupling": lambda **k: recipes.torus_nsf(
        3, 2, kind="coupling", bins=3, **WIDE, **k
    ),
    "umnn": lambda **k: recipes.umnn(2, 2, **SHORT, **k),
    "unet, labels": lambda: recipes.unet(
        (1, 4, 4),
        CLASSES,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        heads=2,
        solver=RK4(2),
        divergence=Exact(),
    ),
}
ALIKE = {
    "cnf", "dit", "exact_cnf", "ffjord", "glow", "images", "nice", "realnvp", "rotation_cnf",
    "sphere_cnf", "standardized", "torus_cnf", "unet",
}  # fmt: skip
"""Recipes with no `fast`, or whose two orientations run the same arithmetic."""

MAPS: Sequence[UnivariateMap] = (
    AdditiveMap(),
    AffineMap(),
    BernsteinMap(4),
    CircularShiftMap(),
    CircularSplineMap(4),
    GaussianisationMap(3),
    LogisticMixtureMap(3),
    MoebiusMap(3),
    NeuralMap(units=3),
    RationalQuadraticMap(4),
    UnconstrainedMonotonicMap(units=3),
)


def coupled(univariate: UnivariateMap) -> Transport:
    net = MLP(1, 2 * univariate.parameters, context=2, hidden_features=(8,))
    return CouplingLayer([True, False, True], net, univariate)


def autoregressive(
    univariate: UnivariateMap, inversion: Inversion | None = None, links: Tensor | None = None
) -> Transport:
    links = adjacency_of_order([1, 2, 0]) if links is None else links
    net = MaskedMLP(links, univariate.parameters, context=2, hidden_features=(8, 8))
    return AutoregressiveLayer(net, univariate, inversion=inversion)


def mixed(layer: Callable[[UnivariateMap], Transport], moves: int) -> Transport:
    """Return a layer that moves an angle, and numbers beside it."""
    return layer(FeaturewiseMap((CircularSplineMap(4), *[RationalQuadraticMap(4)] * (moves - 1))))


def periodic() -> Transport:
    """Return a coupling layer whose network sees an angle as waves."""
    seen, spline = PeriodicFeatures(1), CircularSplineMap(4)
    net = MLP(seen.outputs, 2 * spline.parameters, context=2, hidden_features=(8,))
    return CouplingLayer([True, False, True], Embedded(seen, net), spline)


def cylinder() -> Transport:
    net = MLP(1, CircularSplineMap(4).parameters, context=2, hidden_features=(8,))
    return CylindricalLayer(net, longitude=CircularSplineMap(4))


def residual(logdet: ExactLogDet | RussianRoulette) -> Transport:
    net = LipschitzMLP(3, context=2, hidden_features=(8, 8), coefficient=0.7)
    return ResidualLayer(net, logdet=logdet)


def transformer(*, classes: int = 0, context: int = 0) -> Transport:
    net = CausalTransformer(
        3, 2, 4, width=8, layers=2, heads=2, expansion=2, classes=classes, context=context
    )
    return TransformerLayer(net)


def standardized(layer: Standardize | MovingBatchNorm) -> Transport:
    layer.fit(3 + 2 * torch.randn(50, 3))
    return layer


def split() -> Transport:
    return multiscale(
        (1, 4, 4),
        2,
        steps=lambda shape: Channelwise(LULinear(shape[0], start="orthogonal")),
        prior=lambda kept, moves: (
            ConvNet(kept, 2 * moves, hidden_channels=4) if kept else ConstantMaps(2 * moves)
        ),
    )


def ode(solver: RK4 | Dopri5) -> Transport:
    return ODE(MLPField(3, 2, hidden_features=(16, 16), frequencies=2), solver)


def leap() -> Transport:
    time = SpanTime(FourierTime(2), FourierTime(2))
    net = MLPField(3, 2, hidden_features=(16, 16), time=time)
    return Leap(NetworkFlowMap(net), Euler(2))


Built = tuple[Callable[[], Transport], tuple[int, ...], tuple[int, ...] | None]
VECTOR, CONTEXT = (3,), (2,)
LAYERS: dict[str, Built] = {
    "ActNorm": (lambda: ActNorm((3,)), VECTOR, None),
    "Affine": (lambda: Affine(torch.tensor([2.0, -0.5, 1.0]), 0.3), VECTOR, None),
    "ArgmaxDequantize": (
        lambda: ArgmaxDequantize(
            4,
            Elementwise(AffineMap(), (3, 4), conditioner=MLP(12, 24, hidden_features=(8,))),
        ),
        (3, 4),
        None,
    ),
    "AutoregressiveLayer, Incremental": (
        lambda: autoregressive(AffineMap(), Incremental(2)),
        VECTOR,
        CONTEXT,
    ),
    "AutoregressiveLayer, Passes": (
        lambda: autoregressive(AffineMap(), Passes(2), adjacency_of_passes(3, 2)),
        VECTOR,
        CONTEXT,
    ),
    "AutoregressiveLayer, Jacobi": (
        lambda: autoregressive(AffineMap(), Jacobi()),
        VECTOR,
        CONTEXT,
    ),
    "AutoregressiveLayer, GaussSeidel": (
        lambda: autoregressive(AffineMap(), GaussSeidel(2)),
        VECTOR,
        CONTEXT,
    ),
    "Chain": (lambda: Chain(ActNorm((3,)), coupled(AffineMap())), VECTOR, CONTEXT),
    "Channelwise": (lambda: Channelwise(coupled(AffineMap())), (3, 2, 2), CONTEXT),
    "Conditioned": (
        lambda: Conditioned(coupled(AffineMap()), nn.Sequential(OneHot(CLASSES), nn.Linear(3, 2))),
        VECTOR,
        (),
    ),
    "CouplingLayer": (lambda: coupled(AffineMap()), VECTOR, CONTEXT),
    "CouplingLayer, frozen map": (
        lambda: CouplingLayer(
            masks.halves(5),
            MLP(3, 4, context=2, hidden_features=(8,)),
            frozen_univariate=AffineMap(),
        ),
        (5,),
        CONTEXT,
    ),
    "CouplingLayer, angles": (periodic, VECTOR, CONTEXT),
    "CylindricalLayer": (cylinder, VECTOR, CONTEXT),
    "Dequantize": (lambda: Dequantize(17), VECTOR, None),
    "Elementwise": (
        lambda: Elementwise(AffineMap(), (3,), conditioner=MLP(2, 6, hidden_features=(8,))),
        VECTOR,
        CONTEXT,
    ),
    "ExponentialMapSphere": (
        lambda: ExponentialMapSphere(3, units=3, conditioner=MLP(2, 15, hidden_features=(8,))),
        VECTOR,
        CONTEXT,
    ),
    "GaussianNoise": (lambda: GaussianNoise(0.1), VECTOR, None),
    "GuidedTransport": (
        lambda: GuidedTransport(Inverse(transformer(classes=CLASSES)), Guidance(weight=2.0)),
        (3, 2),
        (),
    ),
    "HouseholderLinear": (lambda: HouseholderLinear(4), (4,), None),
    "ImageCouplingLayer, channels": (
        lambda: ImageCouplingLayer(
            masks.channels(3), ConvNet(2, 2, context=2, hidden_channels=6), AffineMap()
        ),
        (3, 2, 2),
        CONTEXT,
    ),
    "ImageCouplingLayer, checkerboard": (
        lambda: ImageCouplingLayer(
            masks.checkerboard(3, 4), ConvNet(2, 4, context=2, hidden_channels=6)
        ),
        (2, 3, 4),
        CONTEXT,
    ),
    "Inverse": (lambda: Inverse(coupled(AffineMap())), VECTOR, CONTEXT),
    "LULinear": (lambda: LULinear(4, start="orthogonal"), (4,), None),
    "LabelDropout": (
        lambda: LabelDropout(Inverse(transformer(classes=CLASSES)), 0.1),
        (3, 2),
        (),
    ),
    "Leap": (leap, VECTOR, CONTEXT),
    "Logit": (lambda: Logit(0.05), VECTOR, None),
    "MoebiusSphere": (
        lambda: MoebiusSphere(3, conditioner=MLP(2, 3, hidden_features=(8,))),
        VECTOR,
        CONTEXT,
    ),
    "MovingBatchNorm": (lambda: standardized(MovingBatchNorm((3,))), VECTOR, None),
    "ODE, RK4": (lambda: ode(RK4(2)), VECTOR, CONTEXT),
    "ODE, Dopri5": (lambda: ode(Dopri5()), VECTOR, CONTEXT),
    "Patches": (lambda: Patches((2, 4, 4), 2), (4, 8), None),
    "Permutation": (lambda: Permutation([2, 0, 1]), VECTOR, None),
    "QRLinear": (lambda: QRLinear(4), (4,), None),
    "Reshape": (lambda: Reshape((4,), (2, 2)), (4,), None),
    "ResidualLayer, ExactLogDet": (lambda: residual(ExactLogDet()), VECTOR, CONTEXT),
    "ResidualLayer, RussianRoulette": (lambda: residual(ROULETTE), VECTOR, CONTEXT),
    "Rotation": (lambda: Rotation(4), (4,), None),
    "SVDLinear": (lambda: SVDLinear(4), (4,), None),
    "Split": (
        lambda: Split((2, 2, 2), Reshape((4,), (1, 2, 2))),
        (8,),
        None,
    ),
    "Squeeze": (lambda: Squeeze(), (4, 2, 3), None),
    "Standardize": (lambda: standardized(Standardize((3,))), VECTOR, None),
    "TransformerLayer": (lambda: transformer(context=2), (3, 2), CONTEXT),
    "VariationalDequantize": (
        lambda: VariationalDequantize(Chain(ActNorm((3,))), 17),
        VECTOR,
        None,
    ),
    "invertible_conv1x1": (lambda: invertible_conv1x1(3), (3, 2, 2), None),
    "multiscale": (split, (16,), None),
}


def vectors(*shape: int) -> Tensor:
    return Sphere().projx(torch.randn(shape))


def rotations(*shape: int) -> Tensor:
    return Rotations().uniform(shape[:-2], shape[-2:], like=torch.zeros(()))


SIDES: dict[str, Callable[..., Tensor]] = {
    "Logit": torch.rand,
    "rotation_cnf": rotations,
    "torus_cnf": torch.rand,
    **dict.fromkeys(
        (
            "CylindricalLayer",
            "ExponentialMapSphere",
            "MoebiusSphere",
            "sphere_cnf",
            "sphere_flow",
        ),
        vectors,
    ),
}
"""Where the points of the base side lie, if not anywhere."""


def _recipes() -> list[Row]:
    rows = []
    for name, build in RECIPES.items():
        points = SIDES.get(name.split(",")[0], torch.randn)
        if name.split(",")[0] in ALIKE or "grey levels" in name:
            rows.append(Row(name, "Recipes", build, points))
            continue
        for fast in ("density", "sample"):
            turned = lambda build=build, fast=fast: build(fast=fast)
            rows.append(Row(f'{name}, fast="{fast}"', "Recipes", turned, points))
    return rows


def _layers() -> list[Row]:
    def row(name: str, built: Built) -> Row:
        make, event, context = built
        flow = lambda: Flow(Gaussian(event), make(), context_shape=context)
        return Row(name, "Layers", flow, SIDES.get(name, torch.randn))

    return [row(name, built) for name, built in LAYERS.items()]


def _maps() -> list[Row]:
    def row(univariate: UnivariateMap, layer: Callable[..., Transport], words: str) -> Row:
        flow = lambda: Flow(Gaussian(3), layer(univariate), context_shape=CONTEXT)
        return Row(f"{type(univariate).__name__} in {words}", "Maps of one number", flow)

    kinds = ((coupled, 2, "a coupling layer"), (autoregressive, 3, "an autoregressive layer"))
    alike = [row(one, layer, words) for one in MAPS for layer, _, words in kinds]
    return [
        *alike,
        *(
            Row(
                f"FeaturewiseMap in {words}",
                "Maps of one number",
                lambda layer=layer, moves=moves: Flow(
                    Gaussian(3), mixed(layer, moves), context_shape=CONTEXT
                ),
            )
            for layer, moves, words in kinds
        ),
    ]


ROWS: tuple[Row, ...] = (*_recipes(), *_layers(), *_maps())
