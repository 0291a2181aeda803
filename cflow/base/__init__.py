"""Base laws."""

from cflow.base.base import Base, Centred, Product
from cflow.base.box import Uniform
from cflow.base.components import Components
from cflow.base.directional import ProjectedNormal, VonMises, VonMisesFisher
from cflow.base.gaussian import Gaussian
from cflow.base.joint import Joint
from cflow.base.kernels import VonMisesFisherMixture, VonMisesMixture
from cflow.base.mean_free import MeanFreeGaussian
from cflow.base.mixture import Mixture
from cflow.base.normal import ClassConditional, DiagonalGaussian, FullGaussian
from cflow.base.parzen import ParzenWindows
from cflow.base.poses import Poses
from cflow.base.resampled import Resampled
from cflow.base.tails import GeneralisedGaussian, StudentT
from cflow.base.tempered import Tempered, tempered
from cflow.base.tokens import (
    Categorical,
    EmpiricalTokens,
    MaskTokens,
    TokenBase,
    UniformTokens,
)
from cflow.base.truncated import Truncated
from cflow.base.uniform import ManifoldUniform
from cflow.base.wrapped import WrappedNormal

__all__ = [
    "Base",
    "Categorical",
    "Centred",
    "ClassConditional",
    "Components",
    "DiagonalGaussian",
    "EmpiricalTokens",
    "FullGaussian",
    "Gaussian",
    "GeneralisedGaussian",
    "Joint",
    "ManifoldUniform",
    "MaskTokens",
    "MeanFreeGaussian",
    "Mixture",
    "ParzenWindows",
    "Poses",
    "Product",
    "ProjectedNormal",
    "Resampled",
    "StudentT",
    "Tempered",
    "TokenBase",
    "Truncated",
    "Uniform",
    "UniformTokens",
    "VonMises",
    "VonMisesFisher",
    "VonMisesFisherMixture",
    "VonMisesMixture",
    "WrappedNormal",
    "tempered",
]
