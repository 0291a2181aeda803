"""Images as sequences of patches: a transformer's tokens, row by row from the top left.

    (tokens, channels * patch^2)  <->  (channels, height, width) or (height, width)

Entries only change places, so the log-determinant is zero.
Source: Dosovitskiy et al. (2021), An image is worth 16x16 words, arXiv 2010.11929, section 3.1.
"""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.transport.transport import Layer, Shape

__all__ = ["Patches"]


class Patches(Layer):
    """Lay a sequence of patches out as an image; push goes from patches to the image.

    Args:
        shape: Shape of one image, `(channels, height, width)` or `(height, width)`.
        patch: Side of a patch in pixels; it divides height and width.

    Attributes:
        sequence: Event shape on the base side, `(tokens, channels * patch^2)`.

    Raises:
        ShapeError: The shape has neither two nor three axes.
        DomainError: The patch does not divide the image.

    Example:
        >>> import torch
        >>> from cflow.state import State
        >>> layer = Patches((4, 4), 2)
        >>> layer.pull(State(torch.arange(16.0).reshape(1, 4, 4))).x[0, 0].tolist()
        [0.0, 1.0, 4.0, 5.0]
    """

    def __init__(self, shape: Sequence[int], patch: int) -> None:
        self.shape, self.patch = tuple(shape), patch
        if len(self.shape) not in (2, 3):
            raise ShapeError(
                f"Patches: shape must be (channels, height, width) or (height, width), got "
                f"{self.shape}"
            )
        height, width = self.shape[-2:]
        if patch < 1 or min(self.shape) < 1 or height % patch or width % patch:
            raise DomainError(
                f"Patches: patch must divide height and width, got patch={patch} for {self.shape}"
            )
        channels = self.shape[0] if len(self.shape) == 3 else 1
        self._rows = height // patch
        self.sequence = (self._rows * (width // patch), channels * patch**2)
        super().__init__(event_dim=0, out_shape=self._image)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        expect_trailing("Patches.push", "x", x, self.sequence)
        c = "c " if len(self.shape) == 3 else ""
        pattern = f"... (h w) ({c}p q) -> ... {c}(h p) (w q)"
        y = rearrange(x, pattern, h=self._rows, p=self.patch, q=self.patch)
        return y, x.new_zeros(()) if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        expect_trailing("Patches.pull", "y", y, self.shape)
        c = "c " if len(self.shape) == 3 else ""
        pattern = f"... {c}(h p) (w q) -> ... (h w) ({c}p q)"
        x = rearrange(y, pattern, p=self.patch, q=self.patch)
        return x, y.new_zeros(()) if tracked else None

    def _image(self, shape: Shape) -> Shape:
        if tuple(shape) != self.sequence:
            raise ShapeError(f"Patches: expected event shape {self.sequence}, got {tuple(shape)}")
        return self.shape
