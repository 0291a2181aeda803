"""A law of rigid motions: a law of the rotation and one of the translation, independent.

log p(R, p) = log p_R(R) - 3/2 log w_R + log p_p(p) - 3/2 log w_p

with the weights of the metric, which scale the volumes of the two parts.
"""

import math

import torch
from torch import Generator, Tensor

from cflow.base.base import Base
from cflow.errors import ShapeError
from cflow.manifold import RigidMotions
from cflow.typing import Batch, Points

__all__ = ["Poses"]


class Poses(Base):
    """Independent rotations and translations, as the homogeneous matrices of `RigidMotions`.

    A context goes to both laws. Gradients through `sample` are those of the laws.

    Args:
        rotation: A law of rotation matrices `(3, 3)`: `ManifoldUniform` or `WrappedNormal` on
            `Rotations`.
        translation: A law of vectors `(3,)`.
        manifold: The rigid motions with the weights of their metric.

    Raises:
        ShapeError: A law has points of another shape.

    References:
        Yim et al. (2023), SE(3) diffusion model with application to protein backbone generation,
        arXiv 2302.02277, for the two as the start of a flow.

    Example:
        >>> from cflow.base import Gaussian, ManifoldUniform
        >>> from cflow.manifold import Rotations
        >>> base = Poses(ManifoldUniform(Rotations(), (3, 3)), Gaussian(3))
        >>> base.log_prob(torch.eye(4))  # -log(8 pi^2) - 3/2 log(2 pi)
        tensor(-7.1257)
    """

    def __init__(
        self, rotation: Base, translation: Base, *, manifold: RigidMotions | None = None
    ) -> None:
        super().__init__((4, 4))
        if (rotation.event_shape, translation.event_shape) != ((3, 3), (3,)):
            raise ShapeError(
                "Poses: laws must have points of shapes (3, 3) and (3,), got "
                f"{rotation.event_shape} and {translation.event_shape}"
            )
        self.rotation, self.translation = rotation, translation
        manifold = manifold or RigidMotions()
        weights = (manifold.rotation_weight, manifold.translation_weight)
        self.log_scale = 1.5 * sum(math.log(weight) for weight in weights)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        r = self.rotation.sample(shape, context, generator=generator)
        p = self.translation.sample(shape, context, generator=generator)
        last = torch.eye(4, dtype=r.dtype, device=r.device)[3:].expand(*shape, 1, 4)
        return torch.cat([torch.cat([r, p.to(r.dtype)[..., None]], -1), last], -2)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        r = self.rotation.log_prob(x[..., :3, :3], context)
        return r + self.translation.log_prob(x[..., :3, 3], context) - self.log_scale
