"""The flat torus: angles, fractional coordinates, and whatever else comes round.

    exp_x(u) = x + u mod P,    log_x(y) = y - x - P round((y - x) / P),    volume = P^n

Every angle is a coordinate, so fields have their ordinary divergence.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import ShapeError, expect_positive
from cflow.manifold.manifold import Compact, described
from cflow.typing import Frame

__all__ = ["Torus"]


class Torus(Compact):
    """Coordinates that come round, each in [0, period).

    Args:
        period: Length of the way round: 2 pi for angles in radians, 1 for fractional coordinates.
        ndim: Number of trailing axes of one point: 1 for a vector of angles, 2 for atoms in a cell.

    Raises:
        DomainError: The period is not positive.

    Example:
        >>> Torus(360.0).dist(torch.tensor([10.0]), torch.tensor([350.0]))
        tensor(20.)
    """

    smooth_frame = True
    orthonormal_frame = True

    def __init__(self, period: float = 2 * math.pi, *, ndim: int = 1) -> None:
        super().__init__()
        expect_positive("Torus", period=period)
        self.period, self.ndim = period, ndim

    def projx(self, x: Tensor) -> Tensor:
        last = self.period * (1 - torch.finfo(x.dtype).eps)  # a tiny negative angle rounds past it
        return torch.remainder(x, self.period).clamp(max=last)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return self.projx(x + u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        way = y - x
        return way - self.period * (way / self.period).detach().round()

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._flat(self.logmap(x, y)), dim=-1)

    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return self._flat(u * w).sum(-1)

    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        if not x.numel():
            return True, ""
        low, high = (float(end) for end in torch.aminmax(x.detach()))
        inside = low >= -atol and high <= self.period + atol
        return inside, "" if inside else (
            f"coordinates from {low:.6g} to {high:.6g} leave [0, {self.period:.6g})"
        )

    def dim(self, shape: Sequence[int]) -> int:
        if len(shape) != self.ndim:
            raise ShapeError(f"{self}: a point has {self.ndim} axes, got shape {tuple(shape)}")
        return math.prod(shape)

    def log_volume(self, shape: Sequence[int]) -> float:
        return self.dim(shape) * math.log(self.period)

    def frame(self, x: Tensor) -> Frame | None:
        return None

    def log_volume_element(self, x: Tensor) -> Tensor | None:
        return None

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(self._flat(u)[..., 0])

    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        return self._flat((self.logmap(x, y).abs() - self.period / 2).abs() <= atol).any(-1)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return self.projx(x + s.reshape(s.shape + (1,) * self.ndim) * u), u

    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        self.dim(event_shape)
        full = (*shape, *event_shape)
        share = torch.rand(full, dtype=like.dtype, device=like.device, generator=generator)
        return self.projx(share * self.period)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(-self.ndim) if self.ndim else x[..., None]

    def __repr__(self) -> str:
        """Show the period and the number of axes, where they are not the usual ones."""
        period = [] if self.period == 2 * math.pi else [f"{self.period:g}"]
        axes = [] if self.ndim == 1 else [f"ndim={self.ndim}"]
        return described(self, *period, *axes)
