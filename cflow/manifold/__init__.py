"""Manifolds with geoopt's method names."""

from cflow.manifold.euclidean import Euclidean
from cflow.manifold.log_euclidean import LogEuclideanSPD
from cflow.manifold.lorentz import Lorentz
from cflow.manifold.manifold import (
    Compact,
    Geodesics,
    Manifold,
    Projector,
    Steps,
    expect_on,
    geodesic_by_jvp,
    log_rate_by_jvp,
)
from cflow.manifold.mean_free import MeanFree
from cflow.manifold.mesh import Mesh
from cflow.manifold.poincare import PoincareBall
from cflow.manifold.product import Product
from cflow.manifold.quaternion import Quaternions
from cflow.manifold.rigid import RigidMotions
from cflow.manifold.rotation import Rotations
from cflow.manifold.simplex import Simplex
from cflow.manifold.spd import SPD, AffineInvariantSPD
from cflow.manifold.spectral import Biharmonic, Diffusion, Premetric, Spectrum
from cflow.manifold.sphere import Sphere
from cflow.manifold.torus import Torus

__all__ = [
    "SPD",
    "AffineInvariantSPD",
    "Biharmonic",
    "Compact",
    "Diffusion",
    "Euclidean",
    "Geodesics",
    "LogEuclideanSPD",
    "Lorentz",
    "Manifold",
    "MeanFree",
    "Mesh",
    "PoincareBall",
    "Premetric",
    "Product",
    "Projector",
    "Quaternions",
    "RigidMotions",
    "Rotations",
    "Simplex",
    "Spectrum",
    "Sphere",
    "Steps",
    "Torus",
    "expect_on",
    "geodesic_by_jvp",
    "log_rate_by_jvp",
]
