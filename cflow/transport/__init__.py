"""Transports: layers (zero solver steps), the ODE (N steps), and how they combine."""

from cflow.transport import masks
from cflow.transport.argmax import ArgmaxDequantize
from cflow.transport.autoregressive import AutoregressiveLayer
from cflow.transport.bernstein import BernsteinMap
from cflow.transport.channelwise import Channelwise, invertible_conv1x1
from cflow.transport.circular import CircularShiftMap, CircularSplineMap
from cflow.transport.conditioned import Conditioned
from cflow.transport.contraction import Arrival, FixedPoint
from cflow.transport.coupling_layer import CouplingLayer
from cflow.transport.cylindrical import CylindricalLayer
from cflow.transport.data_dependent import DataDependent, initialize
from cflow.transport.dequantize import Dequantize, VariationalDequantize
from cflow.transport.elementwise import Affine, Logit
from cflow.transport.exponential_map import ExponentialMapSphere
from cflow.transport.featurewise import FeaturewiseMap
from cflow.transport.gaussianisation import GaussianisationMap
from cflow.transport.guidance import Guidance, GuidedTransport
from cflow.transport.householder import HouseholderLinear, QRLinear, SVDLinear
from cflow.transport.image_coupling import ImageCouplingLayer
from cflow.transport.incremental import Incremental
from cflow.transport.instantaneous import instantaneous
from cflow.transport.inversion import GaussSeidel, Inversion, Jacobi, Passes
from cflow.transport.leap import Leap
from cflow.transport.learned import Elementwise
from cflow.transport.linear import Permutation, Reshape
from cflow.transport.logistic_mixture import LogisticMixtureMap
from cflow.transport.matrix import LULinear, MatrixLayer
from cflow.transport.moebius import MoebiusMap, MoebiusSphere
from cflow.transport.multiscale import Split, multiscale
from cflow.transport.naf import NeuralMap
from cflow.transport.noise import GaussianNoise, LabelDropout
from cflow.transport.norm import ActNorm, MovingBatchNorm, Standardize
from cflow.transport.ode import ODE
from cflow.transport.patches import Patches
from cflow.transport.residual import ResidualLayer, with_logdet
from cflow.transport.rotation import Rotation
from cflow.transport.series import Cutoff, ExactLogDet, Geometric, LogDet, Poisson, RussianRoulette
from cflow.transport.solved import with_solver
from cflow.transport.spline import RationalQuadraticMap
from cflow.transport.squeeze import Squeeze
from cflow.transport.transformer import TransformerLayer
from cflow.transport.transport import (
    Chain,
    Inverse,
    Layer,
    Likelihood,
    Stochastic,
    Transport,
)
from cflow.transport.umnn import UnconstrainedMonotonicMap
from cflow.transport.univariate import AdditiveMap, AffineMap, UnivariateMap

__all__ = [
    "ODE",
    "ActNorm",
    "AdditiveMap",
    "Affine",
    "AffineMap",
    "ArgmaxDequantize",
    "Arrival",
    "AutoregressiveLayer",
    "BernsteinMap",
    "Chain",
    "Channelwise",
    "CircularShiftMap",
    "CircularSplineMap",
    "Conditioned",
    "CouplingLayer",
    "Cutoff",
    "CylindricalLayer",
    "DataDependent",
    "Dequantize",
    "Elementwise",
    "ExactLogDet",
    "ExponentialMapSphere",
    "FeaturewiseMap",
    "FixedPoint",
    "GaussSeidel",
    "GaussianNoise",
    "GaussianisationMap",
    "Geometric",
    "Guidance",
    "GuidedTransport",
    "HouseholderLinear",
    "ImageCouplingLayer",
    "Incremental",
    "Inverse",
    "Inversion",
    "Jacobi",
    "LULinear",
    "LabelDropout",
    "Layer",
    "Leap",
    "Likelihood",
    "LogDet",
    "LogisticMixtureMap",
    "Logit",
    "MatrixLayer",
    "MoebiusMap",
    "MoebiusSphere",
    "MovingBatchNorm",
    "NeuralMap",
    "Passes",
    "Patches",
    "Permutation",
    "Poisson",
    "QRLinear",
    "RationalQuadraticMap",
    "Reshape",
    "ResidualLayer",
    "Rotation",
    "RussianRoulette",
    "SVDLinear",
    "Split",
    "Squeeze",
    "Standardize",
    "Stochastic",
    "TransformerLayer",
    "Transport",
    "UnconstrainedMonotonicMap",
    "UnivariateMap",
    "VariationalDequantize",
    "initialize",
    "instantaneous",
    "invertible_conv1x1",
    "masks",
    "multiscale",
    "with_logdet",
    "with_solver",
]
