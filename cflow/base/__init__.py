"""Base laws."""

from cflow.base.base import Base, Centred, Product
from cflow.base.box import Uniform
from cflow.base.gaussian import Gaussian
from cflow.base.mixture import Mixture
from cflow.base.normal import ClassConditional, DiagonalGaussian, FullGaussian
from cflow.base.resampled import Resampled
from cflow.base.tails import GeneralisedGaussian, StudentT
from cflow.base.tempered import Tempered, tempered
from cflow.base.truncated import Truncated
from cflow.base.uniform import SphereUniform

__all__ = [
    "Base",
    "Centred",
    "ClassConditional",
    "DiagonalGaussian",
    "FullGaussian",
    "Gaussian",
    "GeneralisedGaussian",
    "Mixture",
    "Product",
    "Resampled",
    "SphereUniform",
    "StudentT",
    "Tempered",
    "Truncated",
    "Uniform",
    "tempered",
]
