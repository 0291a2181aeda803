"""Transports: layers (zero solver steps), the ODE (N steps), and how they combine."""

from cflow.transport.coupling_layer import CouplingLayer
from cflow.transport.dequantize import Dequantize
from cflow.transport.elementwise import Affine, Logit
from cflow.transport.linear import Permutation, Reshape
from cflow.transport.norm import (
    ActNorm,
    DataDependent,
    MovingBatchNorm,
    Standardize,
    initialize,
)
from cflow.transport.ode import ODE, with_solver
from cflow.transport.transport import (
    Chain,
    Inverse,
    Layer,
    Likelihood,
    Stochastic,
    Transport,
)
from cflow.transport.univariate import AdditiveMap, AffineMap, UnivariateMap

__all__ = [
    "ODE",
    "ActNorm",
    "AdditiveMap",
    "Affine",
    "AffineMap",
    "Chain",
    "CouplingLayer",
    "DataDependent",
    "Dequantize",
    "Inverse",
    "Layer",
    "Likelihood",
    "Logit",
    "MovingBatchNorm",
    "Permutation",
    "Reshape",
    "Standardize",
    "Stochastic",
    "Transport",
    "UnivariateMap",
    "initialize",
    "with_solver",
]
