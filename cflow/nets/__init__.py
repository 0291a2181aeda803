"""Plain networks that know nothing of flows."""

from cflow.nets.activation import Activation, activate, activate_with_slope
from cflow.nets.attention import Cache, CausalNetwork, CausalTransformer
from cflow.nets.conv import ConstantMaps, ConvNet, GatedConvNet
from cflow.nets.dense import LipschitzDenseNet
from cflow.nets.dit import DiT
from cflow.nets.egnn import EGNN, Messages
from cflow.nets.lipschitz import CLipSwish, Contraction, LipschitzConvNet, LipschitzMLP, LipSwish
from cflow.nets.masked import MaskedMLP, adjacency_of_order, adjacency_of_passes
from cflow.nets.mlp import MLP
from cflow.nets.modulation import GroupNorm
from cflow.nets.multihead import CrossAttention, SelfAttention
from cflow.nets.one_hot import OneHot
from cflow.nets.periodic import Embedded, PeriodicFeatures
from cflow.nets.rotary import Rotary
from cflow.nets.spectral import SpectralConv2d, SpectralLinear, induced_bound, spectral_bound
from cflow.nets.token_transformer import TokenTransformer
from cflow.nets.unet import UNet

__all__ = [
    "EGNN",
    "MLP",
    "Activation",
    "CLipSwish",
    "Cache",
    "CausalNetwork",
    "CausalTransformer",
    "ConstantMaps",
    "Contraction",
    "ConvNet",
    "CrossAttention",
    "DiT",
    "Embedded",
    "GatedConvNet",
    "GroupNorm",
    "LipSwish",
    "LipschitzConvNet",
    "LipschitzDenseNet",
    "LipschitzMLP",
    "MaskedMLP",
    "Messages",
    "OneHot",
    "PeriodicFeatures",
    "Rotary",
    "SelfAttention",
    "SpectralConv2d",
    "SpectralLinear",
    "TokenTransformer",
    "UNet",
    "activate",
    "activate_with_slope",
    "adjacency_of_order",
    "adjacency_of_passes",
    "induced_bound",
    "spectral_bound",
]
