"""A map of its own for each feature: angles beside lengths, whole data sets of mixed columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.transport.univariate import UnivariateMap

__all__ = ["FeaturewiseMap"]


@dataclass(frozen=True)
class FeaturewiseMap(UnivariateMap):
    """Move each feature, on the last axis, by a map of its own.

    Every feature is given as many parameters as the map that needs most; a map takes the first of
    them. In a coupling layer the maps are those of the features that move.

    Attributes:
        maps: The map of each feature.

    Raises:
        DomainError: No map at all.
        ShapeError: Points have another number of features.

    Example:
        >>> from cflow.transport import AffineMap, CircularSplineMap
        >>> mixed = FeaturewiseMap((CircularSplineMap(bins=4), AffineMap()))
        >>> x = torch.tensor([3.0, 100.0])
        >>> mixed.push(x, torch.zeros(2, mixed.parameters))[0]
        tensor([  3., 100.])
    """

    maps: tuple[UnivariateMap, ...]

    def __post_init__(self) -> None:
        if not self.maps or not all(isinstance(map, UnivariateMap) for map in self.maps):
            raise DomainError(
                f"FeaturewiseMap: maps must hold a UnivariateMap for each feature, got {self.maps}"
            )

    @property
    def parameters(self) -> int:
        return max(map.parameters for map in self.maps)

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self._each("push", x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self._each("pull", y, theta)

    def _each(self, direction: str, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() == 0 or x.shape[-1] != len(self.maps):
            raise ShapeError(
                f"FeaturewiseMap: there are maps of {len(self.maps)} features, the last axis of "
                f"the points must hold as many, got {tuple(x.shape)}"
            )
        moved, slopes, places = [], [], []
        for map in dict.fromkeys(self.maps):  # equal maps go together
            here = [place for place, other in enumerate(self.maps) if other == map]
            move = map.push if direction == "push" else map.pull
            y, slope = move(x[..., here], theta[..., here, : map.parameters])
            moved, slopes, places = [*moved, y], [*slopes, slope], [*places, *here]
        back = sorted(range(len(places)), key=places.__getitem__)
        return torch.cat(moved, -1)[..., back], torch.cat(slopes, -1)[..., back]
