"""Velocity fields, their divergence, their networks and their regularisers."""

from cflow.field.condition import Condition
from cflow.field.cost import Cost, CostSum, JacobianNorm, KineticEnergy
from cflow.field.divergence import Analytic, Divergence, Exact, Hutchinson, Rates
from cflow.field.equivariant import CrystalField, EquivariantField
from cflow.field.field import AnalyticField, Field, FunctionField
from cflow.field.flattened import FlattenedField
from cflow.field.flow_map import FlowMap, InstantField, NetworkFlowMap, SpanTime
from cflow.field.frame import Framed, FrameField
from cflow.field.gated import Conditioning, GatedField, GatedLinear
from cflow.field.guidance import AutoGuided, ClassifierFree, LogDensityGuided
from cflow.field.image import DiTField, UNetField
from cflow.field.mixture import GaussianMixture, MixtureField
from cflow.field.network import MLPField
from cflow.field.null import null_of
from cflow.field.periodic import PeriodicField
from cflow.field.prediction import (
    Ends,
    Prediction,
    PredictionField,
    PredictNoise,
    PredictScore,
    PredictVelocity,
    PredictX1,
    convert,
)
from cflow.field.retimed import RetimedField
from cflow.field.schedule import (
    Coefficients,
    CosineSchedule,
    FunctionSchedule,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    PathSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.field.surface import Surface, SurfaceField
from cflow.field.tangent import TangentField, Tangents
from cflow.field.time import FourierTime, SinusoidalTime, TimeEmbedding
from cflow.field.timed import Features, TimedMLP
from cflow.field.two_layer import TwoLayerField

__all__ = [
    "Analytic",
    "AnalyticField",
    "AutoGuided",
    "ClassifierFree",
    "Coefficients",
    "Condition",
    "Conditioning",
    "CosineSchedule",
    "Cost",
    "CostSum",
    "CrystalField",
    "DiTField",
    "Divergence",
    "Ends",
    "EquivariantField",
    "Exact",
    "Features",
    "Field",
    "FlattenedField",
    "FlowMap",
    "FourierTime",
    "FrameField",
    "Framed",
    "FunctionField",
    "FunctionSchedule",
    "GatedField",
    "GatedLinear",
    "GaussianMixture",
    "Hutchinson",
    "InstantField",
    "JacobianNorm",
    "KineticEnergy",
    "LinearSchedule",
    "LinearVPSchedule",
    "LipmanSchedule",
    "LogDensityGuided",
    "MLPField",
    "MixtureField",
    "NetworkFlowMap",
    "PathSchedule",
    "PeriodicField",
    "PolynomialSchedule",
    "PredictNoise",
    "PredictScore",
    "PredictVelocity",
    "PredictX1",
    "Prediction",
    "PredictionField",
    "Rates",
    "RetimedField",
    "SinusoidalTime",
    "SpanTime",
    "Surface",
    "SurfaceField",
    "TangentField",
    "Tangents",
    "TimeEmbedding",
    "TimedMLP",
    "TwoLayerField",
    "UNetField",
    "VPSchedule",
    "convert",
    "null_of",
]
