"""Manifolds with geoopt's method names."""

from cflow.manifold.manifold import Euclidean, Manifold, Projector
from cflow.manifold.sphere import Sphere

__all__ = ["Euclidean", "Manifold", "Projector", "Sphere"]
