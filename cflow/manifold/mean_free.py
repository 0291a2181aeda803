"""Clouds of points whose mean is the origin: a flat space, (particles - 1) coordinates an axis.

    {x in R^(p x d): sum_i x_i = 0},    projx(x) = x - mean_i x_i,    dimension (p - 1) d

Where positions in space do not matter, only those of particles to each other, densities live here:
on all of R^(p x d) a law that no translation changes could not be normalised.
Source: Koehler, Klein and Noe (2020), Equivariant flows: exact likelihood generative learning for
symmetric densities, arXiv 2006.02425.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.manifold.manifold import Manifold, described
from cflow.typing import Frame

__all__ = ["MeanFree"]


class MeanFree(Manifold):
    """Clouds of particles that are centred at the origin, in the metric of the space around.

    Args:
        ndim: Number of trailing axes of one point. The first of them counts the particles, whose
            mean is taken: 2 for particles in space, `(particles, dims)`.

    Raises:
        DomainError: ndim is below one.

    Example:
        >>> MeanFree().projx(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([[-1., -1.],
                [ 1.,  1.]])
        >>> MeanFree().dim((13, 3))
        36
    """

    loop = math.inf
    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, ndim: int = 2) -> None:
        super().__init__()
        if ndim < 1:
            raise DomainError(f"MeanFree: a point has one axis at least, its particles; got {ndim}")
        self.ndim = ndim

    def projx(self, x: Tensor) -> Tensor:
        return x - x.mean(-self.ndim, keepdim=True)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - u.mean(-self.ndim, keepdim=True)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm((y - x).flatten(-self.ndim), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return (u * w).flatten(-self.ndim).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether the means are zero, to `atol` times the largest coordinate or one.

        The mean of large coordinates is rounded in proportion to them.
        """
        x = x.detach()
        if not x.numel():
            return True, ""
        off = float(x.mean(-self.ndim).abs().amax())
        on = off <= atol * max(1.0, float(x.abs().amax())) < math.inf
        return on, "" if on else f"the mean over its particles is up to {off:.3g} away from zero"

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != self.ndim or shape[0] < 2:
            raise ShapeError(
                f"{self}: a point has {self.ndim} axes, of which the first counts two particles "
                f"or more, got shape {tuple(shape)}"
            )
        return (shape[0] - 1) * math.prod(shape[1:])

    def log_volume(self, shape: Sequence[int]) -> float:
        self.dim(shape)
        return math.inf

    def frame(self, x: Tensor) -> Frame:
        """Return Helmert's basis: particle k against the mean of those before, axis by axis."""
        event = x.shape[x.dim() - self.ndim :]
        particles, size = event[0], math.prod(event[1:])
        k = torch.arange(1, particles, dtype=x.dtype, device=x.device)[:, None]
        column = torch.arange(particles, dtype=x.dtype, device=x.device)
        contrast = torch.where(column < k, 1.0, torch.where(column == k, -k, 0.0))
        contrast = contrast / (k * (k + 1)).sqrt()
        basis = torch.kron(contrast, torch.eye(size, dtype=x.dtype, device=x.device))
        vectors = basis.reshape(-1, *event).expand(*x.shape[: -self.ndim], -1, *event)
        return vectors, vectors

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(u.flatten(-self.ndim)[..., 0])

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like((y - x).flatten(-self.ndim)[..., 0], dtype=torch.bool)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return x + s.reshape(s.shape + (1,) * self.ndim) * u, u

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def __repr__(self) -> str:
        """Show the number of axes, where it is not two."""
        return described(self, *([] if self.ndim == 2 else [str(self.ndim)]))
