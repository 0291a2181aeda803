"""Velocity fields, their divergence, their networks and their regularisers."""

from cflow.field.cost import Cost, KineticEnergy
from cflow.field.divergence import Divergence, Exact, Hutchinson
from cflow.field.field import Field, FunctionField
from cflow.field.network import MLPField
from cflow.field.time import FourierTime

__all__ = [
    "Cost",
    "Divergence",
    "Exact",
    "Field",
    "FourierTime",
    "FunctionField",
    "Hutchinson",
    "KineticEnergy",
    "MLPField",
]
