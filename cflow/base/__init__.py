"""Base laws."""

from cflow.base.base import Base
from cflow.base.gaussian import Gaussian
from cflow.base.uniform import SphereUniform

__all__ = ["Base", "Gaussian", "SphereUniform"]
