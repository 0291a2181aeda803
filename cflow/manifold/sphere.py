"""The unit sphere S^n in R^(n+1), with the metric of the space around it.

    exp_x(u) = cos|u| x + sin|u| u/|u|,    dist(x, y) = 2 atan2(|x - y|, |x + y|)

The arctangent form is exact at zero distance, where arccos(x.y) loses half its digits.
"""

import math

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.manifold.manifold import Manifold

__all__ = ["Sphere"]


class Sphere(Manifold):
    """Unit vectors; one point is one vector.

    Example:
        >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> Sphere().dist(north, east)
        tensor(1.5708)
    """

    ndim = 1
    induced_metric = True

    def projx(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - (x * u).sum(-1, keepdim=True) * x

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        return length.cos() * x + torch.sinc(length / torch.pi) * u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the shortest velocity from x to y.

        Raises:
            DomainError: y is the antipode of x, to which every direction is shortest.
        """
        tangent = self.proju(x, y - x)
        length = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
        dist = self.dist(x, y)[..., None]
        if not torch.compiler.is_compiling() and bool(((length == 0) & (dist > 1)).any()):
            raise DomainError("Sphere.logmap: y is the antipode of x, all directions are shortest")
        tiny = torch.finfo(x.dtype).tiny
        return torch.where(length > 0, dist / length.clamp(min=tiny), 1.0) * tangent

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        apart = torch.linalg.vector_norm(x - y, dim=-1)
        return 2 * torch.atan2(apart, torch.linalg.vector_norm(x + y, dim=-1))

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        off = float((torch.linalg.vector_norm(x, dim=-1) - 1).abs().amax()) if x.numel() else 0.0
        return off <= atol, "" if off <= atol else f"lengths differ from 1 by up to {off:.3g}"

    def log_volume(self, shape: tuple[int, ...]) -> float:
        half = shape[-1] / 2
        return math.log(2.0) + half * math.log(math.pi) - math.lgamma(half)
