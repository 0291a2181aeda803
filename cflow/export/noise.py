"""The noise that a file takes: standard, wherever the base is a normal or a uniform law.

    normal laws:   x = m + L e,                  e standard normal
    uniform laws:  x = low + (high - low) u,     u uniform in [0, 1]
    on a sphere, or for quaternions:  x = e / |e|;     on a torus:  x = period u

Whoever runs a file needs no more than `randn` or `rand` then. Points of any other base are taken as
they are, and have to be drawn from it.
"""

import torch
from torch import Tensor

from cflow.base import (
    Base,
    ClassConditional,
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    ManifoldUniform,
    Tempered,
    Uniform,
)
from cflow.manifold import Quaternions, Sphere, Torus
from cflow.typing import Points

__all__ = ["from_noise", "noise_law", "to_noise"]


def noise_law(base: Base) -> str:
    """Name the law of the noise: "Gaussian" and "Uniform" are the standard ones.

    Example:
        >>> noise_law(DiagonalGaussian(2)), noise_law(Uniform(2, low=-1.0))
        ('Gaussian', 'Uniform')
    """
    if isinstance(base, Gaussian | DiagonalGaussian | FullGaussian | ClassConditional):
        return "Gaussian"
    if isinstance(base, Tempered) and noise_law(base.base) == "Gaussian":
        return "Gaussian"
    if isinstance(base, ManifoldUniform) and isinstance(base.manifold, Sphere | Quaternions):
        return "Gaussian"
    if isinstance(base, ManifoldUniform) and isinstance(base.manifold, Torus):
        return "Uniform"
    return type(base).__name__


def from_noise(base: Base, noise: Points, context: Tensor | None) -> Points:
    """Return points of the base for standard noise `(*batch, *event)`.

    Example:
        >>> from_noise(Uniform(1, low=-1.0), torch.tensor([[0.25]]), None)
        tensor([[-0.5000]])
    """
    if isinstance(base, Uniform):
        return torch.lerp(base.low.to(noise), base.high.to(noise), noise)
    if isinstance(base, ManifoldUniform) and isinstance(base.manifold, Sphere | Quaternions):
        return base.manifold.projx(noise)
    if isinstance(base, ManifoldUniform) and isinstance(base.manifold, Torus):
        return base.manifold.period * noise
    if isinstance(base, FullGaussian):
        return noise @ base.cholesky().mT.to(noise) + base.mean.to(noise)
    if isinstance(base, DiagonalGaussian | ClassConditional):
        mean, log_scale = base._law(context)
        return (mean + log_scale.exp() * noise).to(noise.dtype)
    if isinstance(base, Tempered) and noise_law(base) == "Gaussian":
        centre = base.base.centre(context)
        x = from_noise(base.base, noise, context)
        return (centre + base.temperature * (x - centre)).to(noise.dtype)
    return noise


def to_noise(base: Base, x: Points, context: Tensor | None) -> Points:
    """Return the noise of points of the base: the inverse of `from_noise`.

    Example:
        >>> to_noise(Uniform(1, low=-1.0), torch.tensor([[-0.5]]), None)
        tensor([[0.2500]])
    """
    if isinstance(base, Uniform):
        low = base.low.to(x)
        return (x - low) / (base.high.to(x) - low)
    if isinstance(base, ManifoldUniform) and isinstance(base.manifold, Torus):
        return x / base.manifold.period
    if isinstance(base, FullGaussian):
        factor = base.cholesky().to(x)
        one = torch.eye(len(factor), dtype=x.dtype, device=x.device)
        return (x - base.mean.to(x)) @ torch.linalg.solve_triangular(factor, one, upper=False).mT
    if isinstance(base, DiagonalGaussian | ClassConditional):
        mean, log_scale = base._law(context)
        return ((x - mean) * (-log_scale).exp()).to(x.dtype)
    if isinstance(base, Tempered) and noise_law(base) == "Gaussian":
        centre = base.base.centre(context)
        inner = (centre + (x - centre) / base.temperature).to(x.dtype)
        return to_noise(base.base, inner, context)
    return x
