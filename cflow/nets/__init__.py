"""Plain networks that know nothing of flows."""

from cflow.nets.activation import Activation, activate, activate_with_slope
from cflow.nets.attention import Cache, CausalNetwork, CausalTransformer
from cflow.nets.conv import ConstantMaps, ConvNet, GatedConvNet
from cflow.nets.mlp import MLP
from cflow.nets.one_hot import OneHot

__all__ = [
    "MLP",
    "Activation",
    "Cache",
    "CausalNetwork",
    "CausalTransformer",
    "ConstantMaps",
    "ConvNet",
    "GatedConvNet",
    "OneHot",
    "activate",
    "activate_with_slope",
]
