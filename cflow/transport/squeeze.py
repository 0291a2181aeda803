"""Squeeze: trade the resolution of an image for channels, so that couplings can split them.

    data (c, h, w)  <->  base (c f^2, h / f, w / f),    ladj = 0

Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 3.6.
"""

from torch import Tensor
from torch.nn import functional

from cflow.errors import DomainError, ShapeError
from cflow.transport.transport import Layer, Shape

__all__ = ["Squeeze"]


class Squeeze(Layer):
    """Pull folds each block of f x f pixels into channels; push unfolds them.

    The f^2 pixels of a block and channel become neighbouring channels, row by row.

    Args:
        factor: Side f of a block, at least 1.

    Raises:
        DomainError: The factor is less than 1.

    Example:
        >>> import torch
        >>> from cflow.state import State
        >>> Squeeze().pull(State(torch.arange(4.0).reshape(1, 1, 2, 2))).x.flatten()
        tensor([0., 1., 2., 3.])
        >>> Squeeze().out_shape((4, 7, 7))
        (1, 14, 14)
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__(event_dim=3, out_shape=self._shape)
        if factor < 1:
            raise DomainError(f"Squeeze: factor must be at least 1, got {factor}")
        self.factor = factor

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        self._shape(tuple(x.shape[-3:]))
        y = functional.pixel_shuffle(x, self.factor)
        return y, x.new_zeros(()) if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        height, width = y.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ShapeError(
                f"Squeeze.pull: height and width must be multiples of {self.factor}, got "
                f"{tuple(y.shape)}"
            )
        x = functional.pixel_unshuffle(y, self.factor)
        return x, y.new_zeros(()) if tracked else None

    def _shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] % self.factor**2:
            raise ShapeError(
                f"Squeeze: the base side must be (channels, height, width) with a multiple of "
                f"{self.factor**2} channels, got {tuple(shape)}"
            )
        f = self.factor
        return (shape[0] // f**2, shape[1] * f, shape[2] * f)
