"""Flat space R^n, of any event shape."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.manifold.manifold import Manifold, described
from cflow.typing import Frame

__all__ = ["Euclidean"]


class Euclidean(Manifold):
    """Flat space R^n of any event shape.

    Args:
        ndim: Number of trailing axes of one point: 1 for vectors, 3 for images with channels.

    Example:
        >>> Euclidean().dist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """

    loop = math.inf
    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, ndim: int = 1) -> None:
        super().__init__()
        self.ndim = ndim

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._flat(y - x), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return self._flat(u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        finite = bool(torch.isfinite(x).all())
        return finite, "" if finite else "some coordinates are not finite"

    def dim(self, shape: Sequence[int]) -> int:
        return math.prod(shape)

    def log_volume(self, shape: Sequence[int]) -> float:
        return math.inf

    def frame(self, x: Tensor) -> Frame | None:
        return None

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(self._flat(u)[..., 0])

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return torch.zeros_like(self._flat(y - x)[..., 0], dtype=torch.bool)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return x + s.reshape(s.shape + (1,) * self.ndim) * u, u

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(-self.ndim) if self.ndim else x[..., None]

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def __repr__(self) -> str:
        """Show the number of axes, where it is not one."""
        return described(self, *([] if self.ndim == 1 else [str(self.ndim)]))
