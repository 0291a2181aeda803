"""Manifolds with geoopt's method names."""

from cflow.manifold.euclidean import Euclidean
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
from cflow.manifold.sphere import Sphere
from cflow.manifold.torus import Torus

__all__ = [
    "Compact",
    "Euclidean",
    "Geodesics",
    "Manifold",
    "Projector",
    "Sphere",
    "Steps",
    "Torus",
    "expect_on",
    "geodesic_by_jvp",
    "log_rate_by_jvp",
]
