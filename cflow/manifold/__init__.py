"""Manifolds with geoopt's method names."""

from cflow.manifold.euclidean import Euclidean
from cflow.manifold.manifold import Compact, Manifold, Projector, Steps, expect_on
from cflow.manifold.sphere import Sphere
from cflow.manifold.torus import Torus

__all__ = [
    "Compact",
    "Euclidean",
    "Manifold",
    "Projector",
    "Sphere",
    "Steps",
    "Torus",
    "expect_on",
]
