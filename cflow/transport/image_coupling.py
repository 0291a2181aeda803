"""The coupling layer on images: some channels, or some pixels, steer a map of the others.

    y_frozen = x_frozen,    y_moved = g(x_moved; theta),    theta = net(x_frozen, context)

Sources: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 3.4;
Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, section 3.3.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.transport.transport import Layer
from cflow.transport.univariate import AffineMap, UnivariateMap, in_full_precision

__all__ = ["ImageCouplingLayer"]


class ImageCouplingLayer(Layer):
    """Move the masked entries of images `(channels, height, width)`, steered by the others.

    A mask of channels `(channels, 1, 1)` splits the image: the conditioner gets the channels that
    stand still and answers for those that move. A mask of pixels, `(1, height, width)` or one with
    all axes, keeps the image whole: the conditioner gets it with zeros where entries move.

    Args:
        moved: Flags, true for what moves; see `cflow.transport.masks`.
        conditioner: A module called as `net(frozen, context)` on maps `(*batch, n, height, width)`
            that returns `(*batch, m * parameters, height, width)`. With a mask of channels, n and
            m count those that stand still and that move; else both are all channels.
        univariate: The map that moves them.

    Raises:
        DomainError: The mask has not three axes, or nothing moves.

    Example:
        >>> from cflow.nets import ConvNet
        >>> from cflow.state import State
        >>> from cflow.transport import masks
        >>> net = ConvNet(1, 2 * 2, hidden_channels=8)  # one channel steers two
        >>> layer = ImageCouplingLayer(masks.channels(3, flip=True), net)
        >>> layer.push(State(torch.zeros(5, 3, 4, 4))).x.shape
        torch.Size([5, 3, 4, 4])
    """

    def __init__(
        self,
        moved: Tensor,
        conditioner: Callable[[Tensor, Tensor | None], Tensor],
        univariate: UnivariateMap | None = None,
    ) -> None:
        super().__init__(event_dim=3)
        if moved.dim() != 3 or not bool(moved.any()):
            raise DomainError(
                "ImageCouplingLayer: moved must be flags (channels, height, width), with ones for "
                f"axes that it spans and one true at least, got {tuple(moved.shape)} with "
                f"{int(moved.sum())} true"
            )
        self.conditioner = conditioner
        self.univariate = AffineMap() if univariate is None else univariate
        self.splits = moved.shape[1:] == (1, 1)
        flags = moved.bool()
        frozen, moves = (torch.nonzero(m.flatten()).flatten() for m in (~flags, flags))
        self.moved: Tensor
        self.frozen: Tensor
        self.moves: Tensor
        self.order: Tensor
        self.register_buffer("moved", flags)
        self.register_buffer("frozen", frozen)
        self.register_buffer("moves", moves)
        self.register_buffer("order", torch.argsort(torch.cat([frozen, moves])))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move("push", self.univariate.push, x, context)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move("pull", self.univariate.pull, y, context)

    def _move(
        self,
        method: str,
        move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        mask = tuple(self.moved.shape)
        if any(m not in (1, n) for m, n in zip(mask, x.shape[-3:], strict=True)) or (
            self.splits and mask[0] != x.shape[-3]
        ):
            raise ShapeError(
                f"ImageCouplingLayer.{method}: points must end in a shape that the mask {mask} "
                f"spans, got {tuple(x.shape)}"
            )
        if self.splits:
            frozen, moving = x.index_select(-3, self.frozen), x.index_select(-3, self.moves)
            theta = self._theta(method, moving, self.conditioner(frozen, context))
            moving, slopes = in_full_precision(move, moving, theta)
            return torch.cat([frozen, moving], dim=-3).index_select(-3, self.order), slopes
        frozen = torch.where(self.moved, 0.0, x)
        theta = self._theta(method, x, self.conditioner(frozen, context))
        moving, slopes = in_full_precision(move, x, theta)
        return torch.where(self.moved, moving, x), torch.where(self.moved, slopes, 0.0)

    def _theta(self, method: str, moving: Tensor, theta: Tensor) -> Tensor:
        """Give each moving entry its parameters, `(*batch, m, height, width, parameters)`."""
        count = self.univariate.parameters
        expected = (moving.shape[-3] * count, *moving.shape[-2:])
        if tuple(theta.shape[-3:]) != expected:
            raise ShapeError(
                f"ImageCouplingLayer.{method}: the conditioner must return maps ending in "
                f"{expected}, got {tuple(theta.shape)}"
            )
        return theta.unflatten(-3, (moving.shape[-3], count)).movedim(-3, -1)
