"""Velocity fields, their divergence, their networks and their regularisers."""

from cflow.field.cost import Cost, CostSum, JacobianNorm, KineticEnergy
from cflow.field.divergence import Analytic, Divergence, Exact, Hutchinson, Rates
from cflow.field.field import AnalyticField, Field, FunctionField
from cflow.field.gated import Conditioning, GatedField, GatedLinear
from cflow.field.network import MLPField
from cflow.field.time import FourierTime
from cflow.field.two_layer import TwoLayerField

__all__ = [
    "Analytic",
    "AnalyticField",
    "Conditioning",
    "Cost",
    "CostSum",
    "Divergence",
    "Exact",
    "Field",
    "FourierTime",
    "FunctionField",
    "GatedField",
    "GatedLinear",
    "Hutchinson",
    "JacobianNorm",
    "KineticEnergy",
    "MLPField",
    "Rates",
    "TwoLayerField",
]
