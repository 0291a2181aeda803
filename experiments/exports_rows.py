"""The rows of docs/exports.md: every recipe, field network, context, jump of tokens; all small.

Recipes are those of docs/compatibility.md. A new field joins by one line here;
tests/test_exports_table.py asks for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from cflow import Flow, JumpFlow, recipes
from cflow.base import Gaussian, ManifoldUniform
from cflow.data.meshes import icosphere
from cflow.export.noise import to_noise
from cflow.field import (
    AutoGuided,
    ClassifierFree,
    CosineSchedule,
    CrystalField,
    DiTField,
    EquivariantField,
    Exact,
    Field,
    FlattenedField,
    FourierTime,
    FrameField,
    FunctionField,
    GatedField,
    GaussianMixture,
    InstantField,
    LinearSchedule,
    LogDensityGuided,
    MixtureField,
    MLPField,
    NetworkFlowMap,
    PeriodicField,
    PredictionField,
    PredictX1,
    RetimedField,
    SpanTime,
    SurfaceField,
    TangentField,
    TimedMLP,
    TwoLayerField,
    UNetField,
)
from cflow.jump import (
    ClassifierFreePosterior,
    NoisingPath,
    Posterior,
    PredictorPosterior,
)
from cflow.manifold import Compact, Euclidean, Mesh, Quaternions, Rotations, Sphere, Torus
from cflow.ode import Euler
from cflow.transport import ODE, Chain, Dequantize, Leap
from experiments.compatibility_rows import CLASSES, Row
from experiments.compatibility_rows import ROWS as EVERYTHING

__all__ = ["ROWS"]

VECTOR, IMAGE = (3,), (1, 4, 4)
CONTEXT, LABEL, TOKENS = (2,), (), (3, 2)
STEPS = 2
SURFACE = Mesh(*icosphere(1), crossings=4)


def mlp(context: int = 2) -> MLPField:
    return MLPField(3, context, hidden_features=(16, 16), frequencies=2)


def flow_map() -> NetworkFlowMap:
    time = SpanTime(FourierTime(2), FourierTime(2))
    return NetworkFlowMap(MLPField(3, 2, hidden_features=(16, 16), time=time))


def unet(classes: int = 0, *, context: int = 0, tokens: int = 0) -> UNetField:
    return UNetField(
        IMAGE,
        classes,
        context=context,
        tokens=tokens,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        heads=2,
    )


def dit(classes: int = 0, *, context: int = 0, tokens: int = 0) -> DiTField:
    return DiTField(
        IMAGE, classes, context=context, tokens=tokens, width=8, layers=1, heads=2, frequencies=8
    )


def first(t: torch.Tensor, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """Return log p(y | x) of an outcome y that a large first coordinate makes likely."""
    return torch.nn.functional.logsigmoid(x[..., 0])


Built = tuple[Callable[[], Field], tuple[int, ...], tuple[int, ...] | None]
FIELDS: dict[str, Built] = {
    "AutoGuided": (lambda: AutoGuided(mlp(), mlp(), scale=2.0), VECTOR, CONTEXT),
    "ClassifierFree, vectors": (lambda: ClassifierFree(mlp(), 2.0, null=0.0), VECTOR, CONTEXT),
    "ClassifierFree, labels": (
        lambda: ClassifierFree(dit(CLASSES), 2.0, null=CLASSES, interval=(0.1, 0.9)),
        IMAGE,
        LABEL,
    ),
    "DiTField": (dit, IMAGE, None),
    "DiTField, labels": (lambda: dit(CLASSES), IMAGE, LABEL),
    "DiTField, vectors": (lambda: dit(context=2), IMAGE, CONTEXT),
    "DiTField, tokens": (lambda: dit(tokens=2), IMAGE, TOKENS),
    "FunctionField": (lambda: FunctionField(lambda t, x, context: x.sin()), VECTOR, None),
    "GatedField": (lambda: GatedField(3, hidden_features=(16, 16)), VECTOR, None),
    "GatedField, vectors": (lambda: GatedField(3, 2, hidden_features=(16, 16)), VECTOR, CONTEXT),
    "InstantField, vectors": (lambda: InstantField(flow_map()), VECTOR, CONTEXT),
    "LogDensityGuided": (
        lambda: LogDensityGuided(mlp(0), first, schedule=LinearSchedule(), of="data"),
        VECTOR,
        None,
    ),
    "MLPField": (lambda: mlp(0), VECTOR, None),
    "MLPField, vectors": (mlp, VECTOR, CONTEXT),
    "MixtureField": (
        lambda: MixtureField(GaussianMixture(torch.zeros(1, 3)), GaussianMixture(torch.eye(3))),
        VECTOR,
        None,
    ),
    "PredictionField, vectors": (
        lambda: PredictionField(mlp(), LinearSchedule(), PredictX1()),
        VECTOR,
        CONTEXT,
    ),
    "RetimedField, vectors": (
        lambda: RetimedField(mlp(), LinearSchedule(), CosineSchedule()),
        VECTOR,
        CONTEXT,
    ),
    "TwoLayerField": (lambda: TwoLayerField(3, hidden_features=(16, 16)), VECTOR, None),
    "TwoLayerField, vectors": (
        lambda: TwoLayerField(3, 2, hidden_features=(16, 16)),
        VECTOR,
        CONTEXT,
    ),
    "UNetField": (unet, IMAGE, None),
    "UNetField, labels": (lambda: unet(CLASSES), IMAGE, LABEL),
    "UNetField, vectors": (lambda: unet(context=2), IMAGE, CONTEXT),
    "UNetField, tokens": (lambda: unet(tokens=2), IMAGE, TOKENS),
}


def along(field: Field, event: tuple[int, ...], context: tuple[int, ...] | None) -> Flow:
    """Return the flow of a field; the divergence of images goes one entry at a time."""
    divergence = Exact(chunk=1) if event == IMAGE else None
    ode = ODE(field, Euler(STEPS), manifold=Euclidean(len(event)), divergence=divergence)
    return Flow(Gaussian(event), ode, context_shape=context)


Curved = tuple[Callable[[Compact], Field], Compact, tuple[int, ...]]
CURVED: dict[str, Curved] = {
    "CrystalField": (lambda space: CrystalField((3, 3), layers=1), Torus(1.0, ndim=2), (3, 3)),
    "FrameField": (
        lambda space: FrameField(TimedMLP((3, 3), 3, hidden_features=(16, 16)), space),
        Rotations(steps="exponential"),
        (3, 3),
    ),
    "FrameField, quaternions": (
        lambda space: FrameField(TimedMLP(4, 3, hidden_features=(16, 16)), space),
        Quaternions(),
        (4,),
    ),
    "PeriodicField": (lambda space: PeriodicField(2, hidden_features=(16, 16)), Torus(), (2,)),
    "SurfaceField": (lambda space: SurfaceField(mlp(0), cast(Mesh, space)), SURFACE, VECTOR),
    "TangentField": (lambda space: TangentField(mlp(0), space), Sphere(), VECTOR),
}
CLOUDS: dict[str, Callable[[], Field]] = {
    "EquivariantField": lambda: EquivariantField((3, 2), layers=1, hidden_features=16),
    "FlattenedField": lambda: FlattenedField(MLPField(6, hidden_features=(16, 16)), (3, 2)),
}


def upon(field: Callable[[Compact], Field], space: Compact, event: tuple[int, ...]) -> Flow:
    """Return the flow of a field on a manifold, from the uniform law."""
    return Flow(ManifoldUniform(space, event), ODE(field(space), Euler(STEPS), manifold=space))


def noise_of(space: Compact, batch: int, *event: int) -> Tensor:
    """Draw the noise that a file of a flow from the uniform law takes."""
    base = ManifoldUniform(space, event)
    return to_noise(base, base.sample((batch,)), None)


def leap() -> Flow:
    return Flow(Gaussian(VECTOR), Leap(flow_map(), Euler(STEPS)), context_shape=CONTEXT)


def leap_on_sphere() -> Flow:
    time = SpanTime(FourierTime(2), FourierTime(2))
    net = MLPField(3, hidden_features=(16, 16), time=time)
    flow_map = NetworkFlowMap(TangentField(net, Sphere()))
    return Flow(ManifoldUniform(Sphere(), VECTOR), Leap(flow_map, Euler(STEPS), manifold=Sphere()))


def token_mlp(guide: Callable[[Posterior], Posterior] = lambda rates: rates) -> JumpFlow:
    flow = recipes.token_mlp(3, 5, 2, hidden_features=(16, 16), base="uniform", steps=STEPS)
    return flow.with_rates(guide(cast(Posterior, flow.rates)))


def noising(rates: Posterior) -> Posterior:
    return rates.along(NoisingPath(torch.full((5,), 0.2)))


def first_token(t: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
    """Return log p(y | x) of an outcome y that a first value of tokens makes likely."""
    return torch.nn.functional.logsigmoid(z[..., 0].sum(-1))


SEQUENCE: dict[str, Any] = dict(width=8, layers=1, heads=2, steps=STEPS)
MASKS, UNIFORM = 2 * STEPS, 2 * STEPS + 1  # numbers for each token
JUMPS: dict[str, tuple[Callable[[], JumpFlow], int]] = {
    "token_mlp": (token_mlp, UNIFORM),
    "token_transformer": (lambda: recipes.token_transformer(4, 5, **SEQUENCE), MASKS),
    "token_transformer, labels": (
        lambda: recipes.token_transformer(4, 5, CLASSES, **SEQUENCE),
        MASKS,
    ),
    "token_transformer, vectors, uniform": (
        lambda: recipes.token_transformer(4, 5, context=2, base="uniform", **SEQUENCE),
        UNIFORM,
    ),
    "ClassifierFreePosterior": (
        lambda: token_mlp(lambda rates: ClassifierFreePosterior(rates, 2.0, null=0.0)),
        UNIFORM,
    ),
    "PredictorPosterior": (
        lambda: token_mlp(lambda rates: PredictorPosterior(noising(rates), first_token)),
        UNIFORM,
    ),
}
"""Flows of tokens, and how many numbers a file takes for each token."""


def exportable(flow: Flow) -> Flow:
    """Return a flow before it rounds to grey levels, which would hide every difference."""
    if isinstance(flow, JumpFlow):
        return flow
    chain = flow.transport
    if isinstance(chain, Chain) and isinstance(chain[-1], Dequantize):
        return Flow(flow.base, chain[:-1], context_shape=flow.context_shape).eval()
    return flow


def _fields() -> list[Row]:
    rows = [
        Row(name, "Fields", lambda built=built: along(built[0](), *built[1:]))
        for name, built in FIELDS.items()
    ]
    curved = [
        Row(name, "Fields", lambda built=built: upon(*built), partial(noise_of, built[1]))
        for name, built in CURVED.items()
    ]
    clouds = [
        Row(name, "Fields", lambda build=build: along(build(), (3, 2), None))
        for name, build in CLOUDS.items()
    ]
    leaps = [
        Row("NetworkFlowMap, vectors", "Fields", leap),
        Row("NetworkFlowMap, on the sphere", "Fields", leap_on_sphere),
    ]
    return [*rows, *curved, *clouds, *leaps]


def _tokens() -> list[Row]:
    def row(name: str, build: Callable[[], JumpFlow], numbers: int) -> Row:
        points = lambda batch, *event: torch.rand(batch, numbers, *event)
        return Row(name, "Tokens", cast(Any, build), points)  # a row of points is a flow of them

    return [row(name, *built) for name, built in JUMPS.items()]


ROWS: tuple[Row, ...] = (
    *(row for row in EVERYTHING if row.section == "Recipes"),
    *_fields(),
    *_tokens(),
)
