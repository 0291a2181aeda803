"""A flow on the sphere S^2 in cylindrical coordinates: height first, then longitude given height.

    x = (sqrt(1 - h^2) cos l, sqrt(1 - h^2) sin l, h),    area = dh dl

Both are moved by maps of one number, and the log-determinant between areas is the sum of their
log-slopes: Archimedes' theorem leaves no other factor. Densities would depend on the direction
from which a pole is approached; as the parameters of the longitude's map are multiplied by 1 - h^2
it is the identity at the poles, and they are continuous there too.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cflow.errors import ShapeError, expect_trailing
from cflow.manifold import Sphere, expect_on
from cflow.transport.circular import CircularSplineMap
from cflow.transport.spline import RationalQuadraticMap
from cflow.transport.steered import steered
from cflow.transport.transport import Layer
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["CylindricalLayer"]


class CylindricalLayer(Layer):
    """Move the height of unit vectors in R^3, then their longitude, steered by the height.

    The axis is the last coordinate; `Permutation([1, 2, 0])` between two layers changes it. Both
    maps are splines with closed forms in either direction. Precision near a pole is that of its
    height: a point at distance d comes back within rounding / d.

    Args:
        conditioner: A module called as `net(height, context)`, with the height `(*batch, 1)`, that
            returns `(*batch, longitude.parameters)`.
        height: A map of [-1, 1] to itself; a spline with free ends if None.
        longitude: A map of the circle; a `CircularSplineMap` if None.
        height_conditioner: A module called as `net(context)` that returns `(*batch,
            height.parameters)`; added to the learned parameters.

    Raises:
        DomainError: Points off the sphere, or a missing context.
        ShapeError: Points that are not in R^3, or a conditioner with another number of parameters.

    Example:
        >>> from cflow.nets import MLP
        >>> from cflow.state import tracked
        >>> layer = CylindricalLayer(MLP(1, 25))
        >>> x = torch.tensor([[0.0, 0.6, 0.8]])
        >>> back = layer.pull(layer.push(tracked(x)))
        >>> torch.allclose(back.x, x, atol=1e-5)
        True
    """

    def __init__(
        self,
        conditioner: Callable[[Tensor, Tensor | None], Tensor],
        *,
        height: UnivariateMap | None = None,
        longitude: UnivariateMap | None = None,
        height_conditioner: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(event_dim=1)
        self.conditioner = conditioner
        self.height_conditioner = height_conditioner
        self.height = RationalQuadraticMap(bound=1.0, tails="none") if height is None else height
        self.longitude = CircularSplineMap() if longitude is None else longitude
        self.theta = nn.Parameter(torch.zeros(self.height.parameters))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        old, angle, theta = self._enter("push", x, context)
        new, rise = in_full_precision(self.height.push, old, theta)
        turned, turn = self.longitude.push(angle, self._steer(old, context))
        return _vector(new, turned).to(x.dtype), rise + turn if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        new, turned, theta = self._enter("pull", y, context)
        old, rise = in_full_precision(self.height.pull, new, theta)
        angle, turn = self.longitude.pull(turned, self._steer(old, context))
        return _vector(old, angle).to(y.dtype), rise + turn if tracked else None

    def _enter(
        self, method: str, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return height and longitude in float32 at least, and the parameters of the height."""
        where = f"CylindricalLayer.{method}"
        expect_trailing(where, "x", x, (3,))
        expect_on(where, "x", Sphere(), x)
        theta = steered(where, self.theta, self.height_conditioner, context)
        wide = torch.promote_types(torch.promote_types(x.dtype, theta.dtype), torch.float32)
        first, second, height = Sphere().projx(x.to(wide)).unbind(-1)
        pole = (first == 0) & (second == 0)  # where the longitude has no gradient
        angle = torch.atan2(torch.where(pole, 0.0, second), torch.where(pole, 1.0, first))
        return height, angle, theta.to(wide).expand(*height.shape, -1)

    def _steer(self, height: Tensor, context: Tensor | None) -> Tensor:
        theta = self.conditioner(height[..., None], context)
        if theta.shape[-1] != self.longitude.parameters:
            raise ShapeError(
                f"CylindricalLayer: the conditioner must return {self.longitude.parameters} "
                f"numbers, got {tuple(theta.shape)}"
            )
        return (1 - height * height)[..., None] * theta.to(height.dtype)


def _vector(height: Tensor, angle: Tensor) -> Tensor:
    """Return unit vectors; at a pole the distance from the axis has no gradient, and gets none."""
    square = (1 - height) * (1 + height)
    away = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return torch.stack([away * angle.cos(), away * angle.sin(), height], -1)
